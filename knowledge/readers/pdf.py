"""PDFs: the text layer with headings by the size of letters, ruled tables, and scanned pages by Tesseract."""

import io
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot, isfinite
from typing import Any

import pypdfium2

from inference import page_reader
from inference.page_reader import DPI, MAX_PIXELS_A_SIDE, PDFIUM, POINTS_AN_INCH
from knowledge.readers import Options, Part, Refused
from knowledge.readers.markdown import blocks, heading, table

SAMPLE_PAGES = 30  # that tell how large letters are in this document
HEADING_SIZE = 1.15  # times the size of most letters
MAX_HEADING_CHARACTERS = 200
MAX_LEVEL = 3
MIN_RULING_SEGMENTS, MAX_RULING_SEGMENTS = 12, 5000  # fewer are no table, more are a drawing
MAX_TABLE_CHARACTERS = 15_000  # of a page that is searched for tables
TABLE_PAGE_SECONDS, TABLES_SECONDS = 5.0, 20.0

_BROKEN = (pypdfium2.PdfiumError, ValueError, ArithmeticError, OSError)  # what odd pages end in
_BULLET = re.compile(r"^[•‣▪●◦∙·■□–—\uf0b7\uf0a7*-]\s+(?=\S)")
_LIKE_HEADING = re.compile(r"^#{1,6}\s")
_NUMBER = re.compile(r"^(?:\d{1,3}|[a-zA-Z])[.)]\s+\S")
_SENTENCE_END = (".", "!", "?", ":", ";", "»", ")")


def read(document: bytes, options: Options) -> Iterator[Part]:
    pdf = _opened(document)
    count = len(pdf)
    if count > options.max_pages:
        raise Refused(f"The document has {count} pages; at most {options.max_pages} are read.")
    sizes, tables, scans = Sizes.of(pdf), Tables(document), Scans(options.languages)
    failures, has_text = 0, False
    for index in range(count):
        try:
            markdown = _page(pdf, index, sizes, tables, scans)
        except _BROKEN:  # one bad page is no reason to lose the others
            failures, markdown = failures + 1, ""
        has_text = has_text or bool(markdown)
        yield Part(markdown, index + 1, count)
    if not has_text and scans.refusal:
        raise Refused(scans.refusal)
    if not has_text and failures:
        raise Refused("Parsing document failed.")


def _opened(document: bytes) -> pypdfium2.PdfDocument:
    if b"%PDF-" not in document[:1024]:
        raise Refused("The file is not a PDF.")
    try:
        return pypdfium2.PdfDocument(document)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == PDFIUM.FPDF_ERR_PASSWORD:
            raise Refused("The document is protected by a password.") from None
        raise Refused("Parsing document failed.") from None


def _page(pdf: pypdfium2.PdfDocument, index: int, sizes: "Sizes", tables: "Tables", scans: "Scans") -> str:
    page = pdf[index]
    try:
        lines = lines_of(page)
        if lines:
            return _markdown(lines, sizes, tables.on(page, index, lines))
        return scans.text_of(page)
    finally:
        page.close()


# Lines


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it stands on its page, in points from the lower left; `size` is that of its letters."""

    text: str
    size: float
    left: float
    right: float
    bottom: float
    top: float


def lines_of(page: pypdfium2.PdfPage) -> list[Line]:
    """The lines of the text layer, in PDFium's order; words broken by a hyphen at a line's end are whole again."""
    text_page = page.get_textpage()
    try:
        codes = [PDFIUM.FPDFText_GetUnicode(text_page, index) for index in range(text_page.count_chars())]
        found, start = [], 0
        for end in [index for index, code in enumerate(codes) if code == 0x0A] + [len(codes)]:
            line = _line(text_page, codes, start, end)
            if line is not None:
                found.append(line)
            start = end + 1
        return found
    finally:
        text_page.close()


def _line(text_page: Any, codes: Sequence[int], start: int, end: int) -> Line | None:
    shown = [index for index in range(start, end) if codes[index] > 0x20 and codes[index] != 0xA0]
    if not shown:
        return None
    units = b"".join(code.to_bytes(2, "little") for code in _utf16(codes[start:end]))
    text = " ".join(page_reader.clean(units.decode("utf-16-le", "replace").replace("\x02", "")).split())
    if not text:
        return None
    first, last = _box(text_page, shown[0]), _box(text_page, shown[-1])
    return Line(
        text,
        _size(text_page, shown[len(shown) // 2]),
        min(first.left, last.left),
        max(first.right, last.right),
        min(first.bottom, last.bottom),
        max(first.top, last.top),
    )


def _utf16(codes: Sequence[int]) -> Iterator[int]:
    """PDFium tells letters beyond 16 bits as one number or as a pair, by its version."""
    for code in codes:
        if code > 0xFFFF:
            yield 0xD800 + ((code - 0x10000) >> 10)
            yield 0xDC00 + ((code - 0x10000) & 0x3FF)
        else:
            yield code


def _box(text_page: Any, index: int) -> Any:
    box = PDFIUM.FS_RECTF()
    PDFIUM.FPDFText_GetLooseCharBox(text_page, index, box)
    return box


def _size(text_page: Any, index: int) -> float:
    """Of a letter as it is seen: fonts of one point are often scaled up."""
    matrix = PDFIUM.FS_MATRIX()
    PDFIUM.FPDFText_GetMatrix(text_page, index, matrix)
    size = float(PDFIUM.FPDFText_GetFontSize(text_page, index)) * (hypot(matrix.c, matrix.d) or 1.0)
    return size if isfinite(size) else 0.0


# Headings and paragraphs


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of most letters in a document, and the larger ones of its headings, the largest first."""

    body: float
    headings: tuple[float, ...]

    @classmethod
    def of(cls, pdf: pypdfium2.PdfDocument) -> "Sizes":
        characters: Counter[float] = Counter()
        for index in range(0, len(pdf), max(len(pdf) // SAMPLE_PAGES, 1)):
            try:
                page = pdf[index]
                for line in lines_of(page):
                    characters[_rounded(line.size)] += len(line.text)
                page.close()
            except _BROKEN:
                continue
        body = characters.most_common(1)[0][0] if characters else 0.0
        return cls(body, tuple(sorted((size for size in characters if size >= body * HEADING_SIZE), reverse=True)))

    def level_of(self, line: Line) -> int:
        """1 to MAX_LEVEL for a heading, 0 for other lines."""
        size = _rounded(line.size)
        if size < self.body * HEADING_SIZE or len(line.text) > MAX_HEADING_CHARACTERS:
            return 0
        if not any(letter.isalpha() for letter in line.text):
            return 0
        return min(1 + sum(other > size for other in self.headings), MAX_LEVEL)


def _rounded(size: float) -> float:
    return round(size * 2) / 2


@dataclass(slots=True)
class _Block:
    """What is put together of lines: a heading, an item or a paragraph."""

    level: int
    last: Line
    texts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = "".join(self.texts)
        if self.level:
            return heading(text, self.level)
        return f"\\{text}" if _LIKE_HEADING.match(text) else text

    def add(self, line: Line) -> None:
        former = self.texts[-1]
        if former.endswith("\xad"):
            self.texts[-1] = former[:-1]
        else:
            self.texts.append(" ")
        self.texts.append(line.text)
        self.last = line


def _markdown(lines: Sequence[Line], sizes: Sizes, tables: Sequence["Table"]) -> str:
    found: list[_Block | Table] = []
    apart = _largest_gap(lines)
    width = max(line.right for line in lines) - min(line.left for line in lines)
    right = max(line.right for line in lines)
    for line in lines:
        inside = next((one for one in tables if one.holds(line)), None)
        if inside is not None:
            if inside not in found:
                found.append(inside)
            continue
        level, former = sizes.level_of(line), found[-1] if found else None
        if isinstance(former, _Block) and former.level == level and _continues(former.last, line, apart, right, width):
            former.add(line)
        else:
            text = line.text if level else _BULLET.sub("- ", line.text)
            found.append(_Block(level, line, [text]))
    return blocks(str(block) for block in found)


def _continues(former: Line, line: Line, apart: float, right: float, width: float) -> bool:
    """Whether a line belongs to the paragraph of the one before."""
    if _BULLET.match(line.text) or _NUMBER.match(line.text):
        return False
    if abs(former.size - line.size) > 0.1 * former.size or not former.bottom > line.bottom:
        return False
    if former.bottom - line.top > min(apart, 1.2 * line.size):
        return False
    is_short = former.right < right - 0.25 * width
    return not (is_short and former.text.endswith(_SENTENCE_END))


def _largest_gap(lines: Sequence[Line]) -> float:
    """How far apart lines of one paragraph stand on this page, at most: a bit more than those close together do."""
    gaps = sorted(
        former.bottom - line.top
        for former, line in pairwise(lines)
        if former.bottom > line.bottom and abs(former.size - line.size) <= 0.1 * former.size
    )
    usual = gaps[len(gaps) // 4] if gaps else 0.0
    size = sorted(line.size for line in lines)[len(lines) // 2]
    return max(usual, 0.0) + 0.3 * size


# Tables


@dataclass(frozen=True, slots=True)
class Table:
    """A table in Markdown, and its place in points from the lower left."""

    markdown: str
    left: float
    right: float
    bottom: float
    top: float

    def __str__(self) -> str:
        return self.markdown

    def holds(self, line: Line) -> bool:
        across, up = (line.left + line.right) / 2, (line.bottom + line.top) / 2
        return self.left <= across <= self.right and self.bottom <= up <= self.top


class _Slow(BaseException):
    """A page's tables take too long; no library may take it for an error of its own."""


class Tables:
    """Ruled tables by pdfplumber. It is slow: asked only where there are rulings, and for so many seconds in all."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.seconds = TABLES_SECONDS
        self.plumber: Any = None

    def on(self, page: pypdfium2.PdfPage, index: int, lines: Sequence[Line]) -> list[Table]:
        if self.seconds <= 0 or not self._may_have_some(page, lines):
            return []
        began = time.monotonic()
        former = signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, min(TABLE_PAGE_SECONDS, self.seconds))
        try:
            return self._found(index)
        except (_Slow, MemoryError, RecursionError):
            return []
        except Exception:  # pdfminer raises what it likes; the page's text is there all the same
            return []
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
            self.seconds -= time.monotonic() - began

    def _may_have_some(self, page: pypdfium2.PdfPage, lines: Sequence[Line]) -> bool:
        width, height = page.get_size()
        if page.get_rotation() or tuple(page.get_mediabox()) != (0, 0, width, height):
            return False  # there the two libraries count from different corners
        if sum(len(line.text) for line in lines) > MAX_TABLE_CHARACTERS:
            return False
        segments = 0
        for path in page.get_objects(filter=[PDFIUM.FPDF_PAGEOBJ_PATH], max_depth=2):
            segments += PDFIUM.FPDFPath_CountSegments(path)
            if segments > MAX_RULING_SEGMENTS:
                return False
        return segments >= MIN_RULING_SEGMENTS

    def _found(self, index: int) -> list[Table]:
        if self.plumber is None:
            import pdfplumber  # few documents need it

            self.plumber = pdfplumber.open(io.BytesIO(self.document))
        page = self.plumber.pages[index]
        try:
            found = []
            for one in page.find_tables():
                rows = one.extract()
                if len(rows) > 1 and max(map(len, rows)) > 1 and (markdown := table(rows)):
                    left, top, right, bottom = one.bbox
                    found.append(Table(markdown, left, right, page.height - bottom, page.height - top))
            return found
        finally:
            page.close()


def _give_up(signal_number: int, frame: object) -> None:
    raise _Slow


# Scans


class Scans:
    """Pages that are pictures."""

    def __init__(self, languages: list[str]) -> None:
        self.languages = languages
        self.refusal = ""

    def text_of(self, page: pypdfium2.PdfPage) -> str:
        """Empty where nothing can be read; `refusal` then says why, if there is a reason."""
        if next(iter(page.get_objects(max_depth=1)), None) is None:
            return ""
        width, height = page.get_size()
        scale = min(DPI / POINTS_AN_INCH, MAX_PIXELS_A_SIDE / max(width, height, 1))
        picture = page.render(scale=scale, grayscale=True).to_pil()
        try:
            return page_reader.ocr(picture, round(scale * POINTS_AN_INCH), self.languages)
        except page_reader.Refused as refused:
            self.refusal = str(refused).replace(": name a model that reads it.", ".")
            return ""
