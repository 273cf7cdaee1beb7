"""What reads each kind of file: modules with a function `read(document, options)` that yields its parts.

They run in the child process of `knowledge.document_reader` and know nothing of Django.
"""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Options:
    """`kind` is a value of `kinds.Kind`; `languages` of scans are named as Tesseract names them."""

    kind: str
    languages: list[str] = field(default_factory=list)
    max_pages: int = 2000
    max_cells: int = 1_000_000


class Part(NamedTuple):
    """A page, slide, sheet or chapter: its number from 1 if it has one, and how many there are, if that is known."""

    markdown: str
    page: int | None = None
    of: int | None = None


class Refused(Exception):
    """The document cannot be read, for a reason its sender should know."""
