"""Words that are read from a book of pieces are those that Postgres itself reads."""

import random
from pathlib import Path

import pytest
from django.db import connection, transaction

from knowledge import words
from knowledge.models import Document, Word
from knowledge.vectors import copy_rows

ODD = [
    *("", " ", "..", ".. meta:: x", "yet.. raise", "(word). 'Word', \"word\"! word)?", "it's o'clock rock'n'roll"),
    *("see https://www.example.org/a/b?c=d&e=f#g, or ../a/b.txt, or a@b.example.", "1.5 -1 +2 1e5 -07 v1.2.3 0x1F 3rd"),
    *(
        "well-known semi-public - dash-\nbroken /usr/bin &amp; &nbsp; a_b",
        "<b>bold</b> <_x y> a<b 1 < 2 <5 <= <!-- no -->",
    ),
    *(
        "L'élève à l'œuvre, déjà vu: Straße, Ångström, naïve\u00a0café\u2009\u3000x\u2028y",
        "食堂は正午に開きます。 العربية",
    ),
    *("same " * 300, "x" * 3000 + " end", " ".join(f"w{number}" for number in range(17_000)), "a\tb\x0bc\x0cd\re"),
]
PIECES = [*" .,;:!?()'\"-/@<>&=+%#_éß中", "word", "Words", "the", "http://", "www.", "1", ".5", "e.g.", "\n", "  "]


def texts() -> list[str]:
    chance = random.Random(5)
    mixed = ["".join(chance.choices(PIECES, k=chance.randint(1, 60))) for _ in range(200)]
    pages = [path.read_text() for path in sorted(Path("docs").glob("*.md"))[:4]]
    return ODD + mixed + [page[start : start + 2000] for page in pages for start in range(0, len(page), 2000)]


@pytest.mark.parametrize("language", ["english", "french", "german"])
def test_each_text_has_the_words_that_postgres_finds_in_it(collection, language):
    document = Document.objects.create(collection=collection, name="x")
    given = texts()
    for _ in range(2):  # the book is empty, then it is not
        readings, _ = words.read(language, given)
    copy_rows(
        "knowledge_draft (document_id, number, content, language, length, lexemes)",
        "int8 int4 text text int4 bytea",
        [(document.pk, number, text, language, *readings[number]) for number, text in enumerate(given)],
    )
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT content FROM knowledge_draft WHERE lexemes IS DISTINCT FROM knowledge_lexemes(language, content)
              OR length <> (SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest(lexemes))
            """
        )
        assert cursor.fetchall() == []


def test_words_are_learned_when_the_transaction_commits_and_not_before(collection):
    _, lexemes = words.read("english", ["An unheard wordling, 42."])
    with transaction.atomic():
        words.learn("english", lexemes)
        transaction.set_rollback(True)
    assert not Word.objects.exists()
    with transaction.atomic():
        words.learn("english", lexemes)
    assert set(Word.objects.values_list("word", flat=True)) == {"unheard", "wordl"}
