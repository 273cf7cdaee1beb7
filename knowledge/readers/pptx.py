"""Presentations: of each slide its title, texts, tables and notes."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

from pptx import Presentation
from pptx.enum.shapes import PP_PLACEHOLDER

from knowledge.readers import Options, Part, Refused
from knowledge.readers.archive import opened
from knowledge.readers.markdown import blocks, heading, item, table

CONTENT = r"presentationml\.(?:presentation|slideshow|template)\.main\+xml|ms-powerpoint\.\w+\.macroEnabled"
MAX_DEPTH = 20  # of groups in groups
_LISTS = (PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT)


def read(document: bytes, options: Options) -> Iterator[Part]:
    opened(document, "PPTX", "[Content_Types].xml", CONTENT)
    slides = Presentation(io.BytesIO(document)).slides
    count = len(slides)
    if count > options.max_pages:
        raise Refused(f"The document has {count} slides; at most {options.max_pages} are read.")
    for number, slide in enumerate(slides, 1):
        yield Part(blocks(_slide(slide)), number, count)


def _slide(slide: Any) -> Iterator[str]:
    title = slide.shapes.title
    if title is not None:
        yield heading(title.text_frame.text, 1)
    yield from _shapes((shape for shape in slide.shapes if title is None or shape.shape_id != title.shape_id), 0)
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None and frame.text.strip():
        yield f"Notes: {frame.text}"


def _shapes(shapes: Iterable[Any], depth: int) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes") and depth < MAX_DEPTH:
            yield from _shapes(shape.shapes, depth + 1)
        elif getattr(shape, "has_table", False):
            yield table([cell.text for cell in row.cells] for row in shape.table.rows)
        elif getattr(shape, "has_text_frame", False):
            is_list = shape.is_placeholder and shape.placeholder_format.type in _LISTS
            for paragraph in shape.text_frame.paragraphs:
                yield item(paragraph.text, paragraph.level) if is_list else " ".join(paragraph.text.split())
