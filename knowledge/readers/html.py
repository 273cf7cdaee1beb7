"""Web pages: their main text without menus, footers and scripts; nothing is fetched."""

import re
import warnings
from collections.abc import Iterator

import trafilatura
from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning
from markdownify import MarkdownConverter

from knowledge.readers import Options, Part
from knowledge.readers.text import decoded

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_:-]{1,40})""", re.IGNORECASE)
_NOT_TEXT = ("script", "style", "noscript", "template", "nav", "footer", "svg", "iframe", "head")
_CONVERTER = MarkdownConverter(
    heading_style="ATX",
    bullets="-",
    strip=["a", "img"],
    escape_asterisks=False,
    escape_underscores=False,
    table_infer_header=True,
)


def read(document: bytes, options: Options) -> Iterator[Part]:
    declared = _CHARSET.search(document[:4096])
    html = decoded(document, declared[1].decode() if declared else None)
    main = trafilatura.extract(
        html, output_format="markdown", include_comments=False, include_tables=True, favor_recall=True, fast=True
    )
    yield Part(main or markdown_of(html))


def markdown_of(html: str | bytes) -> str:
    """All text of a page's body, links as their words, pictures left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)  # chapters of books are XHTML
        soup = BeautifulSoup(html, "lxml")
    for element in soup(_NOT_TEXT):
        element.decompose()
    return str(_CONVERTER.convert_soup(soup.body or soup))
