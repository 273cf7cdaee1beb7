"""Files to read, made on the spot: honest ones, and some that mean harm."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from xml.sax.saxutils import escape

from odfdo import Document, Header, List, Paragraph, Table
from openpyxl.workbook.workbook import Workbook
from pptx import Presentation
from pptx.util import Cm
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph as PdfParagraph
from reportlab.platypus import SimpleDocTemplate
from reportlab.platypus import Table as PdfTable
from reportlab.platypus.flowables import ListFlowable, ListItem, PageBreak

TITLE = "Arrêté préfectoral"
SECTION = "Où déposer sa demande"
SENTENCES = (
    "L'élève dépose sa demande à la préfecture, où qu'il réside. Chaque dossier comprend une délibération du conseil "
    "municipal, un plan de financement détaillé et un calendrier prévisionnel des travaux. Les pièces manquantes sont "
    "réclamées dans un délai de quinze jours."
)
ITEMS = ("une pièce d'identité", "un justificatif de moins de trois mois")
ROWS = (("Commune", "Aide reçue"), ("Besançon", "1 200 €"), ("Orléans", "950 €"))
MARKDOWN_TABLE = "| Commune | Aide reçue |\n| --- | --- |\n| Besançon | 1 200 € |\n| Orléans | 950 € |"
HTML = (
    f"<h1>{TITLE}</h1><p>{SENTENCES}</p><h2>{SECTION}</h2><ul>"
    + "".join(f"<li>{item}</li>" for item in ITEMS)
    + "</ul><table>"
    + "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in ROWS)
    + "</table>"
)


def pdf() -> bytes:
    """Two pages: a title, a paragraph, and a section with a list; then a ruled table between two sentences."""
    styles = getSampleStyleSheet()
    grid = PdfTable(ROWS, style=[("GRID", (0, 0), (-1, -1), 0.5, colors.black)])
    story = [
        PdfParagraph(TITLE, styles["Title"]),
        PdfParagraph(SENTENCES, styles["BodyText"]),
        PdfParagraph(SECTION, styles["Heading2"]),
        ListFlowable([ListItem(PdfParagraph(item, styles["BodyText"])) for item in ITEMS], bulletType="bullet"),
        PageBreak(),
        PdfParagraph("Avant le tableau.", styles["BodyText"]),
        grid,
        PdfParagraph("Après le tableau.", styles["BodyText"]),
    ]
    buffer = io.BytesIO()
    SimpleDocTemplate(buffer, pagesize=A4).build(story)
    return buffer.getvalue()


def raw_pdf(content: bytes, *, box: str = "0 0 595 842", pages: int = 1) -> bytes:
    """A page with this content, packed; or the same page many times."""
    packed = zlib.compress(content, 9)
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{'3 0 R ' * pages}] /Count {pages} >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, item.encode() if isinstance(item, str) else item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        body
        + b"xref\n0 6\n0000000000 65535 f \n"
        + table
        + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)
    )


def html() -> bytes:
    """A page with a menu, a footer and a script around its text."""
    return (
        "<!doctype html><html lang='fr'><head><meta charset='utf-8'><title>Site</title><style>p { color: red }</style>"
        "<script>alert('script')</script></head><body><nav><a href='/'>Menu principal</a></nav>"
        f"<main><article>{HTML}</article></main><footer>Mentions légales</footer></body></html>"
    ).encode()


def packed(parts: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(body: str | None = None, *, prolog: str = "", more: dict[str, str | bytes] | None = None) -> bytes:
    """A title, a paragraph, a section with a list and a table, as Word writes them; or what is given as `body`."""
    if body is None:
        table = "".join("<w:tr>" + "".join(f"<w:tc>{_word(cell)}</w:tc>" for cell in row) + "</w:tr>" for row in ROWS)
        body = _word(TITLE, '<w:pStyle w:val="Title"/>') + _word(SENTENCES)
        body += _word(SECTION, '<w:pStyle w:val="Heading2"/>')
        numbering = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
        body += "".join(_word(item, numbering) for item in ITEMS) + f"<w:tbl>{table}</w:tbl>"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{_WORD}.document.main+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="r1" Type="{_RELATIONS}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="r1" Type="{_RELATIONS}/styles" Target="styles.xml"/>'
        f'<Relationship Id="r2" Type="{_RELATIONS}/numbering" Target="numbering.xml"/></Relationships>',
        "word/styles.xml": f'<w:styles xmlns:w="{_W}">'
        '<w:style w:type="paragraph" w:styleId="Title"><w:name w:val="Title"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Heading2"><w:name w:val="heading 2"/></w:style></w:styles>',
        "word/numbering.xml": f'<w:numbering xmlns:w="{_W}"><w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0">'
        '<w:numFmt w:val="bullet"/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
        "</w:numbering>",
        "word/document.xml": f'{prolog}<w:document xmlns:w="{_W}"><w:body>{body}</w:body></w:document>',
    }
    return packed({**parts, **(more or {})})


def _word(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


BOMB_PROLOG = (
    '<?xml version="1.0"?><!DOCTYPE bomb [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {name} "{f"&{former};" * 20}">' for former, name in zip("abcdefg", "bcdefgh", strict=True))
    + "]>"
)
BOMB_BODY = "<w:p><w:r><w:t>&h;</w:t></w:r></w:p>"


def pptx() -> bytes:
    """Two slides: a title with a list and notes; a table."""
    presentation = Presentation()
    first = presentation.slides.add_slide(presentation.slide_layouts[1])
    first.shapes.title.text = TITLE
    first.placeholders[1].text = "\n".join(ITEMS)
    first.notes_slide.notes_text_frame.text = "À dire de vive voix."
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    second.shapes.title.text = SECTION
    grid = second.shapes.add_table(3, 2, Cm(2), Cm(5), Cm(20), Cm(5)).table
    for row, values in enumerate(ROWS):
        for column, value in enumerate(values):
            grid.cell(row, column).text = value
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def xlsx(*sheets: tuple[str, Sequence[tuple[object, ...]]]) -> bytes:
    workbook = Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets:
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()


def odt() -> bytes:
    document = Document("text")
    document.body.clear()
    table = Table("Aides", width=2, height=3)
    for row, values in enumerate(ROWS):
        for column, value in enumerate(values):
            table.set_value((column, row), value)
    for element in (Header(1, TITLE), Paragraph(SENTENCES), Header(2, SECTION), List(list(ITEMS)), table):
        document.body.append(element)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def epub() -> bytes:
    """Two chapters, kept in another order than they are read."""
    page = '<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'
    return packed(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
            "OEBPS/content.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
            '<item id="b" href="text/b%20b.xhtml" media-type="application/xhtml+xml"/>'
            '<item id="a" href="text/a.xhtml" media-type="application/xhtml+xml"/></manifest>'
            '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
            "OEBPS/text/b b.xhtml": page.format(f"<h2>{SECTION}</h2><p>Fin&nbsp;!</p>"),
            "OEBPS/text/a.xhtml": page.format(f"<h1>{TITLE}</h1><p>{SENTENCES}</p>"),
        }
    )


def eml(*, only_html: bool = False) -> bytes:
    message = EmailMessage()
    message["Subject"] = TITLE
    message["From"] = "Zoé <zoe@example.org>"
    message["To"] = "mairie@example.org"
    message["Date"] = "Mon, 02 Mar 2026 10:00:00 +0100"
    if only_html:
        message.set_content(f"<p>{SENTENCES}</p>", subtype="html")
    else:
        message.set_content(SENTENCES)
        message.add_alternative("<p>en HTML</p>", subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="délibération.pdf")
    return message.as_bytes()
