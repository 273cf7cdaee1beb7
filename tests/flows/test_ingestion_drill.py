"""The worker is killed at random moments while files are read, some of which mean harm: nothing is doubled or lost.

`OPENGATE_DRILL_FILES` and `OPENGATE_DRILL_KILLS` say how many (`make drill-ingestion`: 200 and 30);
`OPENGATE_DRILL_SEED` repeats the choices of an earlier drill.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.models import Count, Sum

from accounts.models import Role, User
from knowledge import document_reader, splitting
from knowledge.files import delete_discarded, storage
from knowledge.kinds import Kind
from knowledge.models import (
    UNFINISHED,
    Chunk,
    Collection,
    Document,
    Draft,
    DraftEmbedding,
    Embedding,
    Lexemes,
    Space,
    Status,
)
from knowledge.parsing import Page
from knowledge.readers import Options
from tests.flows.worker import Worker
from tests.inference.documents import text_pdf
from tests.knowledge import files
from tests.knowledge.conftest import EMBEDDINGS, embedding, embeddings_router, upload
from tests.server import environment
from tests.upstream import Received, Reply, Upstream

FILES = int(os.environ.get("OPENGATE_DRILL_FILES", "18"))
KILLS = int(os.environ.get("OPENGATE_DRILL_KILLS", "2"))
SEED = int(os.environ.get("OPENGATE_DRILL_SEED", "0")) or random.randrange(1, 10**6)
SECONDS = 30 + 2 * FILES + 10 * KILLS

pytestmark = pytest.mark.timeout(60 + SECONDS)

WORDS = ("leave", "canteen", "letter", "council", "budget", "school", "bridge", "water", "forest", "permit", "payment")
SETTINGS = {"OPENGATE_INGESTION_LEASE_SECONDS": "2", "OPENGATE_PARSING_SECONDS": "10"}

# In one look at the database: documents whose chunks are not as their status says, with what is found of them.
HALF_STORED = """
SELECT id, status, chunks, vectors, lexemes FROM (
  SELECT document.id, document.status, count(chunk.id) AS chunks, count(vector.chunk_id) AS vectors,
    count(lexemes.chunk_id) AS lexemes
  FROM knowledge_document document
  LEFT JOIN knowledge_chunk chunk ON chunk.document_id = document.id
  LEFT JOIN knowledge_embedding vector ON vector.chunk_id = chunk.id
  LEFT JOIN knowledge_lexemes lexemes ON lexemes.chunk_id = chunk.id
  GROUP BY document.id
) found WHERE (status = 'ready') <> (chunks > 0) OR chunks <> vectors OR chunks <> lexemes
"""

CLAIMS = """
CREATE TABLE drill_claim (document_id bigint NOT NULL);
CREATE FUNCTION drill_claimed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO drill_claim VALUES (NEW.id);
  RETURN NULL;
END $$;
CREATE TRIGGER drill_claimed AFTER UPDATE ON knowledge_document FOR EACH ROW
  WHEN (NEW.lease IS NOT NULL AND NEW.lease IS DISTINCT FROM OLD.lease) EXECUTE FUNCTION drill_claimed();
"""
NO_CLAIMS = """
DROP TRIGGER drill_claimed ON knowledge_document;
DROP FUNCTION drill_claimed;
DROP TABLE drill_claim;
"""


@dataclass(frozen=True)
class File:
    """A file to upload. `ends` is how: one that means harm fails, all others are read."""

    name: str
    content: bytes
    ends: Status = Status.READY
    chunk_size: str = "200"


@cache
def _hostile() -> tuple[File, ...]:
    binary = bytes(range(256)) * 40
    bomb = files.docx(more={"word/media/zeros.bin": b"\0" * 100_000_000})
    made = {
        "truncated.pdf": files.pdf()[:1500],
        "binary.txt": binary,
        "word.pdf": files.docx(),
        "text.docx": b"Bonjour",
        "truncated.docx": files.docx()[:-40],
        "entities.docx": files.docx(files.BOMB_BODY, prolog=files.BOMB_PROLOG),
        "archive.docx": bomb,
        "blank.pdf": files.raw_pdf(b"", pages=3),
        "pages.pdf": files.raw_pdf(b"", pages=5000),
        "unfolds.pdf": files.raw_pdf(b" " * 200_000_000),
        "protected.pdf": text_pdf("A page.", password="secret"),
        "spaces.md": b"   \n\n \t ",
    }
    return tuple(File(name, content, Status.FAILED) for name, content in made.items())


@cache
def _honest() -> tuple[File, ...]:
    made = {
        "two pages.pdf": files.pdf(),
        "page.html": files.html(),
        "letter.docx": files.docx(),
        "slides.pptx": files.pptx(),
        "letter.odt": files.odt(),
        "book.epub": files.epub(),
        "mail.eml": files.eml(),
    }
    return tuple(File(name, content) for name, content in made.items())


def _text(chance: random.Random, number: int) -> File:
    """A text of one to some hundred paragraphs, and so of one to many calls for vectors."""
    paragraphs = chance.choice((1, 3, 10, 40, 150))
    lines = (f"Paragraph {line} of {number}: {' '.join(chance.choices(WORDS, k=20))}." for line in range(paragraphs))
    return File(f"text {number}.txt", "\n\n".join(lines).encode())


def _files(chance: random.Random) -> list[File]:
    """Texts for the most part; every sixth file means harm, every sixth was there before, some are of other kinds."""
    made: list[File] = []
    for number in range(FILES):
        if number % 6 == 1:
            made.append(_hostile()[number // 6 % len(_hostile())])
        elif number % 6 == 4:
            made.append(chance.choice(made))
        elif number % 6 == 5:
            made.append(_honest()[number // 6 % len(_honest())])
        else:
            made.append(_text(chance, number))
    return made


@cache
def _pieces(file: File) -> list[str]:
    """The texts that a file is split into."""
    kind = Kind(Path(file.name).suffix[1:])
    parts = list(document_reader.read(file.content, Options(kind)))
    pages = [Page(part.markdown, part.page) for part in parts if part.markdown]
    return [piece.content for piece in splitting.split(pages, splitting.Options(chunk_size=int(file.chunk_size)))]


class Model:
    """An upstream with bad days: mostly it answers at once, at times it is slow, away, or breaks off."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.did: Counter[str] = Counter()
        self.answered: Counter[bytes] = Counter()  # how often a text was

    def __call__(self, request: Received) -> Any:
        self.did["calls"] += 1
        mood = self.chance.random()
        if mood < 0.03:
            self.did["away"] += 1
            return Reply([b'{"error": {"message": "Overloaded."}}'], status=503)
        if mood < 0.05:
            self.did["cut"] += 1
            return Reply([b'{"object": '], then="cut")
        self.did["texts"] += len(request.json["input"])
        self.answered.update(hashlib.sha256(text.encode()).digest() for text in request.json["input"])
        if mood < 0.3:
            self.did["slow"] += 1
            return Reply([json.dumps(embedding(request)).encode()], wait=self.chance.uniform(0.02, 0.5))
        return embedding(request)


class Watch(threading.Thread):
    """Looks at the database all the while: whoever searches now must not find half a document."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks = 0
        self.half_stored: list[Any] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with psycopg.connect(environment()["DATABASE_URL"], autocommit=True) as database:
            while not self.ended.wait(0.05):
                self.half_stored += database.execute(HALF_STORED).fetchall()
                self.looks += 1

    def end(self) -> None:
        self.ended.set()
        self.join(10)


def _query(text: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(text)
        return list(cursor.fetchall())


def _execute(text: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(text)


@pytest.fixture
def claims(transactional_db: None) -> Iterator[Callable[[], Counter[int]]]:
    """How often each document was taken up, noted by the database itself."""
    _execute(CLAIMS)
    yield lambda: Counter(id for (id,) in _query("SELECT document_id FROM drill_claim"))
    _execute(NO_CLAIMS)


@pytest.fixture
def collection(ada: User, role: Role, upstream: Upstream) -> Collection:
    space = Space.objects.of(embeddings_router(upstream, role))
    return Collection.objects.create(name="adas", owner=ada, space=space, language="english")


@pytest.fixture
def worker(redis_client, transactional_db, tmp_path) -> Iterator[Worker]:
    worker = Worker(tmp_path, **SETTINGS)
    worker.children = 2
    yield worker
    if worker.process is not None:
        worker.stop()


def _until(is_so: Callable[[], bool], deadline: float, worker: Worker) -> None:
    while not is_so():
        assert time.monotonic() < deadline, f"{_unfinished()}\n{worker.said[-5000:]}"
        time.sleep(0.05)


def _unfinished() -> list[Any]:
    return list(
        Document.objects.filter(status__in=UNFINISHED).values_list("id", "name", "status", "error", "tries", "deaths")
    )


def test_a_worker_that_is_killed_again_and_again_doubles_and_loses_nothing(
    as_ada, collection, upstream, worker, claims, redis_client
):
    chance = random.Random(SEED)
    model, watch, began = Model(random.Random(SEED)), Watch(), time.monotonic()
    deadline = began + SECONDS
    upstream.route(EMBEDDINGS, model)
    worker.start()
    watch.start()

    sent: dict[int, File] = {}
    for file in _files(chance):
        response = upload(as_ada, collection, file.content, file.name, chunk_size=file.chunk_size)
        assert response.status_code == 202, response.text
        sent[response.json()["id"]] = file

    deleted = set(chance.sample(sorted(sent), max(1, len(sent) // 20)))
    waiting = sorted(deleted)
    killed = 0
    while killed < KILLS and _unfinished():
        before = claims()
        _until(lambda before=before: claims() != before or not _unfinished(), deadline, worker)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1.5))
        if waiting:
            id = waiting.pop()
            assert as_ada.delete(f"/v1/documents/{id}").status_code == 204
        worker.kill()
        killed += 1
        worker.start()
    for id in waiting:
        assert as_ada.delete(f"/v1/documents/{id}").status_code == 204
    _until(lambda: not _unfinished(), deadline, worker)
    took = time.monotonic() - began
    watch.end()
    worker.stop()

    taken = claims()
    texts = sum(len(_pieces(file)) for file in {file for file in sent.values() if file.ends == Status.READY})
    again = sum(count - 1 for count in model.answered.values())
    print(
        f"\n{len(sent)} files, {len(deleted)} of them deleted meanwhile, {killed} kills, {took:.0f} s, seed {SEED}"
        f"\n  taken up {sum(taken.values())} times; how often, how many: {sorted(Counter(taken.values()).items())}"
        f"\n  model: {dict(model.did)}; different texts {texts}, answered again {again}"
        f"\n  half-stored documents in {watch.looks} looks: {len(watch.half_stored)}"
        f"\n  failed: {sorted(Counter(Document.objects.exclude(error='').values_list('error', flat=True)).items())}"
    )

    assert killed == KILLS
    assert watch.half_stored == []
    documents = {document.pk: document for document in Document.objects.all()}
    assert set(documents) == set(sent) - deleted
    ends = {id: (document.name, document.status, document.error) for id, document in documents.items()}
    assert {id: end for id, end in ends.items() if end[1] != sent[id].ends} == {}
    assert all(error.endswith(".") for _, status, error in ends.values() if status == Status.FAILED)
    assert all(not error for _, status, error in ends.values() if status == Status.READY)

    stored: dict[int, list[tuple[int, str]]] = {}
    for id, number, content in Chunk.objects.values_list("document", "number", "content"):
        stored.setdefault(id, []).append((number, content))
    expected = {id: list(enumerate(_pieces(sent[id]))) for id, end in ends.items() if end[1] == Status.READY}
    assert {id: chunks for id, chunks in stored.items() if chunks != expected.get(id)} == {}
    assert set(stored) == set(expected)

    chunks = set(Chunk.objects.values_list("id", flat=True))
    assert sorted(Embedding.objects.values_list("chunk_id", flat=True)) == sorted(chunks)
    assert sorted(Lexemes.objects.values_list("chunk_id", flat=True)) == sorted(chunks)
    collection.refresh_from_db()
    sums = Lexemes.objects.aggregate(chunks=Count("chunk_id"), words=Sum("length"))
    assert {"chunks": collection.chunks, "words": collection.words} == sums
    assert not Draft.objects.exists()
    assert not DraftEmbedding.objects.exists()

    delete_discarded()
    _, kept = storage().listdir(str(collection.pk))
    assert {f"{collection.pk}/{name}" for name in kept} == {document.file for document in documents.values()}
