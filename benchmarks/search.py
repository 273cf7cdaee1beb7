#!/usr/bin/env python
"""What a search among a hundred thousand chunks costs and how much of the nearest it finds, and what ingestion costs.

    python benchmarks/search.py [--quick] [--chunks N] [--rounds N] [--json FILE]

Starts PostgreSQL and Valkey itself, durable. Documents take the way of ingestion from their parsed text to chunks that
are found, a worker's claim and lease in it; the model is left out, and so is parsing, which is measured by itself.
Searches are measured under `knowledge.search.run` and `scope_of`, without the query's embedding. Two hundred
collections are of very different sizes and subjects; words come as often as in a language without its stop words, six
of a thousand for the first time. Half of the queries resemble what the asker may read, half anything at all. Recall is
against numpy's comparison with each vector.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # others would turn in circles beside what is measured

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.services import servers  # noqa: E402

COLLECTIONS, CLUSTERS, DIMENSIONS, VOCABULARY = 200, 500, 384, 20_000
NOISE = 0.06  # of each number of a vector; two chunks of a cluster have a cosine of about 0.4
DOCUMENT = 50  # chunks
CHUNK_SIZE = 1020  # characters: one paragraph fits, two do not
NEW_WORDS = 0.006  # of all words: as many as an English library of this size still has
LONG = 1_000  # chunks of a long document
LIVE = 2_000  # chunks that come while there is an index
WORKERS = 2
BESIDE = 8_000  # chunks that each of several workers brings in at once
NEAREST = 10
RARE = 100  # one document of so many has the metadata that is asked for
ROUNDS = 5
FIVE_THOUSAND = 5_000
# Who may read how much: their own, and 2 % that are public.
SHARES = {"wide": 0.76, "fifth": 0.18, "twentieth": 0.03, "public": 0.02}
METHODS = ("semantic", "lexical", "hybrid")
# Name of the case: recall and milliseconds that must be, and those that are the goal.
TARGETS = {
    "a collection of 5,000": ((1.0, 10), (1.0, 3)),
    "all that a reader of 78 % sees": ((0.95, 15), (0.99, 5)),
    "all that a reader of 20 % sees": ((0.95, 15), (0.99, 5)),
    "a filter that keeps 1 %": ((0.95, 15), (0.99, 5)),
}
INGESTED = (5_000, 20_000)  # chunks a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200, help="searches of a kind")
    parser.add_argument("--quick", action="store_true", help="20,000 chunks, 50 searches of a kind")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chunks, rounds = (20_000, 50) if options.quick else (options.chunks, options.rounds)
    usual = ROOT / "benchmarks" / "results" / "search.json"
    with servers():
        figures = measure(chunks, rounds)
    show(figures)
    if options.json or not options.quick:
        (options.json or usual).write_text(json.dumps(figures, indent=1) + "\n")


def measure(chunks: int, rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"chunks": chunks, "collections": COLLECTIONS, "dimensions": DIMENSIONS}
    world = World(chunks)
    figures["parsed_ms_a_document"] = world.parse()
    figures["ingestion"] = {"without_index": world.fill()}
    figures["ingestion"]["long_documents"] = world.fill_long()
    figures["index_built_s"] = world.index()
    figures["bytes"] = world.disk()
    figures["searches"] = world.searches(rounds)
    figures["ingestion"]["with_index"] = world.fill_more(LIVE)
    wide = world.cases()["all that a reader of 78 % sees"]
    figures["searched_with_2000_outside_the_index"] = world.asked(wide, "semantic", world.readable(wide), rounds)
    figures["taken_in_a_second"] = world.take_in()
    figures["ingestion"][f"{WORKERS}_workers"] = world.beside(DOCUMENT)
    figures["ingestion"][f"long_documents_{WORKERS}_workers"] = world.beside(LONG)
    figures["ingestion"]["vectors_alone"] = world.vectors_alone()
    return figures


def show(figures: dict[str, Any]) -> None:
    """What the targets say, and then all."""
    print(json.dumps(figures, indent=1))
    print(f"\n{'':52}{'median':>9}{'min':>9}{'max':>9}   must   goal")
    for name, ((must_recall, must_ms), (goal_recall, goal_ms)) in TARGETS.items():
        if name not in figures["searches"]:
            continue
        found = figures["searches"][name]["semantic"]
        spread = found["p50_ms_of_rounds"]
        print(f"{name + ', p50 ms':52}{found['p50_ms']:>9}{min(spread):>9}{max(spread):>9}  ≤ {must_ms:<5}≤ {goal_ms}")
        print(f"{'  recall@10':52}{found['recall']:>9}{'':18}  ≥ {must_recall:<5}≥ {goal_recall}")
    for name, found in figures["ingestion"].items():
        line = f"ingested a second, {name.replace('_', ' ')}"
        print(f"{line:52}{found['a_second']:>9}{found['min']:>9}{found['max']:>9}  ≥ {INGESTED[0]:<5}≥ {INGESTED[1]}")
    for name in ("without_index", "long_documents"):
        for kind in ("us_a_chunk", "cpu_us_a_chunk"):
            parts = ", ".join(f"{part} {value}" for part, value in figures["ingestion"][name][kind].items())
            print(f"  {name.replace('_', ' ')}, {kind.replace('_', ' ')}: {parts}")


class Case(NamedTuple):
    """Who asks, where, and for which metadata."""

    user_id: int
    collection_ids: Sequence[int] = ()
    is_filtered: bool = False


class Upload(NamedTuple):
    """A document on its way; `first` is the number of its first chunk among all."""

    id: int
    texts: list[str]
    vectors: list[list[float]]
    first: int


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
        self.owners = self._owners()
        self.collections = [
            Collection.objects.create(
                name=f"collection {number}",
                owner=self.users[self.owners[number]],
                visibility="public" if self.owners[number] == "public" else "private",
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
        self.vectors = np.zeros((chunks + ROUNDS * LONG + LIVE + DOCUMENT + BESIDE, DIMENSIONS), dtype=np.float32)
        self.texts: list[str] = []
        self.parts: Counter[str] = Counter()
        self.places: list[tuple[int, int]] = []  # collection and whether it has the rare metadata
        self.where: dict[tuple[int, int], int] = {}  # by document and number

    @staticmethod
    def _sizes(chunks: int) -> list[int]:
        """The largest has a fifth of all, the smallest twenty chunks."""
        wanted = chunks / np.arange(1, COLLECTIONS + 1) ** 1.12
        sizes = np.maximum(wanted * chunks / wanted.sum(), 20).astype(int)
        sizes[1 + np.abs(sizes[1:] - FIVE_THOUSAND).argmin()] = FIVE_THOUSAND
        sizes[0] += chunks - sizes.sum()
        return [int(size) for size in sizes]

    def _owners(self) -> list[str]:
        """From the largest on, each goes to whoever lacks most, if it fits."""
        total = sum(self.sizes)
        lacks = {name: share * total for name, share in SHARES.items()}
        owners = []
        for number, size in enumerate(self.sizes):
            name = "wide" if size == FIVE_THOUSAND else max(lacks, key=lambda name: lacks[name])
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
        lengths = self.numbers.integers(62, 99, size=count)
        words = self.vocabulary[self.numbers.choice(VOCABULARY, size=int(lengths.sum()), p=self.frequency)].tolist()
        for place in np.flatnonzero(self.numbers.random(len(words)) < NEW_WORDS).tolist():
            words[place] = self._word() + "".join(self.chance.choices("abcdefghijklmnoprstuvz", k=6))
        for place in range(self.chance.randint(4, 15), len(words), self.chance.randint(8, 15)):
            words[place - 1] += self.chance.choice(",.")
            words[place] = words[place].capitalize()
        ends = np.cumsum(lengths).tolist()
        self.texts += [" ".join(words[start:end]) for start, end in zip([0, *ends], ends)]
        is_rare = int(self.numbers.random() * RARE) == 0
        self.places += [(collection, is_rare)] * count

    def documents(self) -> Iterator[tuple[int, int]]:
        """Collection and number of chunks, as uploads come: here and there."""
        pieces = [
            (collection, min(DOCUMENT, size - start))
            for collection, size in enumerate(self.sizes)
            for start in range(0, size, DOCUMENT)
        ]
        self.chance.shuffle(pieces)
        return iter(pieces)

    def fill(self) -> dict[str, Any]:
        return self.ingested(list(self.documents()))

    def fill_long(self) -> dict[str, Any]:
        """Long documents, of somebody whom no search is about."""
        collection = next(number for number, owner in enumerate(self.owners) if owner not in SHARES)
        return self.ingested([(collection, LONG)] * ROUNDS)

    def fill_more(self, chunks: int) -> dict[str, Any]:
        return self.ingested([(number % COLLECTIONS, DOCUMENT) for number in range(chunks // DOCUMENT)])

    def ingested(self, documents: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The rate, of rounds; where a chunk's time goes, and of it the CPU of Python and of Postgres."""
        self.parts.clear()
        spent, chunks = Counter[int](), Counter[int]()
        for number, (collection, count) in enumerate(documents):
            slice = number * ROUNDS // len(documents)
            spent[slice] += self.ingest(collection, count)  # type: ignore[assignment]
            chunks[slice] += count
        rates = [round(chunks[slice] / spent[slice]) for slice in spent]
        found: dict[str, Any]
        total = sum(chunks.values())
        parts = {name: round(seconds / total * 1e6) for name, seconds in self.parts.items()}
        cpu = {name.removeprefix("cpu "): parts.pop(name) for name in list(parts) if name.startswith("cpu ")}
        parts["other"] = round(sum(spent.values()) / total * 1e6) - sum(parts.values())
        found = {"a_second": round(total / sum(spent.values())), "min": min(rates), "max": max(rates)}
        found |= {"us_a_chunk": parts, "cpu_us_a_chunk": cpu}
        print("ingested", found, flush=True)
        return found

    def ingest(self, collection: int, count: int) -> float:
        return self.brought_in(self.come(collection, count))

    def come(self, collection: int, count: int) -> Upload:
        """A document that nobody has taken up yet."""
        from knowledge.kinds import Kind
        from knowledge.models import Document

        first = len(self.texts)
        self.made(count, collection)
        document = Document.objects.create(
            collection=self.collections[collection],
            name="document",
            kind=Kind.TEXT,
            fingerprint=f"{os.getpid()}-{first}",
            options={"chunk_size": CHUNK_SIZE},
            metadata={"kind": "rare" if self.places[first][1] else "usual"},
        )
        return Upload(document.pk, self.texts[first:], self.vectors[first : first + count].tolist(), first)

    def brought_in(self, upload: Upload) -> float:
        """From its text to chunks that are found; the seconds it took."""
        from knowledge import ingestion
        from knowledge.models import Chunk

        with self.without_a_model("\n\n".join(upload.texts), upload.vectors):
            before = cpu_seconds()
            started = time.perf_counter()
            ingestion.ingest(upload.id)
            spent = time.perf_counter() - started
            for name, seconds in cpu_seconds().items():
                self.parts[f"cpu {name}"] += seconds - before[name]  # type: ignore[assignment]
        stored = Chunk.objects.filter(document=upload.id).order_by("number").values_list("content", flat=True)
        assert list(stored) == upload.texts
        self.where |= {(upload.id, number): upload.first + number for number in range(len(upload.texts))}
        return spent

    @contextmanager
    def without_a_model(self, text: str, vectors: list[list[float]]) -> Iterator[None]:
        """Ingestion with a document's text and the numbers of a model's answers given, and its parts timed."""
        from knowledge import files, ingestion, parsing, splitting, words
        from knowledge.embedding import vectors_in
        from knowledge.parsing import Page

        left = iter(vectors)

        async def embed(principal: Any, space: Any, texts: Sequence[str]) -> Any:
            return vectors_in({"data": [{"embedding": next(left)} for _ in texts]}, space)

        given: list[tuple[Any, str, Callable[..., Any]]] = [
            (files, "opened", lambda file: io.BytesIO()),
            (parsing, "pages", lambda file, kind, on_page: [Page(text, None)]),
            (ingestion, "embed", embed),
        ]
        for place, name, part in (
            (splitting, "split", "split"),
            (words, "read", "words"),
            (words, "learn", "new words"),
            (ingestion, "_store", "store"),
        ):
            given.append((place, name, partial(self.timed, part, getattr(place, name))))
        kept = [(place, name, getattr(place, name)) for place, name, _ in given]
        for place, name, instead in given:
            setattr(place, name, instead)
        try:
            yield
        finally:
            for place, name, whole in kept:
                setattr(place, name, whole)

    def timed(self, part: str, whole: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        try:
            return whole(*args)
        finally:
            self.parts[part] += time.perf_counter() - started  # type: ignore[assignment]

    def parse(self) -> float:
        """A text of a document's length, read by the child process that reads it: milliseconds."""
        from knowledge import parsing
        from knowledge.kinds import Kind

        text = "\n\n".join(" ".join(self.vocabulary[:80]) for _ in range(DOCUMENT)).encode()
        spent = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            assert parsing.pages(io.BytesIO(text), Kind.TEXT)
            spent.append((time.perf_counter() - started) * 1000)
        return round(median(spent), 1)

    def take_in(self) -> int:
        """Vectors a second that came after the index was built and are brought into it."""
        from knowledge.indexing import index_grown

        started = time.perf_counter()
        assert not index_grown()
        return round(LIVE / (time.perf_counter() - started))

    def vectors_alone(self) -> dict[str, Any]:
        """Vectors into their table and its indexes, a thousand at a time, from arrays."""
        from django.db import transaction

        from knowledge.vectors import as_binary, store_vectors

        rates = []
        for slice in range(ROUNDS):
            vectors = list(self.vectors[slice * LONG : (slice + 1) * LONG].astype(np.float64))
            ids = range((slice + 1) * 10**9, (slice + 1) * 10**9 + LONG)  # of no chunks, and in no index of a space
            started = time.perf_counter()
            with transaction.atomic():
                store_vectors(self.space, self.collections[0].pk, ids, as_binary(vectors))
            rates.append(round(LONG / (time.perf_counter() - started)))
        return {"a_second": round(median(rates)), "min": min(rates), "max": max(rates)}

    def beside(self, size: int) -> dict[str, Any]:
        """Several workers at once, each with documents of its own, of so many chunks."""
        from django.db import connection

        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]  # no connection may be in two processes
        context = multiprocessing.get_context("fork")
        barrier, times = context.Barrier(WORKERS), context.Queue()

        def work(worker: int) -> None:
            self.ingest(worker, DOCUMENT)
            uploads = [self.come((2 * number + worker) % COLLECTIONS, size) for number in range(BESIDE // size)]
            barrier.wait()
            started = time.time()
            for upload in uploads:
                self.brought_in(upload)
            times.put((started, time.time()))

        workers = [context.Process(target=work, args=[number]) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        starts, ends = zip(*[times.get(timeout=300) for _ in workers])
        for worker in workers:
            worker.join()
        rate = round(WORKERS * BESIDE / (max(ends) - min(starts)))
        return {"a_second": rate, "min": rate, "max": rate}

    def index(self) -> float:
        from knowledge.indexing import index_grown

        started = time.perf_counter()
        assert index_grown() or len(self.texts) < 20_000, "There was no index to build."
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
            "a collection of 5,000": Case(wide, [self.collections[self.sizes.index(FIVE_THOUSAND)].pk]),
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
            if not len(readable):  # few of few: no document there has the rare metadata
                continue
            figures[name] = {"chunks": len(readable)}
            for method in METHODS:
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

    def asked(self, case: Case, method: str, readable: np.ndarray, rounds: int) -> dict[str, Any]:
        from knowledge import search
        from knowledge.queries import Asked, Filter, FilterType, Query, SearchMethod, scope_of

        filters = [Filter("kind", FilterType.EQUALS, "rare")] if case.is_filtered else []
        chance, numbers = random.Random(11), np.random.default_rng(11)
        spent, shares = [], []
        cpu: Counter[str] = Counter()
        for number in range(rounds + 5):
            like = int(chance.choice(readable)) if number % 2 else chance.randrange(len(self.texts))
            vector = unit(self.vectors[like] + NOISE * numbers.standard_normal(DIMENSIONS))
            words = " ".join(chance.sample(self.texts[like].split(), 4))
            query = Query(
                words, SearchMethod(method), collection_ids=case.collection_ids, filters=filters, limit=NEAREST
            )
            given = Asked(vectors={self.space.pk: vector.tolist()})
            before, started = cpu_seconds(), time.perf_counter()
            found = search.run(query, scope_of(case.user_id, case.collection_ids), given)
            if number >= 5:
                spent.append((time.perf_counter() - started) * 1000)
                for name, seconds in cpu_seconds().items():
                    cpu[name] += seconds - before[name]  # type: ignore[assignment]
            places = [self.where[result.document_id, result.number] for result in found]
            assert set(places) <= set(readable.tolist())
            if method == "semantic":
                shares.append(self.recall(vector, places, readable))
        p50, p99 = np.percentile(spent, [50, 99])
        of_rounds = [round(float(median(part)), 1) for part in np.array_split(spent, ROUNDS)]
        figures: dict[str, Any] = {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}
        figures["p50_ms_of_rounds"] = of_rounds
        figures["cpu_ms"] = {name: round(seconds / rounds * 1000, 2) for name, seconds in cpu.items()}
        return figures | ({"recall": round(float(np.mean(shares)), 4)} if shares else {})

    def recall(self, vector: np.ndarray, places: list[int], readable: np.ndarray) -> float:
        """Share of the truly nearest; of equally near ones, either is right."""
        halved = vector.astype(np.float16).astype(np.float32)
        vectors = self.vectors[: len(self.texts)]
        likeness = vectors @ halved / np.linalg.norm(vectors, axis=1)
        wanted = min(NEAREST, len(readable))
        least = np.partition(likeness[readable], len(readable) - wanted)[len(readable) - wanted]
        return sum(likeness[place] >= least - 1e-6 for place in places) / wanted


def cpu_seconds() -> dict[str, float]:
    """Of this process, and of the process of Postgres that serves it."""
    from django.db import connection

    connection.ensure_connection()
    backend = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat")
    return {"python": time.process_time(), "postgres": int(backend.read_text().split()[0]) / 1e9}


def unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


if __name__ == "__main__":
    main()
