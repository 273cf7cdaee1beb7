"""OCR and parse without a model: PDFs and images that the gateway reads itself."""

import base64
import io
import json
import os
import shutil
import socket
import time

import pytest
from PIL import Image

from inference import page_reader
from tests.inference.documents import FRENCH, image_of, picture_pdf, scan_of, text_pdf, words_found
from tests.server import Server

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="Tesseract is not installed here: apt install tesseract-ocr{,-fra}"
)


def data_url(document: bytes, type: str = "application/pdf") -> str:
    return f"data:{type};base64,{base64.b64encode(document).decode()}"


def ocr(client, document: bytes, **fields):
    body = {"document": {"type": "document_url", "document_url": data_url(document)}}
    return client.post("/v1/ocr", json=body | fields)


def ocr_image(client, image: bytes, type: str = "image/png", **fields):
    return client.post("/v1/ocr", json={"document": {"type": "image_url", "image_url": data_url(image, type)}} | fields)


def parse(client, document: bytes, name: str = "a.pdf", **fields):
    return client.post("/v1/parse-beta", data=fields, files={"file": (name, document)})


# OCR


def test_the_text_layer_of_a_pdf_is_read_page_by_page(as_ada, records):
    document = text_pdf("Première page.", "Deuxième page.")
    response = ocr(as_ada, document)
    assert response.status_code == 200, response.text
    body = response.json()
    assert [(page["index"], page["markdown"]) for page in body["pages"]] == [
        (0, "Première page."),
        (1, "Deuxième page."),
    ]
    assert body["pages"][0]["dimensions"] == {"dpi": 200, "height": 2339, "width": 1654}
    assert body["pages"][0]["images"] == []
    assert (body["model"], body["document_annotation"]) == ("local", None)
    assert body["usage_info"] == {"pages_processed": 2, "doc_size_bytes": len(document)}
    assert body["usage"]["cost"] == 0


def test_it_is_metered_like_any_other_call(as_ada, ada, records):
    response = ocr(as_ada, text_pdf("Page."))
    (record,) = records()
    assert record.request_id == response.headers["x-request-id"]
    assert (record.user_id, record.key_name, record.router_id, record.router_name) == (ada.id, "test", None, "local")
    assert (record.endpoint, record.status, record.outcome) == ("/v1/ocr", 200, "finished")
    assert (record.total_tokens, record.cost, record.tokens_estimated) == (0, 0, False)
    assert record.latency_ms > 0
    row = as_ada.get("/v1/me/usage").json()["data"][0]
    assert (row["endpoint"], row["model"], row["status"]) == ("/v1/ocr", "local", 200)


def test_some_pages_may_be_asked_for(as_ada):
    response = ocr(as_ada, text_pdf("A", "B", "C"), pages=[2, 0, 2])
    assert [(page["index"], page["markdown"]) for page in response.json()["pages"]] == [(0, "A"), (2, "C")]


@needs_tesseract
def test_a_scanned_french_page_is_read_with_95_percent_of_its_words(as_ada):
    response = ocr(as_ada, scan_of(FRENCH))
    assert response.status_code == 200, response.text
    (page,) = response.json()["pages"]
    assert words_found(FRENCH, page["markdown"]) >= 0.95
    assert page["images"] == []


@needs_tesseract
@pytest.mark.parametrize(("format", "type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("TIFF", "image/tiff")])
def test_an_image_is_read(as_ada, format, type):
    response = ocr_image(as_ada, image_of("Bonjour à tous, les élèves.", format), type)
    assert response.status_code == 200, response.text
    assert response.json()["pages"][0]["markdown"] == "Bonjour à tous, les élèves."


def test_pictures_are_told_and_sent_when_wanted(as_ada):
    document = picture_pdf("Text above.")
    (page,) = ocr(as_ada, document).json()["pages"]
    assert page["markdown"] == "Text above.\n\n![img-0.jpeg](img-0.jpeg)"
    (image,) = page["images"]
    assert image["image_base64"] is None
    corners = [image[name] for name in ("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y")]
    assert corners == [200, 1939, 600, 2139]
    (page,) = ocr(as_ada, document, include_image_base64=True).json()["pages"]
    sent = page["images"][0]["image_base64"].removeprefix("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (40, 20)


@pytest.mark.parametrize("fields", [{"image_limit": 0}, {"image_min_size": 201}])
def test_pictures_may_be_limited_in_number_and_size(as_ada, fields):
    (page,) = ocr(as_ada, picture_pdf("Text."), **fields).json()["pages"]
    assert (page["images"], page["markdown"]) == ([], "Text.")


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (b"%PDF-1.7\nnothing of one", "Parsing document failed."),
        (text_pdf("A page.")[:300], "Parsing document failed."),
        (text_pdf("A page.", password="secret"), "The document is protected by a password."),
        (b"GIF89a?", "Unsupported file type."),
        (b"hello", "Unsupported file type."),
        (b"", "Unsupported file type."),
        (image_of("x")[:500], "Unsupported file type."),
    ],
)
def test_a_document_that_cannot_be_read_gets_422_and_the_reason(as_ada, document, detail, records):
    response = ocr(as_ada, document)
    assert (response.status_code, response.json()["detail"]) == (422, detail)
    (record,) = records()
    assert (record.status, record.outcome, record.cost) == (422, "refused_midway", 0)


def test_a_bomb_of_an_image_is_refused(as_ada):
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    response = ocr_image(as_ada, buffer.getvalue())
    assert (response.status_code, response.json()["detail"]) == (422, "The image is too large.")


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("https://example.org/a.pdf", "Without a model, documents are read from data URLs in base64 only."),
        ("file:///etc/passwd", "Without a model, documents are read from data URLs in base64 only."),
        ("http://169.254.169.254/", "Without a model, documents are read from data URLs in base64 only."),
        ("data:application/pdf,plain", "Without a model, documents are read from data URLs in base64 only."),
        ("data:application/pdf;base64,A", "The data URL is not base64."),
        ("data:application/pdf;base64,\u00e9", "The data URL is not base64."),
    ],
)
def test_nothing_is_fetched_for_a_caller(as_ada, url, detail):
    response = as_ada.post("/v1/ocr", json={"document": {"type": "document_url", "document_url": url}})
    assert (response.status_code, response.json()["detail"]) == (422, detail)


def test_a_page_that_is_not_there_gets_422(as_ada):
    response = ocr(as_ada, text_pdf("A"), pages=[1])
    assert response.json()["detail"] == "There is no page 1: the document has 1, counted from 0."
    assert response.status_code == 422


def test_annotations_need_a_model(as_ada):
    response = ocr(as_ada, text_pdf("A"), document_annotation_format={"type": "json_object"})
    assert (response.status_code, response.json()["detail"][0]["msg"]) == (
        422,
        "Value error, Annotations need a model.",
    )


def test_a_file_over_the_limit_gets_413(as_ada):
    response = ocr(as_ada, b"%PDF-" + b" " * 20 * 1024 * 1024)
    assert (response.status_code, response.json()["detail"]) == (413, "File size limit exceeded (max: 20971520 bytes).")


@pytest.mark.parametrize(
    "fields",
    [
        {"document": {"type": "file", "file_id": "x"}},
        {"document": {"type": "document_url"}},
        {"document": None},
        {"document": {"type": "image_url", "image_url": {}}},
        {"pages": [-1]},
        {"pages": "0"},
        {"image_limit": -1},
        {"include_image_base64": "yes"},
        {"bbox_annotation_format": {"type": "xml"}},
    ],
)
def test_a_wrong_body_gets_422(as_ada, fields):
    body = {"document": {"type": "document_url", "document_url": data_url(text_pdf("A"))}}
    assert as_ada.post("/v1/ocr", json=body | fields).status_code == 422


def test_nobody_reads_without_a_key(gateway):
    with gateway.client() as client:
        assert ocr(client, text_pdf("A")).status_code == 401
        assert parse(client, text_pdf("A")).status_code == 401


# Parse


def test_a_pdf_is_parsed_into_pages(as_ada, records):
    response = parse(as_ada, text_pdf("A", "B", "C", "D"), page_range="0,2-3")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["object"] == "list"
    assert [page["content"] for page in body["data"]] == ["A", "C", "D"]
    assert body["data"][1] == {
        "object": "documentPage",
        "content": "C",
        "images": {},
        "metadata": {"document_name": "a.pdf", "page": 2},
    }
    assert body["usage"]["requests"] == 1
    (record,) = records()
    assert (record.endpoint, record.status) == ("/v1/parse-beta", 200)


def test_pictures_of_a_parsed_page_come_with_it(as_ada):
    (page,) = parse(as_ada, picture_pdf("Text.")).json()["data"]
    assert page["images"]["img-0.jpeg"].startswith("data:image/jpeg;base64,")


@needs_tesseract
def test_the_image_of_a_page_is_read_when_that_is_forced(as_ada):
    (page,) = parse(as_ada, text_pdf(FRENCH), force_ocr="true").json()["data"]
    assert words_found(FRENCH, page["content"]) >= 0.95


def test_what_is_no_pdf_is_not_parsed(as_ada):
    response = parse(as_ada, image_of("x"), "a.png")
    assert (response.status_code, response.json()["detail"]) == (422, "File must be a pdf file.")


@pytest.mark.parametrize("page_range", ["x", "1-", "-1", "3-1", "0;1", "0-99999999", "٣"])
def test_a_wrong_page_range_gets_422(as_ada, page_range):
    response = parse(as_ada, text_pdf("A"), page_range=page_range)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "page_range"]


def test_a_missing_or_empty_file_gets_422(as_ada):
    assert as_ada.post("/v1/parse-beta", data={"page_range": "0"}).json()["detail"][0]["loc"] == ["body", "file"]
    assert parse(as_ada, b"").status_code == 422


def test_a_parsed_file_over_the_limit_gets_413(as_ada):
    response = parse(as_ada, b"%PDF-" + b" " * 20 * 1024 * 1024)
    assert (response.status_code, response.json()["detail"]) == (413, "File size limit exceeded (max: 20971520 bytes).")


# The engine


def test_a_scan_without_an_engine_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(page_reader.Refused, match="no OCR engine is installed here"):
        page_reader.read(scan_of("x"), page_reader.Options(languages=["eng"]))


@pytest.fixture
def own_gateway(transactional_db, redis_client, ada, key_of):
    """A gateway with its own settings, and ada's client for it: `own_gateway(OPENGATE_X="1")`."""
    started = []

    def start(**settings):
        server = Server(**settings).start()
        client = server.client(key_of(ada))
        started.append((server, client))
        return client

    yield start
    for server, client in started:
        client.close()
        server.stop()


def test_it_can_be_turned_off(own_gateway):
    client = own_gateway(OPENGATE_LOCAL_OCR_PROCESSES="0")
    response = ocr(client, text_pdf("A"))
    assert (response.status_code, response.json()["detail"]) == (404, "Model not found.")
    response = parse(client, text_pdf("A"))
    assert response.status_code == 403
    assert response.json()["detail"] == "Feature not enabled, please contact an administrator."


@needs_tesseract
def test_a_document_that_takes_too_long_is_given_up_with_all_its_processes(own_gateway):
    client = own_gateway(OPENGATE_LOCAL_OCR_SECONDS="1")
    response = ocr(client, scan_of(*[FRENCH] * 12))
    assert response.status_code == 422
    assert response.json()["detail"] in (
        "Reading the document takes more than 1 seconds.",
        "Parsing document failed.",  # it was out of processor time first
    )
    assert not readers()


@needs_tesseract
def test_a_caller_who_leaves_stops_the_reading(gateway, ada, key_of, records):
    asked = {"document": {"type": "document_url", "document_url": data_url(scan_of(*[FRENCH] * 12))}}
    body = json.dumps(asked).encode()
    head = f"POST /v1/ocr HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key_of(ada)}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        wait_for(readers)
    wait_for(lambda: not readers())
    (record,) = records()
    assert (record.status, record.outcome) == (499, "client_left")


def wait_for(what):
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def readers() -> list[str]:
    """Processes that read documents."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if b"inference.page_reader" in command or command.startswith((b"/usr/bin/tesseract", b"tesseract")):
            found.append(command.decode(errors="replace"))
    return found
