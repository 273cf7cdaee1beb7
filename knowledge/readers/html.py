"""Web pages: their main text without menus, footers and scripts; nothing is fetched."""

import re
import warnings
from collections.abc import Iterator

from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning
from markdownify import MarkdownConverter

from knowledge.readers import Options, Part
from knowledge.readers.markdown import clean, unescaped
from knowledge.readers.text import decoded

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_:-]{1,40})""", re.IGNORECASE)
SHORT_CHARACTERS, LONG_CHARACTERS = 2000, 5_000_000  # shorter and longer pages are taken as they are
MAIN_SHARE = 0.25  # of a page's text that its main text is at least
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_TABLE = re.compile(r"^\|.*\|\n(?:\|.*\|(?:\n|$))+", re.MULTILINE)
_RULE = re.compile(r"\|(?: ?:?-+:? ?\|)+")
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
    whole = markdown_of(html)
    yield Part(_main(html, whole) if len(whole) >= SHORT_CHARACTERS and len(html) <= LONG_CHARACTERS else whole)


def _main(html: str, whole: str) -> str:
    """The main text if it is found: not the whole page, but with its headings and no mere remnant."""
    import trafilatura  # most files need none of it

    found = trafilatura.extract(
        html, output_format="markdown", include_comments=False, include_tables=True, favor_recall=True
    )
    if not found or len(found) < MAIN_SHARE * len(whole):
        return whole
    if _HEADING.search(whole) and not _HEADING.search(found):
        return whole
    return _TABLE.sub(_ruled, unescaped(clean(found)))


def _ruled(match: re.Match[str]) -> str:
    """A table whose first row is followed by the rule that makes it one."""
    first, second, *_ = lines = match[0].split("\n")
    if _RULE.fullmatch(second):
        return match[0]
    return "\n".join([first, "|" + " --- |" * (first.count("|") - 1), *lines[1:]])


def markdown_of(html: str | bytes) -> str:
    """All text of a page's body, links as their words, pictures left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)  # chapters of books are XHTML
        soup = BeautifulSoup(html, "lxml")
    for element in soup(_NOT_TEXT):
        element.decompose()
    try:
        return str(_CONVERTER.convert_soup(soup.body or soup))
    except RecursionError:  # elements in elements, by the thousand
        return soup.get_text("\n")
