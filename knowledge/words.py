"""Texts to words as Postgres knows them, of which each is asked for once: its parser takes longer than all the rest.

Between two white spaces lies a *piece*, and what Postgres makes of it does not depend on what stands around, tags
aside. So a book of pieces, kept for each language, gives the `tsvector` of `to_tsvector` in a fraction of the time.
At the very beginning of a text marks are read differently from marks behind a white space: such a piece is another.
What a book cannot vouch for, Postgres reads itself: texts with tags, and those of more words than a `tsvector` counts.
"""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

from django.db import connection, transaction

MAX_PIECES = 200_000  # that a book keeps: about 60 MB
MAX_PIECE_BYTES = 1_000
TEXTS = 500  # cut at a time: a long document is many millions of pieces
MAX_PLACES = 16_000  # a tsvector counts up to 16,383
MAX_OCCURRENCES = 200  # of a word in a text; a tsvector keeps 255
SENTINEL = "opengatesentinel"  # behind a piece, it shows how many places the piece takes
BEGINNING = "\n"  # before a piece that a text begins with
TAG = re.compile(rb"<[^\s\d=]")
# With one such mark before it and two behind, a word of ASCII letters is the same word.
PLAIN = re.compile(rb"[(\"']?([A-Za-z]+)[)\"']?[.,;:!?]?")

# Parts of a binary tsvector: a place; how many there are; both for a word that occurs once.
_PLACE = [struct.pack(">H", place) for place in range(MAX_PLACES + 1)]
_COUNT = _PLACE[: MAX_OCCURRENCES + 1]
_ONCE = [_COUNT[1] + place for place in _PLACE]


class Reading(NamedTuple):
    """How many words a text has, and its tsvector, as Postgres takes it in binary."""

    length: int
    lexemes: bytes


# What Postgres makes of a piece. Most are one lexeme, which ends in a zero as in a binary tsvector, or a stop word,
# that is, no bytes; others are several, each with a place from 1 on, and how many places these take in all.
_Piece = bytes | tuple[Sequence[tuple[bytes, int]], int]
END = b"\0"


class _Book:
    """What is known of a language: pieces, and words that its vocabulary had in an edition."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._pieces: dict[bytes, _Piece] = {}
        self._edition: object = None
        self._learned: set[bytes] = set()
        (self._sentinel,) = {lexeme for _, lexeme, _ in self._asked([""])}

    def read(self, texts: Sequence[str]) -> tuple[list[Reading], set[bytes]]:
        """The words of each text, in order, and the lexemes of all, each with its end."""
        readings, seen = [], set[bytes]()
        for start in range(0, len(texts), TEXTS):
            raw = [text.encode() for text in texts[start : start + TEXTS]]
            cut = [None if TAG.search(text) else _pieces(text) for text in raw]
            known = self._knowing(set().union(*(pieces for pieces in cut if pieces)))
            for text, pieces in zip(raw, cut, strict=True):
                reading = None if pieces is None else _reading(pieces, known, seen)
                readings.append(reading or self._read_by_postgres(text, seen))
        return readings, seen

    def learn(self, lexemes: set[bytes]) -> None:
        """Add words to the vocabulary, in this transaction: no other forgets words until it ends."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT knowledge_vocabulary_kept(%s)", [self.language])
            (edition,) = cursor.fetchone()
            if edition != self._edition or len(self._learned) > MAX_PIECES:
                self._edition, self._learned = edition, set()
            new = lexemes - self._learned
            if not new:
                return
            cursor.execute(
                """
                INSERT INTO knowledge_word (language, word)
                SELECT %s, word FROM string_to_table(%s, ' ') AS word WHERE word ~ '^[[:alpha:]]{3,40}$' ORDER BY word
                ON CONFLICT DO NOTHING
                """,
                [self.language, " ".join(lexeme[:-1].decode() for lexeme in new)],  # those of several words are none
            )
        learned = self._learned
        transaction.on_commit(lambda: learned.update(new))

    def _knowing(self, pieces: set[bytes]) -> Mapping[bytes, _Piece]:
        """What is known of pieces, once the others were asked for; those that are too long stay unknown."""
        if len(self._pieces) > MAX_PIECES:
            self._pieces = {}
        known = self._pieces
        missing = pieces.difference(known)
        if not missing:
            return known
        plain = {piece: match[1].lower() for piece in missing if (match := PLAIN.fullmatch(piece))}
        asked = {plain.get(piece, piece) for piece in missing}
        asked = {piece for piece in asked if piece not in known and len(piece) <= MAX_PIECE_BYTES}
        if asked:
            known.update(self._found(list(asked)))
        for piece, word in plain.items():
            if len(piece) <= MAX_PIECE_BYTES:
                known[piece] = known[word]
        return known

    def _found(self, pieces: list[bytes]) -> dict[bytes, _Piece]:
        lexemes: list[list[tuple[bytes, int]]] = [[] for _ in pieces]
        last = [0] * len(pieces)
        for number, lexeme, places in self._asked([piece.decode() for piece in pieces]):
            if lexeme == self._sentinel:
                last[number] = places[-1]
            lexemes[number] += [(lexeme, place) for place in places]
        found: dict[bytes, _Piece] = {}
        for piece, pairs, end in zip(pieces, lexemes, last, strict=True):
            own = [pair for pair in pairs if pair != (self._sentinel, end)]
            is_simple = end == 2 and len(own) <= 1
            found[piece] = (own[0][0] if own else b"") if is_simple else (own, end - 1)
        return found

    def _asked(self, pieces: list[str]) -> list[tuple[int, bytes, list[int]]]:
        """Number of the piece, lexeme, places: each piece behind a space, the sentinel behind it."""
        texts = (piece[1:] if piece.startswith(BEGINNING) else f" {piece}" for piece in pieces)
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT number - 1, lexeme, positions
                FROM string_to_table(%s, %s) WITH ORDINALITY AS piece (text, number),
                  unnest(to_tsvector(%s::regconfig, text || %s))
                """,
                [BEGINNING.join(texts), BEGINNING, f"opengate_{self.language}", f" {SENTINEL}"],
            )
            return [(number, lexeme.encode() + END, places) for number, lexeme, places in cursor.fetchall()]

    def _read_by_postgres(self, text: bytes, seen: set[bytes]) -> Reading:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT (SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest(lexemes)), tsvectorsend(lexemes),
                  tsvector_to_array(lexemes)
                FROM (SELECT knowledge_lexemes(%s, %s) AS lexemes OFFSET 0) AS read
                """,
                [self.language, text.decode()],
            )
            length, lexemes, words = cursor.fetchone()
        seen.update(word.encode() + END for word in words)
        return Reading(int(length), bytes(lexemes))


def _pieces(text: bytes) -> list[bytes] | None:
    """Cut at ASCII's white space, of which Postgres thinks the same; None for a text that has too many of them."""
    pieces = text.split()
    if len(pieces) > MAX_PLACES:
        return None
    if pieces and not text[:1].isspace() and not text[:1].isalnum():
        pieces[0] = BEGINNING.encode() + pieces[0]
    return pieces


def _reading(pieces: Iterable[bytes], known: Mapping[bytes, _Piece], seen: set[bytes]) -> Reading | None:
    """The words of a text that is cut into pieces, added to those `seen`; None where that is Postgres' to say."""
    words: dict[bytes, bytes] = {}  # by lexeme, how many places it has, and which
    place = length = 0
    try:
        for found in map(known.get, pieces):
            if isinstance(found, bytes):
                place += 1
                if found:
                    length += 1
                    words[found] = _with(words[found], place) if found in words else _ONCE[place]
            elif found is None:
                return None
            else:
                lexemes, taken = found
                for lexeme, at in lexemes:
                    at += place
                    words[lexeme] = _with(words[lexeme], at) if lexeme in words else _ONCE[at]
                length += len(lexemes)
                place += taken
    except IndexError:  # too many places, or of one word
        return None
    seen.update(words)
    return Reading(length, struct.pack(">i", len(words)) + b"".join(chain.from_iterable(words.items())))


def _with(places: bytes, place: int) -> bytes:
    return _COUNT[len(places) // 2] + places[2:] + _PLACE[place]


@cache
def _book(language: str) -> _Book:
    return _Book(language)


def read(language: str, texts: Sequence[str]) -> tuple[list[Reading], set[bytes]]:
    """The words of each text, in order, and the lexemes of all."""
    return _book(language).read(texts)


def learn(language: str, lexemes: set[bytes]) -> None:
    """Add those that are words to the language's vocabulary, in this transaction."""
    _book(language).learn(lexemes)
