"""The same bytes in one collection are read and embedded once, however they come."""

from typing import Any

import pytest

from knowledge import ingestion, parsing
from knowledge.models import (
    Collection,
    Document,
    Embedding,
    Space,
    Status,
)
from tests.knowledge import files as made
from tests.knowledge.documents import (
    EACH,
    PARAGRAPHS,
    TEXT,
    asked,
    beside,
    contents,
    failure,
    interrupt,
    is_whole,
    time_passes,
)


def test_the_same_bytes_are_read_and_embedded_once(add, upstream):
    first = add(TEXT, **EACH, metadata='{"year": 2025}')
    second = add(TEXT, "other name.txt", **EACH, metadata='{"year": 2026}')
    assert asked(upstream) == PARAGRAPHS
    for document, year in ((first, 2025), (second, 2026)):
        assert is_whole(document)
        assert contents(document) == PARAGRAPHS
        assert {chunk.metadata["year"] for chunk in document.chunks.all()} == {year}
    vectors = Embedding.objects.order_by("chunk__document", "chunk__number").values_list("embedding", flat=True)
    assert list(vectors)[:70] == list(vectors)[70:]


def test_the_same_pdf_keeps_its_pages_and_its_owner_his_metadata(add):
    content = made.pdf()  # which is never made the same twice

    def metadata(**fields: str) -> list[Any]:
        document = add(content, "two pages.pdf", chunk_size="200", **fields)
        return [chunk.metadata for chunk in document.chunks.all()]

    mine = metadata(metadata='{"page": "mine"}')
    read = metadata()
    assert mine == [{"page": "mine"}] * len(read)
    assert {found["page"] for found in read} == {1, 2}
    assert metadata(metadata='{"by": "ben"}') == [found | {"by": "ben"} for found in read]


def test_the_second_waits_for_the_first_when_both_are_under_way(came, ingest, upstream):
    first, second = came(TEXT, **EACH), came(TEXT, **EACH)
    ingestion.ingest(second.pk)
    assert asked(upstream) == []
    second.refresh_from_db()
    assert (second.tries, second.error) == (0, "")  # waiting for one's like is no trouble
    ingest()
    time_passes()
    ingest()
    assert is_whole(first)
    assert is_whole(second)
    assert asked(upstream) == PARAGRAPHS


def test_one_that_came_first_but_late_waits_for_the_one_that_is_under_way(came, ingest, upstream, monkeypatch):
    first = came(TEXT, **EACH)
    Document.objects.filter(id=first.pk).update(status=Status.FAILED)  # for the time being nobody sees it
    second = came(TEXT, **EACH)

    def appears() -> None:
        Document.objects.filter(id=first.pk).update(status=Status.PENDING)
        ingestion.ingest(first.pk)

    interrupt(monkeypatch, parsing, "pages", lambda: beside(appears))
    ingestion.ingest(second.pk)
    time_passes()
    ingest()
    assert is_whole(first)
    assert is_whole(second)
    assert asked(upstream) == PARAGRAPHS


def test_the_second_goes_on_when_the_first_cannot(came, ingest, as_ada):
    first, second = came(TEXT, **EACH), came(TEXT, **EACH)
    assert as_ada.delete(f"/v1/documents/{first.pk}").status_code == 204
    ingest()
    assert is_whole(second)


def test_a_file_that_cannot_be_read_fails_as_often_as_it_comes(add):
    assert {failure(add(made.docx(), "a.pdf"))[2] for _ in range(2)} == {"The file is not a PDF."}


def test_an_edited_twin_is_not_copied(add, as_ada, upstream):
    first = add(TEXT, **EACH)
    as_ada.delete(f"/v1/documents/{first.pk}/chunks/3")
    second = add(TEXT, **EACH)
    assert contents(second) == PARAGRAPHS
    assert len(asked(upstream)) == 2 * len(PARAGRAPHS)


def test_a_twin_with_chunks_of_its_owner_is_not_copied(add, as_ada):
    first = add(TEXT, **EACH)
    body = {"chunks": [{"content": "A remark."}]}
    assert as_ada.post(f"/v1/documents/{first.pk}/chunks", json=body).status_code == 201
    assert contents(add(TEXT, **EACH)) == PARAGRAPHS


@pytest.mark.parametrize("how", ["deleted", "edited"])
def test_a_twin_that_goes_while_it_is_copied_is_not_missed(add, came, ingest, as_ada, monkeypatch, how):
    first = add(TEXT, **EACH)
    second = came(TEXT, **EACH)

    def go() -> None:
        path = f"/v1/documents/{first.pk}" + ("/chunks/3" if how == "edited" else "")
        assert as_ada.delete(path).status_code == 204

    interrupt(monkeypatch, ingestion, "keep", go)
    ingest()
    time_passes()
    ingest()
    assert is_whole(second)
    assert contents(second) == PARAGRAPHS


def test_other_options_and_another_collection_are_not_the_same(add, ada, upstream):
    add("One text.")
    add("One text.", chunk_size="100")
    other = Collection.objects.create(name="other", owner=ada, space=Space.objects.get(), language="english")
    add("One text.", collection=other)
    assert asked(upstream) == ["One text."] * 3


def test_the_same_bytes_as_another_kind_are_not_the_same(add):
    page = "<p>The canteen opens at noon.</p>"
    assert contents(add(page, "a.html")) == ["The canteen opens at noon."]
    assert contents(add(page, "a.txt")) == [page]
