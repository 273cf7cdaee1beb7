"""Many vectors are compared by an index: with the same rights, filters and results as one by one."""

import random
import threading
from collections.abc import Iterator

import pytest
from django.db import connection

from accounts.models import User
from knowledge import indexing, nearest, search
from knowledge.models import Chunk, Collection, Document, Space, Status
from knowledge.queries import Asked, Filter, FilterType, Query, scope_of
from knowledge.vectors import as_binary, store_vectors
from tests.knowledge.conftest import DIMENSIONS
from tests.knowledge.documents import beside, interrupt


def store(collection: Collection, vectors: list[list[float]]) -> None:
    """A chunk for each vector; every third is odd."""
    space = collection.space
    assert space is not None
    document = Document.objects.create(collection=collection, name="notes", status=Status.READY)
    chunks = Chunk.objects.bulk_create(
        Chunk(
            document=document,
            collection=collection,
            number=number,
            content="x",
            metadata={"kind": "even" if number % 3 else "odd"},
        )
        for number in range(len(vectors))
    )
    store_vectors(space, collection.pk, [chunk.pk for chunk in chunks], as_binary(vectors))


def vectors_near(direction: int, count: int) -> list[list[float]]:
    chance = random.Random(direction)
    found = [[chance.uniform(-0.5, 0.5) for _ in range(DIMENSIONS)] for _ in range(count)]
    for vector in found:
        vector[direction] = 1.0
    return found


QUERY = vectors_near(1, 1)[0]


@pytest.fixture
def space(collection: Collection, ben: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[Space]:
    """With an index of three hundred vectors of ben's, near the query, and thirty of ada's, far from it."""
    monkeypatch.setattr(nearest, "EXACT_ROWS", 5)
    monkeypatch.setattr(nearest, "INDEX_COST", 0)
    monkeypatch.setattr(nearest, "EF_SEARCH", 400)  # it misses none of so few
    monkeypatch.setattr(indexing, "INDEXED_ROWS", 1)
    space = collection.space
    assert space is not None
    bens = Collection.objects.create(name="bens", owner=ben, space=space, language="english")
    store(bens, vectors_near(1, 300))
    store(collection, vectors_near(2, 30))
    space.refresh_from_db()
    assert indexing.index_grown() == [space]
    yield space
    with connection.cursor() as cursor:
        for index in nearest.indexes(cursor, space.pk):
            cursor.execute(f"DROP INDEX {index.name}")


def numbers(user: User, space: Space, **how: object) -> list[tuple[int, int]]:
    """Collection and number of each chunk that is found."""
    asked = Asked(vectors={space.pk: QUERY})
    query = Query("x", limit=5, **how)  # type: ignore[arg-type]
    return [(result.collection_id, result.number) for result in search.run(query, scope_of(user.pk, ()), asked)]


ODD = Filter("kind", FilterType.EQUALS, "odd")


@pytest.mark.parametrize("filters", [[], [ODD]], ids=["all", "filtered"])
def test_the_index_finds_what_comparing_one_by_one_finds_and_nothing_of_others(
    space, ada, ben, collection, monkeypatch, filters
):
    led: list[int] = []
    for user in (ada, ben):
        with monkeypatch.context() as patch:
            interrupt(patch, nearest, "_by_index", lambda: led.append(1))
            by_index = numbers(user, space, filters=filters)
        with monkeypatch.context() as patch:
            patch.setattr(nearest, "EXACT_ROWS", 10**6)
            assert numbers(user, space, filters=filters) == by_index
        assert len(by_index) == 5
        assert {id == collection.pk for id, _ in by_index} == {user == ada}
    assert led == [1, 1]


def outside(space: Space) -> int:
    """How many vectors the index does not have."""
    with connection.cursor() as cursor:
        (index,) = nearest.indexes(cursor, space.pk)
        cursor.execute(f"SELECT count(*) FROM knowledge_embedding WHERE {index.outside}")
        return cursor.fetchone()[0]


def test_what_comes_after_the_index_was_built_is_found_at_once_and_taken_in_later(space, ada, collection):
    store(collection, [QUERY] * 3)
    new = [(collection.pk, number) for number in range(3)]
    assert sorted(numbers(ada, space)[:3]) == new
    assert outside(space) == 3
    assert indexing.index_grown() == []
    assert outside(space) == 0
    assert sorted(numbers(ada, space)[:3]) == new


def test_when_much_has_come_another_index_is_built(space, ada, collection):
    store(collection, vectors_near(1, 200))
    before = numbers(ada, space)
    assert indexing.index_grown() == [space]
    assert outside(space) == 0
    assert numbers(ada, space) == before


def test_an_index_that_gives_up_before_it_found_enough_loses_nothing(space, ada, monkeypatch):
    poorly = "SET LOCAL hnsw.ef_search = 1; SET LOCAL hnsw.iterative_scan = off; SET LOCAL enable_sort = off"
    monkeypatch.setattr(nearest, "_settings", lambda depth: poorly)  # it leads to one vector, of ben's
    assert len(numbers(ada, space)) == 5


def test_where_few_fulfil_a_filter_each_is_looked_up(space, ada, collection):
    document = Document.objects.create(collection=collection, name="more", status=Status.READY)
    Chunk.objects.filter(collection=collection, number__in=[4, 7]).update(document=document)
    found = numbers(ada, space, document_ids=[document.pk])
    assert sorted(found) == [(collection.pk, 4), (collection.pk, 7)]


def test_an_index_whose_building_broke_off_is_built_again(space):
    with connection.cursor() as cursor:
        (index,) = nearest.indexes(cursor, space.pk)
        cursor.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [index.name])
    assert indexing.state_of(space) is False
    assert indexing.index_grown() == [space]
    assert indexing.state_of(space) is True


def test_while_one_builds_another_leaves_it_to_him(space):
    with connection.cursor() as cursor:
        (index,) = nearest.indexes(cursor, space.pk)
        cursor.execute(f"DROP INDEX {index.name}")
    may_end, holds = threading.Event(), threading.Event()

    def hold() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [indexing.BUILDER])
            holds.set()
            may_end.wait(10)
            cursor.execute("SELECT pg_advisory_unlock(%s)", [indexing.BUILDER])

    builder = threading.Thread(target=lambda: beside(hold))
    builder.start()
    assert holds.wait(10)
    try:
        assert indexing.index_grown() == []
    finally:
        may_end.set()
        builder.join()
    assert indexing.index_grown() == [space]


def test_vectors_that_are_too_long_for_an_index_are_compared_one_by_one(collection, monkeypatch):
    monkeypatch.setattr(indexing, "INDEXED_ROWS", 1)
    Space.objects.update(dimensions=indexing.MAX_DIMENSIONS + 1)
    Collection.objects.update(chunks=1)
    assert indexing.index_grown() == []
