"""Reads one document from standard input and writes its pages to standard output; a program of its own.

A PDF's text layer is taken as it is, by PDFium; pages without one, and images, are read by Tesseract where it is
installed. It runs apart, because documents come from strangers and both are native code: `inference.local` starts it
in a sandbox, with limits of time and memory.

    python -m inference.page_reader OPTIONS < document     OPTIONS: JSON, see `Options`
"""

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pypdfium2
import pypdfium2.raw
from PIL import Image

PDFIUM: Any = pypdfium2.raw
DPI = 200
POINTS_AN_INCH = 72
MAX_PIXELS_A_SIDE = 5000
MAX_PAGES = 1000
MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGES_BYTES = 32 * 1024 * 1024  # of all images that are sent back
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
SCAN_SHARE = 0.8  # an image over so much of its page is a scan of it, and no picture in it


@dataclass(frozen=True)
class Options:
    """`pages` from 0, None for all; `languages` as Tesseract names them."""

    languages: list[str]
    pages: list[int] | None = None
    force_ocr: bool = False
    only_pdf: bool = False
    with_images: bool = False
    image_limit: int | None = None
    image_min_size: int | None = None


class Refused(Exception):
    """The document cannot be read, for a reason its sender should know."""


class Images:
    """Pictures in pages, numbered through the document, as many and as large as wanted."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.count = 0
        self.bytes = 0

    def of(self, page: pypdfium2.PdfPage, scale: float) -> list[dict[str, Any]]:
        width, height = page.get_size()
        found = []
        for item in page.get_objects(filter=[PDFIUM.FPDF_PAGEOBJ_IMAGE], max_depth=4):
            if self.options.image_limit is not None and self.count >= self.options.image_limit:
                break
            left, bottom, right, top = item.get_bounds()
            if (right - left) * (top - bottom) > SCAN_SHARE * width * height:
                continue
            if min(right - left, top - bottom) * scale < max(self.options.image_min_size or 1, 1):
                continue
            found.append(
                {
                    "id": f"img-{self.count}.jpeg",
                    "top_left_x": round(left * scale),
                    "top_left_y": round((height - top) * scale),
                    "bottom_right_x": round(right * scale),
                    "bottom_right_y": round((height - bottom) * scale),
                    "image_base64": self._encoded(item) if self.options.with_images else None,
                    "image_annotation": None,
                }
            )
            self.count += 1
        return found

    def _encoded(self, item: Any) -> str | None:
        if self.bytes > MAX_IMAGES_BYTES:
            return None
        try:
            picture = item.get_bitmap().to_pil().convert("RGB")
        except pypdfium2.PdfiumError:
            return None
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        self.bytes += buffer.tell()
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read(document: bytes, options: Options) -> list[dict[str, Any]]:
    """The document's pages; raises Refused."""
    if b"%PDF-" in document[:1024]:
        return list(_pdf(document, options))
    if options.only_pdf:
        raise Refused("File must be a pdf file.")
    return list(_image(document, options))


def _pdf(document: bytes, options: Options) -> Iterator[dict[str, Any]]:
    try:
        pdf = pypdfium2.PdfDocument(document)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == PDFIUM.FPDF_ERR_PASSWORD:
            raise Refused("The document is protected by a password.") from None
        raise Refused("Parsing document failed.") from None
    if len(pdf) > MAX_PAGES and options.pages is None:
        raise Refused(f"The document has {len(pdf)} pages; ask for {MAX_PAGES} at a time at most.")
    images = Images(options)
    for index in range(len(pdf)) if options.pages is None else options.pages:
        if index >= len(pdf):
            raise Refused(f"There is no page {index}: the document has {len(pdf)}, counted from 0.")
        try:
            yield _pdf_page(pdf[index], index, options, images)
        except pypdfium2.PdfiumError:
            raise Refused("Parsing document failed.") from None


def _pdf_page(page: pypdfium2.PdfPage, index: int, options: Options, images: Images) -> dict[str, Any]:
    width, height = page.get_size()
    scale = min(DPI / POINTS_AN_INCH, MAX_PIXELS_A_SIDE / max(width, height, 1))
    text = "" if options.force_ocr else clean(page.get_textpage().get_text_range())
    if not text and next(iter(page.get_objects(max_depth=1)), None) is not None:
        text = ocr(page.render(scale=scale, grayscale=True).to_pil(), round(scale * POINTS_AN_INCH), options.languages)
    found = images.of(page, scale)
    references = "".join(f"\n\n![{image['id']}]({image['id']})" for image in found)
    return _page(index, (text + references).strip(), found, (round(width * scale), round(height * scale)), scale)


def _image(document: bytes, options: Options) -> Iterator[dict[str, Any]]:
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    try:
        opened = Image.open(io.BytesIO(document), formats=FORMATS)
        if opened.width * opened.height > MAX_IMAGE_PIXELS:
            raise Refused("The image is too large.")
        picture = opened.convert("L")
    except Image.DecompressionBombError:
        raise Refused("The image is too large.") from None
    except (OSError, ValueError, SyntaxError, EOFError):
        raise Refused("Unsupported file type.") from None
    if options.pages not in (None, [0]):
        raise Refused("There is no such page: the document has 1, counted from 0.")
    picture.thumbnail((MAX_PIXELS_A_SIDE, MAX_PIXELS_A_SIDE))
    yield _page(0, ocr(picture, DPI, options.languages), [], picture.size, DPI / POINTS_AN_INCH)


def _page(
    index: int, markdown: str, images: list[dict[str, Any]], size: tuple[int, int], scale: float
) -> dict[str, Any]:
    dimensions = {"dpi": round(scale * POINTS_AN_INCH), "height": size[1], "width": size[0]}
    return {"index": index, "markdown": markdown, "images": images, "dimensions": dimensions}


def clean(text: str) -> str:
    """Lines without what PDFium leaves in: carriage returns, and marks of hyphens at their end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe\n", "").replace("\ufffe", "")
    return "\n".join(line.rstrip() for line in lines.replace("\x00", "").split("\n")).strip()


def ocr(picture: Image.Image, dpi: int, languages: list[str]) -> str:
    """What Tesseract reads in it; raises Refused where there is none."""
    program = shutil.which("tesseract")
    if program is None:
        raise Refused("The document is a scan, and no OCR engine is installed here: name a model that reads it.")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    command = [program, "stdin", "stdout", "-l", "+".join(_installed(program, languages)), "--dpi", str(max(dpi, 70))]
    ran = subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=False)
    if ran.returncode != 0:
        raise Refused("Parsing document failed.")
    return clean(ran.stdout.decode("utf-8", "replace").replace("\f", ""))


def _installed(program: str, wanted: list[str]) -> list[str]:
    """The languages wanted that Tesseract has; English where it has none of them."""
    listed = subprocess.run([program, "--list-langs"], capture_output=True, check=False).stdout.decode().split()
    return [language for language in wanted if language in listed] or ["eng"]


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    try:
        answer: dict[str, Any] = {"pages": read(sys.stdin.buffer.read(), options)}
    except Refused as refused:
        answer = {"refused": str(refused)}
    except MemoryError:
        answer = {"refused": "The document needs more memory than there is for it."}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
