"""A file becomes Markdown, page by page, in a child process of its own."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from django.conf import settings
from pydantic_core import from_json

from knowledge.errors import Unreadable
from knowledge.kinds import Kind
from opengate import sandbox

READER: Final = "knowledge.document_reader"
MAX_OUTPUT_BYTES: Final = 256 * 1024 * 1024  # the reader's own bound is of characters, and lower
FAILED: Final = "Parsing document failed."


@dataclass(frozen=True, slots=True)
class Page:
    """`number`, from 1, of a page, slide or sheet; None where the format has none."""

    markdown: str
    number: int | None


def pages(file: BinaryIO, kind: Kind, *, on_page: Callable[[float], None] = lambda share: None) -> list[Page]:
    """The pages that have text, in order; raises Unreadable with the reason, for the one who sent the file.

    `on_page` hears the share that is done, from 0 to 1, with each page and about once a second besides. What it raises
    ends the reading.
    """
    found: list[Page] = []
    try:
        with closing(_answers(file, kind)) as answers:
            for share, page in answers:
                if page is not None and page.markdown:
                    found.append(page)
                on_page(share)
    except sandbox.OutOfTime:
        raise Unreadable(f"Reading the document takes more than {settings.PARSING_SECONDS} seconds.") from None
    except sandbox.TooMuch:
        raise Unreadable("The document has too much in it.") from None
    return found


def _answers(file: BinaryIO, kind: Kind) -> Generator[tuple[float, Page | None]]:
    """What the reader says, to its last word: the share that is done, and the page if there is a new one."""
    share, come = 0.0, 0
    with closing(_lines(file, kind)) as lines:
        for line in lines:
            if line is None:
                yield share, None
                continue
            answer = _understood(line)
            if "refused" in answer:
                raise Unreadable(str(answer["refused"]))
            if "done" in answer:
                yield 1.0, None
                return
            come += 1
            if answer["of"]:
                share = min(come / answer["of"], 1.0)
            yield share, Page(answer["markdown"], answer["page"])
    raise Unreadable(FAILED)  # it was killed, for its memory, or crashed


def _lines(file: BinaryIO, kind: Kind) -> Generator[bytes | None]:
    return sandbox.lines(
        READER,
        {"kind": kind, "languages": settings.OCR_LANGUAGES},
        file,
        seconds=settings.PARSING_SECONDS,
        memory_bytes=settings.PARSING_MEMORY_BYTES,
        max_bytes=MAX_OUTPUT_BYTES,
    )


def _understood(line: bytes) -> dict[str, Any]:
    """A stranger's file may have taken the reader over: it is believed as little as the file."""
    try:
        answer = from_json(line)
    except ValueError:
        raise Unreadable(FAILED) from None
    match answer:
        case {"refused": str()} | {"done": True}:
            return answer
        case {"markdown": str(), "page": int() | None, "of": int() | None}:
            return answer
    raise Unreadable(FAILED)
