"""Files become Markdown: honest ones as they are, harmful ones a sentence."""

import io
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest

from knowledge import document_reader, parsing
from knowledge.errors import Unreadable
from knowledge.kinds import Kind
from knowledge.parsing import Page
from knowledge.readers import Options, Refused
from tests.inference.documents import FRENCH, scan_of, text_pdf, words_found
from tests.knowledge import files

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="Tesseract is not installed here: apt install tesseract-ocr{,-fra}"
)


def pages(document: bytes, kind: Kind, **how):
    return parsing.pages(io.BytesIO(document), kind, **how)


def text_of(document: bytes, kind: Kind) -> str:
    (page,) = pages(document, kind)
    assert page.number is None
    return page.markdown


def refusal(document: bytes, kind: Kind) -> str:
    with pytest.raises(Unreadable) as raised:
        pages(document, kind)
    assert raised.value.status == 422
    return raised.value.detail


SLOW = files.raw_pdf(b"BT /F1 12 Tf 10 10 Td (lent) Tj ET\n" * 400_000)  # takes a reader some seconds
LIST = f"- {files.ITEMS[0]}\n- {files.ITEMS[1]}"
WHOLE = f"# {files.TITLE}\n\n{files.SENTENCES}\n\n## {files.SECTION}\n\n{LIST}"


# PDF


def test_a_pdf_becomes_headings_paragraphs_lists_and_tables_page_by_page():
    assert pages(files.pdf(), Kind.PDF) == [
        Page(WHOLE, 1),
        Page(f"Avant le tableau.\n\n{files.MARKDOWN_TABLE}\n\nAprès le tableau.", 2),
    ]


def test_pages_without_text_keep_the_numbers_of_the_others():
    found = pages(text_pdf("Première.", "", "Troisième."), Kind.PDF)
    assert found == [Page("Première.", 1), Page("Troisième.", 3)]


def test_a_word_broken_at_the_end_of_a_line_is_whole_again():
    content = b"BT /F1 12 Tf 72 700 Td (Le gouver-) Tj 0 -14 Td (nement siege.) Tj ET"
    assert pages(files.raw_pdf(content), Kind.PDF) == [Page("Le gouvernement siege.", 1)]


def test_letters_of_one_point_that_are_scaled_up_are_as_large_as_they_look():
    content = b"BT /F1 1 Tf 24 0 0 24 72 700 Tm (Titre) Tj 12 0 0 12 72 660 Tm (Un texte bien plus long.) Tj ET"
    assert pages(files.raw_pdf(content), Kind.PDF) == [Page("# Titre\n\nUn texte bien plus long.", 1)]


def test_a_line_that_only_looks_like_a_heading_is_none():
    content = b"BT /F1 12 Tf 72 700 Td (# une ligne) Tj ET"
    assert pages(files.raw_pdf(content), Kind.PDF) == [Page("\\# une ligne", 1)]


@needs_tesseract
def test_a_scan_is_read_with_95_percent_of_its_words():
    (page,) = pages(scan_of(FRENCH), Kind.PDF)
    assert page.number == 1
    assert words_found(FRENCH, page.markdown) >= 0.95


def test_a_scan_without_an_engine_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert refusal(scan_of("x"), Kind.PDF) == "The document is a scan, and no OCR engine is installed here."


def test_a_protected_pdf_is_refused():
    assert refusal(text_pdf("A page.", password="secret"), Kind.PDF) == "The document is protected by a password."


def test_a_pdf_that_breaks_off_is_refused():
    assert refusal(files.pdf()[:1500], Kind.PDF) == "Parsing document failed."


def test_a_pdf_of_thousands_of_pages_is_refused_at_once():
    document = files.raw_pdf(b"", pages=5000)
    began = time.monotonic()
    assert refusal(document, Kind.PDF) == "The document has 5000 pages; at most 2000 are read."
    assert time.monotonic() - began < 5


def test_a_pdf_of_blank_pages_has_no_text():
    assert refusal(text_pdf("", ""), Kind.PDF) == "The document has no text."


def test_a_content_stream_that_unfolds_to_hundreds_of_megabytes_does_no_harm():
    document = files.raw_pdf(b" " * 200_000_000)
    assert len(document) < 300_000
    assert refusal(document, Kind.PDF) == "The document has no text."


def test_a_page_as_large_as_a_town_is_read():
    content = b"BT /F1 12 Tf 72 700 Td (Perdu.) Tj ET"
    assert pages(files.raw_pdf(content, box="0 0 10000000 10000000"), Kind.PDF) == [Page("Perdu.", 1)]


# Web pages, text, messages


def test_html_becomes_markdown_without_menu_footer_and_scripts():
    assert text_of(files.html(), Kind.HTML) == f"{WHOLE}\n\n{files.MARKDOWN_TABLE}"


def test_of_a_long_page_the_main_text_is_taken():
    menu = "<div class='menu'>" + "<a href='/'>Rubrique</a> " * 80 + "</div>"
    article = "".join(f"<h2>Article {number}</h2><p>{files.SENTENCES} ({number}.) a-b*c_d</p>" for number in range(8))
    page = f"<html><body>{menu}<div><h1>{files.TITLE}</h1>{article}{files.HTML}</div></body></html>"
    text = text_of(page.encode(), Kind.HTML)
    assert "Rubrique" not in text
    assert text.startswith(f"# {files.TITLE}\n\n## Article 0\n\n{files.SENTENCES} (0.) a-b*c_d\n\n## Article 1\n\n")
    assert text.endswith(files.MARKDOWN_TABLE)


def test_html_is_read_in_the_encoding_it_declares():
    page = "<html><head><meta charset='iso-8859-2'></head><body><p>Łódź</p></body></html>"
    assert text_of(page.encode("iso-8859-2"), Kind.HTML) == "Łódź"


def test_elements_in_elements_by_the_thousand_are_text_all_the_same():
    assert text_of(b"<div>" * 50_000 + b"Au fond.", Kind.HTML) == "Au fond."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.MARKDOWN])
def test_text_is_read_in_the_usual_encodings(kind, encoding):
    written = "# Élèves\r\n\r\nL’aide s’élève à 950 €.\r\n"
    assert text_of(written.encode(encoding), kind) == "# Élèves\n\nL’aide s’élève à 950 €."


@pytest.mark.parametrize(
    "document", [b"\x89PNG\r\n\x1a\n\x00\x00", bytes(range(1, 32)) * 10, "é".encode("utf-16-le"), b"\xff\xfea"]
)
@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.MARKDOWN, Kind.HTML])
def test_what_is_no_text_is_refused(kind, document):
    assert refusal(document, kind) == "The file is not text."


def test_a_message_becomes_its_head_text_and_the_names_of_its_attachments():
    head = "From: Zoé <zoe@example.org>\nTo: mairie@example.org\nDate: Mon, 02 Mar 2026 10:00:00 +0100"
    read = f"# {files.TITLE}\n\n{head}\n\n{files.SENTENCES}\n\nAttachments: délibération.pdf"
    assert text_of(files.eml(), Kind.EMAIL) == read
    assert text_of(files.eml(only_html=True), Kind.EMAIL) == read


def test_a_message_from_no_address_is_read_all_the_same():
    message = b"Subject: Avis\nFrom: =?utf-8?b?AA==?= <\n\nBonjour."
    assert text_of(message, Kind.EMAIL).startswith("# Avis\n\n")
    assert text_of(message, Kind.EMAIL).endswith("\n\nBonjour.")


def test_a_message_in_an_encoding_that_nobody_knows_is_read_all_the_same():
    message = b"Subject: Avis\nFrom: a@example.org\nContent-Type: text/plain; charset=klingon\n\nBonjour."
    assert text_of(message, Kind.EMAIL).endswith("\n\nBonjour.")


def test_what_is_no_message_is_refused():
    assert refusal(b"Bonjour", Kind.EMAIL) == "The file is not an e-mail message."


# Office documents and books


def test_a_word_document_becomes_markdown():
    assert text_of(files.docx(), Kind.DOCX) == f"{WHOLE}\n\n{files.MARKDOWN_TABLE}"


def test_a_presentation_becomes_a_page_a_slide():
    assert pages(files.pptx(), Kind.PPTX) == [
        Page(f"# {files.TITLE}\n\n{LIST}\n\nNotes: À dire de vive voix.", 1),
        Page(f"# {files.SECTION}\n\n{files.MARKDOWN_TABLE}", 2),
    ]


def test_a_spreadsheet_becomes_a_table_a_sheet():
    values = [("Nom", None, "Né"), (None, None, None), ("Zoé | Léa", None, 2.5)]
    found = pages(files.xlsx(("Aides", list(files.ROWS)), ("Vide", []), ("Élèves", values)), Kind.XLSX)
    assert found == [
        Page(f"# Aides\n\n{files.MARKDOWN_TABLE}", 1),
        Page("# Élèves\n\n| Nom | Né |\n| --- | --- |\n| Zoé \\| Léa | 2.5 |", 3),
    ]


def test_an_opendocument_text_becomes_markdown():
    text = text_of(files.odt(), Kind.ODT)
    assert text.startswith(WHOLE + "\n\n| Commune ")
    assert "| Orléans  | 950 €      |" in text


def test_a_book_is_read_in_the_order_of_its_spine():
    first, second = f"# {files.TITLE}\n\n{files.SENTENCES}", f"## {files.SECTION}\n\nFin !"
    assert pages(files.epub(), Kind.EPUB) == [Page(first, None), Page(second, None)]


def test_a_broken_part_that_nobody_reads_does_no_harm():
    assert text_of(files.docx(more={"customXml/item1.xml": "<a><b></a>"}), Kind.DOCX).startswith(f"# {files.TITLE}")


# Harm


@pytest.mark.parametrize("kind", list(Kind))
def test_an_empty_file_is_refused(kind):
    assert refusal(b"", kind) == "The file is empty."


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.HTML, Kind.MARKDOWN])
def test_a_text_of_spaces_has_no_text(kind):
    assert refusal(b" \n\t\n", kind) == "The document has no text."


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Kind.PDF, "The file is not a PDF."),
        (Kind.PPTX, "The file is not a PPTX document."),
        (Kind.XLSX, "The file is not an XLSX document."),
        (Kind.ODT, "The file is not an ODT document."),
        (Kind.EPUB, "The file is not an EPUB document."),
    ],
)
def test_a_wrong_extension_is_told(kind, sentence):
    assert refusal(files.docx(), kind) == sentence


@pytest.mark.parametrize("document", [b"PK\x03\x04", b"Bonjour", files.docx()[:-40], files.packed({"a": "b"})])
def test_what_is_no_archive_is_no_office_document(document):
    assert refusal(document, Kind.DOCX) == "The file is not a DOCX document."


def encrypted(document: bytes) -> bytes:
    """Each entry of the archive says that it is encrypted."""
    marked = bytearray(document)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := marked.find(signature, at + 1)) >= 0:
            marked[at + flags] |= 1
    return bytes(marked)


@pytest.mark.parametrize(
    "document",
    [encrypted(files.docx()), b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le")],
    ids=["archive", "compound file"],
)
def test_a_protected_office_document_is_refused(document):
    assert refusal(document, Kind.DOCX) == "The document is protected by a password."


def test_an_archive_that_is_packed_in_an_unusual_way_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.docx())) as honest, zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as other:
        for name in honest.namelist():
            other.writestr(name, honest.read(name))
    assert refusal(buffer.getvalue(), Kind.DOCX) == "The file is not a DOCX document."


@pytest.mark.parametrize(("name", "is_locked"), [("OEBPS/text/b%20b.xhtml", True), ("OEBPS/font.otf", False)])
def test_a_book_whose_chapters_are_encrypted_is_refused(name, is_locked):
    with zipfile.ZipFile(io.BytesIO(files.epub())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["META-INF/encryption.xml"] = f"<e><CipherReference URI='{name}'/></e>".encode()
    if is_locked:
        assert refusal(files.packed(parts), Kind.EPUB) == "The document is encrypted."
    else:
        assert len(pages(files.packed(parts), Kind.EPUB)) == 2


@pytest.mark.parametrize(
    ("kind", "document", "sentence"),
    [
        (Kind.PPTX, files.pptx(), "The document has 2 slides; at most 1 are read."),
        (Kind.XLSX, files.xlsx(("A", []), ("B", [])), "The document has 2 sheets; at most 1 are read."),
    ],
)
def test_an_office_document_of_very_many_pages_is_refused(kind, document, sentence):
    with pytest.raises(Refused, match=sentence):
        list(document_reader.read(document, Options(kind, max_pages=1)))


def test_an_archive_that_unfolds_to_more_than_is_read_is_refused():
    document = files.docx(more={"word/media/zeros.bin": b"\0" * 100_000_000})
    assert len(document) < 150_000
    assert refusal(document, Kind.DOCX) == "The document has too much in it."


def test_an_archive_of_very_many_files_is_refused():
    document = files.docx(more={f"x/{number}": b"" for number in range(10_001)})
    assert refusal(document, Kind.DOCX) == "The document has too much in it."


def test_an_archive_whose_directory_lies_about_sizes_is_refused():
    document = bytearray(files.docx(more={"word/media/zeros.bin": b"\0" * 1_000_000}))
    entry = document.rindex(b"word/media/zeros.bin") - 46  # its place in the directory at the end
    document[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    assert refusal(bytes(document), Kind.DOCX) == "The file is not a DOCX document."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_that_unfold_to_gigabytes_are_refused(encoding):
    document = files.docx(files.BOMB_BODY, prolog=files.BOMB_PROLOG)
    with zipfile.ZipFile(io.BytesIO(document)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["word/document.xml"] = parts["word/document.xml"].decode().encode(encoding)
    assert refusal(files.packed(parts), Kind.DOCX) == "The file is not a DOCX document."


def test_entities_of_a_book_are_not_unfolded():
    with zipfile.ZipFile(io.BytesIO(files.epub())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["OEBPS/text/a.xhtml"] = f"{files.BOMB_PROLOG}<html><body>&h; Fin.</body></html>".encode()
    first = pages(files.packed(parts), Kind.EPUB)[0]
    assert first.markdown.endswith("Fin.")
    assert len(first.markdown) < 10_000


def test_a_spreadsheet_of_very_many_cells_is_refused():
    options = Options(Kind.XLSX, max_cells=100)
    full, wide = [("x",) * 51] * 2, [(None,) * 1000 + ("x",)] * 2
    assert [part.page for part in document_reader.read(files.xlsx(("A", full[:1])), options)] == [1]
    for rows in full, wide:
        with pytest.raises(Refused, match="The spreadsheet has more than 100 cells"):
            list(document_reader.read(files.xlsx(("A", rows)), options))


def test_no_nul_and_no_half_of_a_pair_leaves_it():
    assert text_of(b"a&#0;b&#xD800;c&#11;d", Kind.HTML).isprintable()
    assert text_of(b"\x1b[1m\x0c" + b"." * 500, Kind.TEXT) == "[1m" + "." * 500
    message = b"Subject: =?utf-8?q?a=00b?=\nFrom: a\nContent-Type: text/plain; charset=utf-8\n\n\xff\0"
    assert text_of(message, Kind.EMAIL).replace("\n", "").isprintable()


def test_a_document_with_too_much_in_it_is_refused():
    assert refusal(b"0123456789" * 5_000_001, Kind.TEXT) == "The document has too much in it."


def test_more_memory_than_there_is_ends_in_a_sentence(settings):
    settings.PARSING_MEMORY_BYTES = 100 * 1024**2
    assert refusal(b"x " * 15_000_000, Kind.TEXT) == "The document needs more memory than there is for it."


def test_a_reader_that_is_killed_ends_in_a_sentence():
    def kill(share):
        for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for pid in child.read_text().split():
                if parsing.READER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(Unreadable, match="Parsing document failed"):
        pages(SLOW, Kind.PDF, on_page=kill)


def test_a_reader_that_takes_too_long_is_given_up(settings):
    settings.PARSING_SECONDS = 1
    assert refusal(SLOW, Kind.PDF) == "Reading the document takes more than 1 seconds."


@pytest.mark.parametrize(
    "line", [b"nonsense", b"[1]", b'{"markdown": 1, "page": 1, "of": 1}', b'{"done": 1}', b"[" * 10_000]
)
def test_a_reader_that_was_taken_over_is_not_believed(monkeypatch, line):
    monkeypatch.setattr(parsing, "_lines", lambda file, kind: (said for said in [line]))
    assert refusal(b"x", Kind.TEXT) == "Parsing document failed."


# While it reads


def test_the_share_that_is_done_is_told_page_by_page():
    told: list[float] = []
    pages(text_pdf("Une.", "Deux.", "", "Quatre."), Kind.PDF, on_page=told.append)
    assert [share for share in told if share] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_whoever_waits_is_asked_each_second_and_may_end_it():
    class Gone(Exception):
        pass

    def leave(share):
        raise Gone

    began = time.monotonic()
    with pytest.raises(Gone):
        pages(SLOW, Kind.PDF, on_page=leave)
    assert time.monotonic() - began < 4
