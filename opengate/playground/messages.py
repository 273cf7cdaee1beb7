"""Texts of templates for Babel, which reads Python: `make messages` brings them into the catalogue."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO

from django.utils.translation.template import templatize


def of_template(file: BinaryIO, keywords: Any, comment_tags: Any, options: Any) -> Iterator[Any]:
    """What a template translates, as Babel's own extractors tell it."""
    from babel.messages.extract import extract_python  # only where the catalogue is made

    lines = templatize(file.read().decode()).splitlines()
    source = "\n".join(line.strip() for line in lines)
    return extract_python(BytesIO(source.encode()), keywords, comment_tags, options)
