"""OpenDocument texts."""

import io
import re
from collections.abc import Iterator

from odfdo import Document

from knowledge.readers import Options, Part
from knowledge.readers.archive import opened
from knowledge.readers.markdown import unescaped

CONTENT = r"^application/vnd\.oasis\.opendocument\.text"
_ITEM = re.compile(r"^( *) -  ", re.MULTILINE)


def read(document: bytes, options: Options) -> Iterator[Part]:
    opened(document, "ODT", "mimetype", CONTENT)
    yield Part(_ITEM.sub(r"\1- ", unescaped(str(Document(io.BytesIO(document)).to_markdown()))))
