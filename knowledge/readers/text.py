"""Plain text and Markdown, as they are; and how bytes become text."""

import codecs
import re
from collections.abc import Iterator

from knowledge.readers import Options, Part, Refused

MAX_CONTROLS = 0.01  # the share of control characters over which a file is no text
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read(document: bytes, options: Options) -> Iterator[Part]:
    yield Part(decoded(document))


def decoded(document: bytes, declared: str | None = None) -> str:
    """By its byte order mark, else UTF-8, else the encoding it declares, else Western European; raises Refused."""
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if document.startswith(mark)), None)
    encodings = [marked] if marked else ["utf-8", declared, "cp1252", "latin-1"]
    texts = (_tried(document, encoding) for encoding in encodings if encoding)
    text = next((text for text in texts if text is not None), None)
    if text is None or "\0" in text or len(_CONTROLS.findall(text)) > MAX_CONTROLS * len(text):
        raise Refused("The file is not text.")
    return text


def _tried(document: bytes, encoding: str) -> str | None:
    try:
        return document.decode(encoding)
    except (ValueError, LookupError):
        return None
