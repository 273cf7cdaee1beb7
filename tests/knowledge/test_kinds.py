"""What a file is, by its name and its content type."""

import pytest

from knowledge.kinds import Kind, kind_of

OFFICE = "application/vnd.openxmlformats-officedocument"


@pytest.mark.parametrize(
    ("names", "types", "kind"),
    [
        (["a.pdf", "A.PDF"], ["application/pdf"], Kind.PDF),
        (["a.html", "a.htm", "a.HTM"], ["text/html", "text/plain", "application/html"], Kind.HTML),
        (
            ["a.md", "a.markdown"],
            ["text/markdown", "text/x-markdown", "text/plain", "application/markdown"],
            Kind.MARKDOWN,
        ),
        (["a.txt", "a.text", "a.tar.txt"], ["text/plain", "text/txt"], Kind.TEXT),
        (["a.docx"], [f"{OFFICE}.wordprocessingml.document", "application/zip"], Kind.DOCX),
        (["a.pptx"], [f"{OFFICE}.presentationml.presentation", "application/zip"], Kind.PPTX),
        (["a.xlsx"], [f"{OFFICE}.spreadsheetml.sheet", "application/zip"], Kind.XLSX),
        (["a.odt"], ["application/vnd.oasis.opendocument.text", "application/zip"], Kind.ODT),
        (["a.epub"], ["application/epub+zip", "application/zip"], Kind.EPUB),
        (["a.eml"], ["message/rfc822"], Kind.EMAIL),
    ],
)
def test_extension_and_content_type_agree(names, types, kind):
    for name in names:
        for type in [*types, "application/octet-stream", ""]:
            assert kind_of(name, type) == kind, (name, type)


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("a.pdf", "text/plain"),
        ("a.txt", "application/pdf"),
        ("a.txt", "text/html"),
        ("a.docx", f"{OFFICE}.spreadsheetml.sheet"),
        ("a.pdf", "application/zip"),
    ],
)
def test_a_contradiction_is_no_kind(name, type):
    assert kind_of(name, type) is None


@pytest.mark.parametrize("name", ["", "rapport", "rapport.xyz", "pdf", ".pdf", "a.pdf.xyz"])
def test_without_a_known_extension_the_content_type_decides(name):
    assert kind_of(name, "application/pdf") == Kind.PDF
    assert kind_of(name, "text/plain") == Kind.TEXT
    assert kind_of(name, "text/html") == Kind.HTML
    assert kind_of(name, "application/epub+zip") == Kind.EPUB


@pytest.mark.parametrize("type", ["", "application/octet-stream", "application/zip", "image/png"])
def test_where_nothing_fits_there_is_no_kind(type):
    assert kind_of("rapport", type) is None


def test_parameters_and_case_of_the_content_type_say_nothing():
    assert kind_of("a.html", "Text/HTML; charset=ISO-8859-1") == Kind.HTML
    assert kind_of("a", "text/markdown;charset=utf-8") == Kind.MARKDOWN
    assert kind_of("a.pdf", " ; charset=utf-8") == Kind.PDF
