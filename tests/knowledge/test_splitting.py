"""Documents are split as their upload asked, whatever it asked."""

import time

import pytest

from knowledge import parsing, splitting
from knowledge.models import (
    Status,
)
from tests.inference.documents import text_pdf
from tests.knowledge import files as made
from tests.knowledge.documents import (
    TEXT,
    contents,
    failure,
    is_whole,
)


def test_a_document_of_which_nothing_is_long_enough_has_no_chunks(add):
    sentence = "No chunks were extracted from the document."
    assert failure(add("Short.", chunk_min_size="100")) == (Status.FAILED, 500, sentence)


def test_chunks_that_are_too_short_are_left_out(add):
    document = add("Long enough to stay.\n\nShort.\n\nAnother that may stay.", chunk_size="25", chunk_min_size="10")
    assert contents(document) == ["Long enough to stay.", "Another that may stay."]
    assert is_whole(document)


def test_without_chunking_all_of_it_is_one_chunk(add):
    document = add(TEXT * 3, disable_chunking="true", chunk_size="10")
    assert contents(document) == [TEXT * 3]


CODE = "\n\nsub one { 1 }\n\nclass Two:\n    def three(self):\n        return 3\n\nfunction four() { return 4; }\n" * 20


@pytest.mark.parametrize("preset", list(splitting.PresetSeparators))
def test_each_preset_splits_and_loses_no_word(preset):
    pieces = splitting.split([parsing.Page(CODE, None)], splitting.Options(chunk_size=60, preset_separators=preset))
    assert "".join("".join(piece.content for piece in pieces).split()) == "".join(CODE.split())
    assert max(len(piece.content) for piece in pieces) <= 60


def test_a_text_is_split_by_separators_of_ones_own(add):
    assert contents(add("one;two;three", separators=";", chunk_size="5")) == ["one", ";two", ";three"]


def test_a_text_is_split_by_an_expression_of_ones_own(add):
    document = add("Art. 1 One. Art. 2 Two.", separators=r"(?=Art\. \d)", is_separator_regex="true", chunk_size="12")
    assert contents(document) == ["Art. 1 One. ", "Art. 2 Two."]


def test_an_expression_that_takes_for_ever_ends_in_time(add, monkeypatch):
    monkeypatch.setattr(splitting, "SECONDS", 1)
    began = time.monotonic()
    document = add("a" * 5000 + "!", separators="(?:a+)+$", is_separator_regex="true", chunk_size="10")
    sentence = "Splitting the document takes more than 1 seconds."
    assert failure(document) == (Status.FAILED, 422, sentence)
    assert time.monotonic() - began < 10


def test_too_many_chunks_are_refused(add, monkeypatch):
    monkeypatch.setattr(splitting, "MAX_CHUNKS", 65)
    sentences = {failure(add(text, chunk_size="32"))[2] for text in (TEXT, "A. " * 1000)}
    assert sentences == {
        "The document has more than 65 chunks: choose a larger chunk_size.",
        "The document would have more than 65 chunks: choose a larger chunk_size.",
    }


def test_chunks_of_a_pdf_know_their_page(add):
    document = add(made.pdf(), "two pages.pdf", chunk_size="100")
    pages = [chunk.metadata["page"] for chunk in document.chunks.all()]
    assert set(pages) == {1, 2}
    assert pages == sorted(pages)


def test_a_chunk_of_several_pages_knows_the_first_and_the_last(add):
    document = add(text_pdf("First.", "Second.", "Third."), "three pages.pdf")
    assert [chunk.metadata for chunk in document.chunks.all()] == [{"page": 1, "last_page": 3}]


def test_neighbours_share_what_the_overlap_allows(add):
    document = add("a b c d e f", separators=" ", chunk_size="5", chunk_overlap="3")
    assert contents(document) == ["a b c", "c d", "d e", "e f"]


def test_a_text_that_is_too_long_is_refused(add, monkeypatch):
    monkeypatch.setattr(splitting, "MAX_CHARACTERS", 1000)
    assert failure(add(TEXT)) == (Status.FAILED, 422, "The document has more than 1000 characters.")
