#!/usr/bin/env python
"""What a search among a hundred thousand chunks costs and how much of the nearest it finds, and what ingestion costs.

    python benchmarks/search.py [--chunks N] [--rounds N] [--json FILE]

Starts PostgreSQL and Valkey itself. Documents come in by ingestion's own way, without the time of a model; searches are
measured under `knowledge.search.run` and `scope_of`, without the query's embedding. Two hundred collections are of very
different sizes and subjects; words come as often as in a language without its stop words. Half of the queries resemble
what the asker may read, half anything at all. Recall is against numpy's comparison with each vector.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.services import servers  # noqa: E402

COLLECTIONS, CLUSTERS, DIMENSIONS, VOCABULARY = 200, 500, 384, 20_000
NOISE = 0.06  # of each number of a vector; two chunks of a cluster have a cosine of about 0.4
DOCUMENT = 50  # chunks
LIVE = 2_000  # chunks that come while there is an index
NEAREST = 10
RARE = 100  # one chunk of so many has the metadata that is asked for
# Who may read how much: their own, and 2 % that are public.
SHARES = {"wide": 0.76, "fifth": 0.18, "twentieth": 0.03, "public": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "search.json")
    options = parser.parse_args()
    with servers():
        figures = measure(options.chunks, options.rounds)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(chunks: int, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"chunks": chunks, "collections": COLLECTIONS, "dimensions": DIMENSIONS}
    world = World(chunks)
    figures["ingested_a_second"] = {"without_index": world.fill()}
    figures["index_built_s"] = world.index()
    figures["bytes"] = world.disk()
    figures["searches"] = world.searches(rounds)
    figures["ingested_a_second"]["with_index"] = world.fill_more(LIVE)
    print(json.dumps(figures, indent=1))
    return figures


class Case(NamedTuple):
    """Who asks, where, and for which metadata."""

    user_id: int
    collection_ids: Sequence[int] = ()
    is_filtered: bool = False


class World:
    """Owners and their collections, and every chunk's vector, words and place."""

    def __init__(self, chunks: int) -> None:
        from accounts.models import Role, User
        from knowledge.models import Collection, Space
        from routing.models import Router

        self.chance, self.numbers = random.Random(7), np.random.default_rng(7)
        role = Role.objects.create(name="readers")
        names = [*SHARES, *(f"other{number}" for number in range(8))]
        self.users = {name: User.objects.create(email=f"{name}@example.org", role=role) for name in names}
        router = Router.objects.create(name="embeddings", type="text-embeddings-inference")
        self.space = Space.objects.of(router)
        self.sizes = self._sizes(chunks)
        owners = self._owners()
        self.collections = [
            Collection.objects.create(
                name=f"collection {number}",
                owner=self.users[owners[number]],
                visibility="public" if owners[number] == "public" else "private",
                language="english",
                space=self.space,
            )
            for number in range(COLLECTIONS)
        ]
        self.centers = unit(self.numbers.standard_normal((CLUSTERS, DIMENSIONS)))
        self.subjects = self.numbers.integers(CLUSTERS, size=(COLLECTIONS, 10))
        frequency = 1 / (np.arange(VOCABULARY) + 30)
        self.frequency = frequency / frequency.sum()
        self.vocabulary = np.array(sorted({self._word() for _ in range(2 * VOCABULARY)})[: 2 * VOCABULARY])
        self.numbers.shuffle(self.vocabulary)
        self.vocabulary = self.vocabulary[:VOCABULARY]
        self.vectors = np.zeros((chunks + LIVE, DIMENSIONS), dtype=np.float32)
        self.texts: list[str] = []
        self.places: list[tuple[int, int]] = []  # collection and whether it has the rare metadata
        self.where: dict[tuple[int, int], int] = {}  # by document and number

    @staticmethod
    def _sizes(chunks: int) -> list[int]:
        """The largest has a fifth of all, the smallest twenty chunks."""
        wanted = chunks / np.arange(1, COLLECTIONS + 1) ** 1.12
        sizes = np.maximum(wanted * chunks / wanted.sum(), 20).astype(int)
        sizes[1] += chunks - sizes.sum()
        return [int(size) for size in sizes]

    def _owners(self) -> list[str]:
        """From the largest on, each goes to whoever lacks most, if it fits."""
        total = sum(self.sizes)
        lacks = {name: share * total for name, share in SHARES.items()}
        owners = []
        for number, size in enumerate(self.sizes):
            name = max(lacks, key=lambda name: lacks[name])
            if size <= lacks[name] + 20:
                lacks[name] -= size
                owners.append(name)
            else:
                owners.append(f"other{number % 8}")
        return owners

    def _word(self) -> str:
        return "".join(
            self.chance.choice("bdfgklmnprtvz") + self.chance.choice("aiou") for _ in range(self.chance.randint(2, 5))
        ) + self.chance.choice("bkmprt")

    # what comes in

    def made(self, count: int, collection: int) -> None:
        own = self.subjects[collection][self.numbers.integers(10, size=count)]
        clusters = np.where(self.numbers.random(count) < 0.5, own, self.numbers.integers(CLUSTERS, size=count))
        noise = NOISE * self.numbers.standard_normal((count, DIMENSIONS))
        vectors = unit(self.centers[clusters] + noise)
        first = len(self.texts)
        self.vectors[first : first + count] = vectors.astype(np.float16)
        lengths = self.numbers.integers(60, 101, size=count)
        words = self.vocabulary[self.numbers.choice(VOCABULARY, size=int(lengths.sum()), p=self.frequency)]
        self.texts += [" ".join(part) for part in np.split(words, np.cumsum(lengths)[:-1])]
        self.places += [(collection, int(self.numbers.random() * RARE) == 0) for _ in range(count)]

    def documents(self) -> Iterator[tuple[int, int]]:
        """Collection and number of chunks, as uploads come: here and there."""
        pieces = [
            (collection, min(DOCUMENT, size - start))
            for collection, size in enumerate(self.sizes)
            for start in range(0, size, DOCUMENT)
        ]
        self.chance.shuffle(pieces)
        return iter(pieces)

    def fill(self) -> int:
        spent = sum(self.ingest(collection, count) for collection, count in self.documents())
        return round(sum(self.sizes) / spent)

    def fill_more(self, chunks: int) -> int:
        documents = chunks // DOCUMENT
        return round(chunks / sum(self.ingest(number % COLLECTIONS, DOCUMENT) for number in range(documents)))

    def ingest(self, collection: int, count: int) -> float:
        """A document from drafts to chunks; the seconds it took."""
        from uuid import uuid4

        from knowledge import ingestion
        from knowledge.embedding import BATCH
        from knowledge.models import Chunk, Document, Draft, Status

        first = len(self.texts)
        self.made(count, collection)
        vectors = [vector.tolist() for vector in self.vectors[first : first + count]]
        started = time.perf_counter()
        document = Document.objects.create(
            collection=self.collections[collection], name="document", status=Status.EMBEDDING, lease=uuid4()
        )
        rare = [{"kind": "rare" if self.places[first + number][1] else "usual"} for number in range(count)]
        Draft.objects.bulk_create(
            Draft(document=document, number=number, content=self.texts[first + number], metadata=rare[number])
            for number in range(count)
        )
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            ingestion._texts(document, numbers)
            ingestion._draft_vectors(document, self.space, numbers, vectors[start : start + BATCH], 0.5)
        ingestion._store(document)
        spent = time.perf_counter() - started
        assert Chunk.objects.filter(document=document).count() == count
        self.where |= {(document.pk, number): first + number for number in range(count)}
        return spent

    def index(self) -> float:
        from knowledge.indexing import index_grown

        started = time.perf_counter()
        assert index_grown(), "There was no index to build."
        return round(time.perf_counter() - started, 1)

    def disk(self) -> dict[str, int]:
        """Of the tables with what is stored apart, and of their indexes."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname, CASE relkind WHEN 'i' THEN pg_relation_size(oid) ELSE pg_table_size(oid) END"
                " FROM pg_class WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace"
                " AND relname ~ '^(knowledge_(chunk|embedding|lexemes|word)|embedding_|chunk_|lexemes_|word_)'"
                " ORDER BY relkind DESC, 2 DESC"
            )
            return dict(cursor.fetchall())

    # what is asked

    def cases(self) -> dict[str, Case]:
        users = {name: user.pk for name, user in self.users.items()}
        wide = users["wide"]
        own = [number for number in range(COLLECTIONS) if self.collections[number].owner_id == wide]
        return {
            "all that a reader of 78 % sees": Case(wide),
            "a small collection": Case(wide, [self.collections[own[-1]].pk]),
            "a collection of a hundredth": Case(
                wide, [self.collections[min(own, key=lambda number: abs(self.sizes[number] - 1000))].pk]
            ),
            "the largest collection": Case(wide, [self.collections[own[0]].pk]),
            "a filter that keeps 1 %": Case(wide, is_filtered=True),
            "a filter that keeps 1 %, the largest collection": Case(wide, [self.collections[own[0]].pk], True),
            "all that a reader of 20 % sees": Case(users["fifth"]),
            "all that a reader of 5 % sees": Case(users["twentieth"]),
        }

    def searches(self, rounds: int) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name, case in self.cases().items():
            readable = self.readable(case)
            figures[name] = {"chunks": len(readable)}
            for method in ("semantic", "lexical", "hybrid"):
                figures[name][method] = self.asked(case, method, readable, rounds)
                print(name, method, figures[name][method], flush=True)
        return figures

    def readable(self, case: Case) -> np.ndarray:
        """Numbers of the chunks that may be found."""
        from knowledge.queries import scope_of

        visible = {
            number
            for number, collection in enumerate(self.collections)
            if (collection.owner_id == case.user_id or collection.visibility == "public")
            and (not case.collection_ids or collection.pk in case.collection_ids)
        }
        found = [
            number
            for number, (collection, is_rare) in enumerate(self.places)
            if collection in visible and (is_rare or not case.is_filtered)
        ]
        assert case.is_filtered or scope_of(case.user_id, case.collection_ids).chunks() == len(found)
        return np.array(found)

    def asked(self, case: Case, method: str, readable: np.ndarray, rounds: int) -> dict[str, float]:
        from knowledge import search
        from knowledge.queries import Asked, Filter, FilterType, Query, SearchMethod, scope_of

        filters = [Filter("kind", FilterType.EQUALS, "rare")] if case.is_filtered else []
        chance, numbers = random.Random(11), np.random.default_rng(11)
        spent, shares = [], []
        for number in range(rounds + 5):
            like = int(chance.choice(readable)) if number % 2 else chance.randrange(len(self.texts))
            vector = unit(self.vectors[like] + NOISE * numbers.standard_normal(DIMENSIONS))
            words = " ".join(chance.sample(self.texts[like].split(), 4))
            query = Query(
                words, SearchMethod(method), collection_ids=case.collection_ids, filters=filters, limit=NEAREST
            )
            given = Asked(vectors={self.space.pk: vector.tolist()})
            started = time.perf_counter()
            found = search.run(query, scope_of(case.user_id, case.collection_ids), given)
            if number >= 5:
                spent.append((time.perf_counter() - started) * 1000)
            places = [self.where[result.document_id, result.number] for result in found]
            assert set(places) <= set(readable.tolist())
            if method == "semantic":
                shares.append(self.recall(vector, places, readable))
        p50, p99 = np.percentile(spent, [50, 99])
        figures = {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}
        return figures | ({"recall": round(float(np.mean(shares)), 4)} if shares else {})

    def recall(self, vector: np.ndarray, places: list[int], readable: np.ndarray) -> float:
        """Share of the truly nearest; of equally near ones, either is right."""
        halved = vector.astype(np.float16).astype(np.float32)
        vectors = self.vectors[: len(self.texts)]
        likeness = vectors @ halved / np.linalg.norm(vectors, axis=1)
        wanted = min(NEAREST, len(readable))
        least = np.partition(likeness[readable], len(readable) - wanted)[len(readable) - wanted]
        return sum(likeness[place] >= least - 1e-6 for place in places) / wanted


def unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


if __name__ == "__main__":
    main()
