"""PDFs and images to read, made on the spot."""

import io
from collections.abc import Sequence
from textwrap import wrap

import pypdfium2
from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

FRENCH = (
    "Le présent arrêté fixe les modalités selon lesquelles les collectivités territoriales déposent leurs demandes "
    "d'aide auprès de la préfecture. Chaque dossier comprend une délibération du conseil municipal, un plan de "
    "financement détaillé et un calendrier prévisionnel des travaux. Les pièces manquantes sont réclamées dans un "
    "délai de quinze jours ; passé ce délai, la demande est réputée complète. Le préfet notifie sa décision au maire "
    "avant la fin du deuxième trimestre. Lorsque l'opération concerne plusieurs communes, la demande est présentée "
    "par l'établissement public qui les réunit. Les crédits non consommés à la clôture de l'exercice sont reversés "
    "au fonds commun, sauf si le bénéficiaire justifie d'un empêchement sérieux. Où qu'il réside, l'élève garde son "
    "droit à la gratuité des transports."
)


def text_pdf(*pages: str, password: str | None = None) -> bytes:
    """A PDF with a text layer, a page for each text."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, encrypt=password)
    for text in pages:
        _write(canvas, text)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def picture_pdf(text: str) -> bytes:
    """A page of text with a small red picture in it."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4)
    _write(canvas, text)
    canvas.drawImage(ImageReader(Image.new("RGB", (40, 20), "red")), 72, 72, width=144, height=72)
    canvas.save()
    return buffer.getvalue()


def scan_of(*pages: str, dpi: int = 200) -> bytes:
    """A PDF of images of its pages: no text layer."""
    images = list(_rendered(text_pdf(*pages), dpi))
    buffer = io.BytesIO()
    images[0].save(buffer, "PDF", resolution=dpi, save_all=True, append_images=images[1:])
    return buffer.getvalue()


def image_of(text: str, format: str = "PNG", dpi: int = 200) -> bytes:
    """An image of a page."""
    buffer = io.BytesIO()
    next(iter(_rendered(text_pdf(text), dpi))).save(buffer, format)
    return buffer.getvalue()


def words_found(wanted: str, read: str) -> float:
    """The share of words of one text that the other one has, too, each as often."""
    left = _words(read)
    found = 0
    for word in _words(wanted):
        if word in left:
            left.remove(word)
            found += 1
    return found / len(_words(wanted))


def _words(text: str) -> list[str]:
    return text.replace("’", "'").replace("'", "' ").split()


def _write(canvas: Canvas, text: str) -> None:
    lines = canvas.beginText(72, A4[1] - 72)
    lines.setFont("Times-Roman", 12)
    for line in wrap(text, 80):
        lines.textLine(line)
    canvas.drawText(lines)


def _rendered(pdf: bytes, dpi: int) -> Sequence[Image.Image]:
    return [page.render(scale=dpi / 72, grayscale=True).to_pil() for page in pypdfium2.PdfDocument(pdf)]
