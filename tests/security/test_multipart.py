"""Forms with more parts, names and borders than a form has, and files that unfold."""

import io
import zipfile

import pytest

from knowledge.errors import Unreadable
from knowledge.kinds import Kind
from knowledge.models import Document
from knowledge.parsing import pages
from tests.knowledge.conftest import collection, embeddings  # noqa: F401
from tests.security.wire import MAX_BODY
from tests.server import is_refused_form

MIB = 1024 * 1024


def field(name: str, value: bytes = b"x", more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def file(name: str = "notes.txt", value: bytes = b"words", more: str = "") -> bytes:
    return field("file", value, f'; filename="{name}"{more}')


END = b"--B--\r\n"
FORM = "multipart/form-data; boundary=B"
FAULTY = {
    "100,000 fields": (FORM, b"".join(field(f"a{n}", b"") for n in range(50_000)) + END),
    "100,000 times one field": (FORM, field("a", b"") * 60_000 + END),
    "100,000 files": (FORM, file("x.txt", b"") * 45_000 + END),
    "a thousand files": (FORM, file() * 1000 + END),
    "no border": ("multipart/form-data", field("a") + END),
    "an empty border": ("multipart/form-data; boundary=", field("a") + END),
    "a border of 50,000 bytes": (f"multipart/form-data; boundary={'B' * 50_000}", field("a") + END),
    "an odd border": ("multipart/form-data; boundary=\xff\xfe", field("a") + END),
    "a part whose head has a megabyte": (FORM, b"--B\r\nX: " + b"a" * MIB + b"\r\n\r\nx\r\n" + END),
    "a part with 100,000 headers": (FORM, b"--B\r\n" + b"X: a\r\n" * 100_000 + b"\r\nx\r\n" + END),
    "a name of a megabyte": (FORM, field("a" * MIB) + END),
    "a form in the form": (FORM, field("a", field("b"), '"\r\nContent-Type: multipart/mixed; boundary=C') + END),
    "base64 of spaces": (FORM, field("file", b" " * (2 * MIB), '; filename="x"\r\nContent-Transfer-Encoding: base64')),
    "base64 that is none": (FORM, file("x.txt", b"!!!!", "\r\nContent-Transfer-Encoding: base64") + END),
    "nothing but borders": (FORM, b"--B\r\n" * 100_000),
    "the end at once": (FORM, END),
    "nothing": (FORM, b""),
    "no form": ("application/x-www-form-urlencoded", b"a=1&" * 100_000),
    "JSON": ("application/json", b"{}"),
    "another alphabet": (FORM + "; charset=utf-7", field("collection_id", b"+AGE-") + END),
    "an unknown alphabet": (FORM + "; charset=none", field("collection_id", b"1") + END),
}
PATHS = ("/v1/documents", "/v1/audio/transcriptions", "/v1/parse-beta")


@pytest.mark.needs("raw forms")
def test_a_form_that_is_too_much_is_refused_in_little_memory(target, ada, key_of, router, upstream, unused):
    with target.client(key_of(ada)) as client:
        for path in PATHS:
            for name, (kind, body) in FAULTY.items():
                assert len(body) < MAX_BODY, name
                answer = client.post(path, content=body, headers={"Content-Type": kind.encode("latin-1")})
                assert answer.status_code in (400, 404, 413, 422), (path, name, answer.text)
                assert is_refused_form(answer) or answer.json()["detail"], (path, name)
    assert upstream.received == []
    assert not Document.objects.exists()


NAMES: tuple[str, ...] = (
    "../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "x\0.txt",
    "a\rb.txt",
    "x.txt\r\nX-Evil: 1",
    "é\u202e.txt",
)
NAMES += ("", ".", "..", "con", "%2e%2e%2fx", "x" * 5000 + ".txt", '=cmd|"x"!A1.txt', "<script>.txt", "~/x")


def test_a_file_is_kept_under_no_name_of_the_callers(target, ada, key_of, collection, upstream):  # noqa: F811
    with target.client(key_of(ada)) as client:
        for name in NAMES:
            body = field("collection_id", str(collection.pk).encode()) + file(name) + END
            headers = {"Content-Type": FORM, "Prefer": "respond-async"}
            answer = client.post("/v1/documents", content=body, headers=headers)
            assert answer.status_code in (201, 202, 400, 422), (name, answer.text)
            listed = client.get("/v1/documents")
            assert "x-evil" not in listed.headers
    for document in Document.objects.all():
        assert document.file is None or ".." not in str(document.file)
        assert "/" not in document.name
        assert "\\" not in document.name or document.name.startswith("..")


def test_of_two_files_or_fields_of_one_name_one_counts(target, ada, key_of, collection):  # noqa: F811
    id = str(collection.pk).encode()
    with target.client(key_of(ada)) as client:
        body = field("collection_id", b"0") + field("collection_id", id) + file("a.txt") + file("b.txt") + END
        answer = client.post("/v1/documents", content=body, headers={"Content-Type": FORM, "Prefer": "respond-async"})
    assert answer.status_code in (202, 404, 422)
    assert Document.objects.count() == (answer.status_code == 202)


def archive(depth: int, packed: bytes) -> bytes:
    for _ in range(depth):
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as box:
            box.writestr("word/document.xml", packed)
        packed = written.getvalue()
    return packed


def test_archives_in_archives_and_bombs_are_no_documents():
    document = archive(4, b"0" * 100 * MIB)
    assert len(document) < MIB // 4
    for kind in ("docx", "xlsx", "odt", "epub", "pptx"):
        with pytest.raises(Unreadable, match=r"too much in it|is not an? "):
            pages(io.BytesIO(document), Kind(kind))
