"""Documents to chunks: pages in, pieces of text out, as the upload asked."""

import re
import signal
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

from knowledge.errors import Unreadable
from knowledge.parsing import Page

MAX_CHUNKS = 100_000
MAX_CHARACTERS = 20 * 1024 * 1024
SECONDS = 30  # a caller's regular expression may take for ever
PAGE_BREAK = "\n\n"
# The one preset that the library names and does not have.
PERL = [
    "\nsub ",
    "\npackage ",
    "\nuse ",
    "\nif ",
    "\nfor ",
    "\nforeach ",
    "\nwhile ",
    "\nunless ",
    "\n\n",
    "\n",
    " ",
    "",
]


class PresetSeparators(StrEnum):
    """Where texts of a kind are cut, the strongest boundary first."""

    CPP = "cpp"
    GO = "go"
    JAVA = "java"
    KOTLIN = "kotlin"
    JS = "js"
    TS = "ts"
    PHP = "php"
    PROTO = "proto"
    PYTHON = "python"
    R = "r"
    RST = "rst"
    RUBY = "ruby"
    RUST = "rust"
    SCALA = "scala"
    SWIFT = "swift"
    MARKDOWN = "markdown"
    LATEX = "latex"
    HTML = "html"
    SOL = "sol"
    CSHARP = "csharp"
    COBOL = "cobol"
    C = "c"
    LUA = "lua"
    PERL = "perl"
    HASKELL = "haskell"
    ELIXIR = "elixir"
    POWERSHELL = "powershell"
    VISUALBASIC6 = "visualbasic6"


@dataclass(frozen=True, slots=True)
class Options:
    """How a document is split; sizes in characters. Separators of one's own win over a preset."""

    disable_chunking: bool = False
    chunk_size: int = 2048
    chunk_min_size: int = 0
    chunk_overlap: int = 0
    is_separator_regex: bool = False
    separators: Sequence[str] = field(default_factory=list)
    preset_separators: str = PresetSeparators.MARKDOWN

    @classmethod
    def stored(cls, options: dict[str, Any]) -> Self:
        return cls(**options)

    def as_stored(self) -> dict[str, Any]:
        return asdict(self)

    def fault(self) -> str:
        """What is wrong with them; nothing when they can be followed."""
        if self.chunk_size < 1:
            return "chunk_size must be greater than 0."
        if self.chunk_overlap >= self.chunk_size:
            return "chunk_overlap must be smaller than chunk_size."
        for separator in self.separators if self.is_separator_regex else ():
            try:
                groups = re.compile(f"({separator})").groups - 1  # as the library uses it
            except (re.error, RecursionError, OverflowError):
                return f"separators must be regular expressions, and {separator[:100]!r} is none."
            if groups:
                return f"separators must have no groups that capture: {separator[:100]!r} has {groups}."
        return ""


class Piece(NamedTuple):
    """A text, and the pages it begins and ends on; None where there are no pages."""

    content: str
    page: int | None
    last_page: int | None


def split(pages: Sequence[Page], options: Options) -> list[Piece]:
    """The pieces, in order; none empty or shorter than `chunk_min_size`. Raises Unreadable for too many of them."""
    starts, length = [], 0
    for page in pages:
        starts.append(length)
        length += len(page.markdown) + len(PAGE_BREAK)
    text = PAGE_BREAK.join(page.markdown for page in pages)
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"The document has more than {MAX_CHARACTERS} characters.")
    found = []
    for start, content in _cut(text, options):
        if content.strip() and len(content) >= options.chunk_min_size:
            first, last = (pages[max(bisect_right(starts, at) - 1, 0)] for at in (start, start + len(content) - 1))
            found.append(Piece(content, first.number, last.number))
    return found


def _cut(text: str, options: Options) -> Iterator[tuple[int, str]]:
    """Pieces with the place in the text where each begins."""
    if options.disable_chunking:
        return iter([(0, text.strip())])
    if len(text) / max(options.chunk_size - options.chunk_overlap, 1) > MAX_CHUNKS:
        raise Unreadable(f"The document would have more than {MAX_CHUNKS} chunks: choose a larger chunk_size.")
    # Half a second to import, and only the worker splits.
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    if options.separators:
        separators, is_regex = list(options.separators), options.is_separator_regex
    elif options.preset_separators == PresetSeparators.PERL:
        separators, is_regex = PERL, False
    else:
        language = Language(options.preset_separators)
        separators, is_regex = RecursiveCharacterTextSplitter.get_separators_for_language(language), True
    splitter = RecursiveCharacterTextSplitter(
        separators=separators,
        is_separator_regex=is_regex,
        chunk_size=options.chunk_size,
        chunk_overlap=options.chunk_overlap,
    )
    with _within(SECONDS):
        contents = splitter.split_text(text)
    if len(contents) > MAX_CHUNKS:
        raise Unreadable(f"The document has more than {MAX_CHUNKS} chunks: choose a larger chunk_size.")
    return _placed(text, contents, options.chunk_overlap)


def _placed(text: str, contents: Sequence[str], overlap: int) -> Iterator[tuple[int, str]]:
    """Where each begins, looked for from where it can at the earliest: as the library does, without its objects."""
    start = length = 0
    for content in contents:
        start = text.find(content, max(start + length - overlap, 0))
        length = len(content)
        yield start, content


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Break off after so long, also in the middle of a regular expression; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(*_: Any) -> None:
        raise Unreadable(f"Splitting the document takes more than {seconds} seconds.")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
