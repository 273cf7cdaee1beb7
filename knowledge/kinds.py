"""What a file is, by its name and by what its sender says it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Final


class Kind(StrEnum):
    """The kinds of files that are read; the value is the usual extension."""

    PDF = "pdf"
    HTML = "html"
    MARKDOWN = "md"
    TEXT = "txt"
    DOCX = "docx"
    PPTX = "pptx"
    XLSX = "xlsx"
    ODT = "odt"
    EPUB = "epub"
    EMAIL = "eml"


@dataclass(frozen=True, slots=True)
class _Marks:
    """`types` name the kind by themselves, `vague_types` only beside one of its extensions."""

    extensions: frozenset[str]
    types: frozenset[str]
    vague_types: frozenset[str] = frozenset()


UNKNOWN_TYPE: Final = "application/octet-stream"
_OFFICE = "application/vnd.openxmlformats-officedocument"
_ZIP = frozenset({"application/zip", "application/x-zip-compressed"})

_MARKS: Mapping[Kind, _Marks] = {
    Kind.PDF: _Marks(frozenset({".pdf"}), frozenset({"application/pdf"})),
    Kind.HTML: _Marks(
        frozenset({".html", ".htm"}), frozenset({"text/html", "application/html"}), frozenset({"text/plain"})
    ),
    Kind.MARKDOWN: _Marks(
        frozenset({".md", ".markdown"}),
        frozenset({"text/markdown", "text/x-markdown", "application/markdown"}),
        frozenset({"text/plain"}),
    ),
    Kind.TEXT: _Marks(frozenset({".txt", ".text"}), frozenset({"text/plain", "text/txt"})),
    Kind.DOCX: _Marks(frozenset({".docx"}), frozenset({f"{_OFFICE}.wordprocessingml.document"}), _ZIP),
    Kind.PPTX: _Marks(frozenset({".pptx"}), frozenset({f"{_OFFICE}.presentationml.presentation"}), _ZIP),
    Kind.XLSX: _Marks(frozenset({".xlsx"}), frozenset({f"{_OFFICE}.spreadsheetml.sheet"}), _ZIP),
    Kind.ODT: _Marks(frozenset({".odt"}), frozenset({"application/vnd.oasis.opendocument.text"}), _ZIP),
    Kind.EPUB: _Marks(frozenset({".epub"}), frozenset({"application/epub+zip"}), _ZIP),
    Kind.EMAIL: _Marks(frozenset({".eml"}), frozenset({"message/rfc822"})),
}


def kind_of(name: str, content_type: str) -> Kind | None:
    """The kind that a file's extension names, if its content type agrees; without a known one, the content type's.

    None where they contradict each other, or nothing fits. Parameters of the type (`; charset=`) say nothing here,
    nor does one that is empty or "application/octet-stream".
    """
    type = content_type.partition(";")[0].strip().lower() or UNKNOWN_TYPE
    extension = PurePath(name).suffix.lower()
    for kind, marks in _MARKS.items():
        if extension in marks.extensions:
            return kind if type == UNKNOWN_TYPE or type in marks.types | marks.vague_types else None
    return next((kind for kind, marks in _MARKS.items() if type in marks.types), None)
