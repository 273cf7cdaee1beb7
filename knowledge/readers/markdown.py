"""Markdown as all readers write it."""

import re
from collections.abc import Iterable, Sequence

_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_FIXED_SPACE = re.compile("[\xa0\u2007\u202f]")
_ESCAPE = re.compile(r"\\([-_*+.!(){}\[\]<>~`])")
_TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """Without characters that no text has (NUL, halves of pairs), space at ends of lines, and rows of empty lines."""
    text = _UNWANTED.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _FIXED_SPACE.sub(" ", text)  # French typography is full of them, and whoever searches types none
    return _EMPTY_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip("\n")


def unescaped(text: str) -> str:
    """Without the backslashes some libraries put before every sign: nobody who searches types them."""
    return _ESCAPE.sub(r"\1", text)


def heading(text: str, level: int) -> str:
    """One line; empty for an empty text."""
    line = " ".join(text.split())
    return f"{'#' * min(max(level, 1), 6)} {line}" if line else ""


def item(text: str, level: int = 0, mark: str = "-") -> str:
    """A list's item, `level` deep; empty for an empty text."""
    line = " ".join(text.split())
    return f"{'  ' * level}{mark} {line}" if line else ""


def table(rows: Iterable[Sequence[object]]) -> str:
    """The first row is the head; empty rows and columns are left out, and so is a table with nothing in it."""
    lines = [[_cell(value) for value in row] for row in rows]
    width = max((len(line) for line in lines), default=0)
    lines = [line + [""] * (width - len(line)) for line in lines if any(line)]
    used = [column for column in range(width) if any(line[column] for line in lines)]
    if not used:
        return ""
    written = ["| " + " | ".join(line[column] for column in used) + " |" for line in lines]
    return "\n".join([written[0], "|" + " --- |" * len(used), *written[1:]])


def blocks(parts: Iterable[str]) -> str:
    """Paragraphs apart from each other, the items of a list together."""
    found: list[str] = []
    former = ""
    for part in parts:
        if not part.strip():
            continue
        if found:
            found.append("\n" if _is_item(part) and _is_item(former) else "\n\n")
        found.append(part)
        former = part
    return "".join(found)


def _is_item(text: str) -> bool:
    return re.match(r"\s*(?:-|\d+\.) ", text) is not None and "\n" not in text


def _cell(value: object) -> str:
    return " ".join(str(value if value is not None else "").replace("|", "\\|").split())
