"""Search: by meaning, by words, or both; only in what the caller may read, which each statement itself asks."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from accounts.principals import Principal
from inference import gateway
from knowledge import lexical, nearest
from knowledge.embedding import model_of, vectors_in
from knowledge.errors import WrongSearchMethod
from knowledge.models import Space
from knowledge.queries import Asked, Query, Scope, Search, SearchMethod, scope_of
from opengate.database import in_thread
from opengate.errors import APIError
from opengate.request_id import new_request_id
from usage import accounting
from usage.accounting import Call
from usage.models import Endpoint

LEXICAL = "lexical"  # in the usage record of a search that asks no model
ASKED_CHARACTERS = 8_192  # of a query that a model embeds: more than any reads
FUSED = 50  # of each method, at least


@dataclass(frozen=True, slots=True)
class Result:
    """A chunk that was found. `score` is large when it fits: see `Query.method` for its range."""

    method: str
    score: float
    chunk_id: int
    number: int
    collection_id: int
    document_id: int
    content: str
    metadata: dict[str, Any] | None
    created: datetime

    def as_search(self) -> dict[str, Any]:
        """As the API writes it."""
        chunk = {
            "object": "chunk",
            "id": self.number,
            "collection_id": self.collection_id,
            "document_id": self.document_id,
            "content": self.content,
            "metadata": self.metadata,
            "created": int(self.created.timestamp()),
        }
        return {"method": self.method, "score": self.score, "chunk": chunk}


async def find(principal: Principal, query: Query, request_id: str) -> tuple[list[Result], dict[str, Any]]:
    """One page of what fits, best first, and the usage of the models that were asked.

    Semantic scores are (1 + cosine) / 2, lexical ones BM25, hybrid ones sums of 1 / (rff_k + rank). Raises
    CollectionNotFound for a named collection that the caller may not read, WrongSearchMethod for a threshold with
    another method, and what stands in the way of embedding the query.
    """
    if query.score_threshold and query.method != SearchMethod.SEMANTIC:
        raise WrongSearchMethod
    scope = await in_thread(scope_of)(principal.user_id, query.collection_ids)
    if query.method == SearchMethod.LEXICAL:
        asked = await _unasked(principal, request_id)
    else:
        asked = await ask(principal, query, scope, request_id)
    return await in_thread(run)(query, scope, asked), accounting.total(asked.usages)


async def _unasked(principal: Principal, request_id: str) -> Asked:
    """No model is asked; the search is recorded all the same."""
    async with Call(principal, Endpoint.SEARCH, request_id) as call:
        call.admit_unrouted(LEXICAL)
        return Asked(usages=[call.usage()])


async def ask(principal: Principal, query: Query, scope: Scope, request_id: str) -> Asked:
    """Have each space's model embed the query, on the caller's account.

    Where all that can be read is searched, a model that the caller may not use, or that is away, takes its collections
    out of the search, as long as another answers.
    """
    asked = Asked()
    trouble: APIError | None = None
    for space in await in_thread(_spaces)(scope):
        try:
            call = Call(principal, Endpoint.SEARCH, request_id if not asked.usages else new_request_id())
            answer = await gateway.embed(
                call, {"model": model_of(space).name, "input": [query.text[:ASKED_CHARACTERS]]}
            )
            asked.usages.append(answer["usage"])
            (asked.vectors[space.pk],) = vectors_in(answer, space)
        except APIError as error:
            if query.collection_ids:
                raise
            trouble = error
    if trouble is not None and not asked.vectors:
        raise trouble
    return asked if asked.usages else await _unasked(principal, request_id)


def _spaces(scope: Scope) -> list[Space]:
    ids = {corpus.space_id for corpus in scope.corpora if corpus.space_id is not None}
    return list(Space.objects.filter(id__in=ids).select_related("router").order_by("id"))


# the statements


def run(query: Query, scope: Scope, asked: Asked) -> list[Result]:
    """What one page of the query finds."""
    with connection.cursor() as cursor:
        search = Search(cursor, query, scope, asked)
        ranked = {
            SearchMethod.SEMANTIC: _semantic,
            SearchMethod.LEXICAL: _lexical,
            SearchMethod.HYBRID: _hybrid,
        }[query.method](search)
        if not ranked:
            return []
        cursor.execute(
            f"""
            WITH {ranked}, page AS (
              SELECT * FROM ranked ORDER BY score DESC, chunk_id LIMIT %(limit)s OFFSET %(offset)s
            )
            SELECT page.score, chunk.id, chunk.number, chunk.collection_id, chunk.document_id, chunk.content,
              chunk.metadata, chunk.created
            FROM page JOIN knowledge_chunk chunk ON chunk.id = page.chunk_id ORDER BY page.score DESC, page.chunk_id
            """,
            search.parameters,
        )
        return [
            Result(query.method, score, id, number, collection, document, content, _object(metadata), created)
            for score, id, number, collection, document, content, metadata, created in cursor.fetchall()
        ]


def _object(metadata: Any) -> dict[str, Any] | None:
    """Django's cursors leave JSON as text."""
    return json.loads(metadata) if isinstance(metadata, str) else metadata


def _hybrid(search: Search) -> str:
    """Reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009."""
    depth = max(2 * search.query.depth, FUSED)
    search.parameters |= {"depth": depth, "rff_k": search.query.rff_k}
    by_meaning = nearest.statement(search, depth)
    by_words = lexical.statement(search)
    lists = [
        f"SELECT chunk_id, row_number() OVER (ORDER BY {order}, chunk_id) AS rank FROM {name} "
        f"ORDER BY {order}, chunk_id LIMIT %(depth)s"
        for name, order, is_there in (("nearest", "distance", by_meaning), ("worded", "score DESC", by_words))
        if is_there
    ]
    if not lists:
        return ""
    union = " UNION ALL ".join(f"({ranking})" for ranking in lists)
    parts = [part for part in (by_meaning, by_words) if part]
    return ", ".join(
        [
            *parts,
            "ranked AS (SELECT chunk_id, sum(1.0 / (%(rff_k)s + rank))::float AS score "
            f"FROM ({union}) AS fused GROUP BY chunk_id)",
        ]
    )


def _semantic(search: Search) -> str:
    found = nearest.statement(search, search.query.depth)
    if not found:
        return ""
    search.parameters["score_threshold"] = search.query.score_threshold
    return (
        f"{found}, ranked AS (SELECT chunk_id, score FROM "
        "(SELECT chunk_id, greatest(0, least(1, (2 - distance) / 2)) AS score FROM nearest) AS scored "
        "WHERE score >= %(score_threshold)s)"
    )


def _lexical(search: Search) -> str:
    worded = lexical.statement(search)
    return f"{worded}, ranked AS (SELECT chunk_id, score FROM worded)" if worded else ""
