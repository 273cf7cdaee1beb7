"""What is looked for, where, and by whom: the parts of a search that its statements are made of."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import connection
from django.db.backends.utils import CursorWrapper

from knowledge.embedding import Vector
from knowledge.errors import CollectionNotFound
from knowledge.models import Collection


class SearchMethod(StrEnum):
    SEMANTIC = "semantic"
    LEXICAL = "lexical"
    HYBRID = "hybrid"


class FilterType(StrEnum):
    EQUALS = "eq"
    STARTS_WITH = "sw"
    ENDS_WITH = "ew"
    CONTAINS = "co"


@dataclass(frozen=True, slots=True)
class Filter:
    """A test of one value of a chunk's metadata, both as text."""

    key: str
    type: FilterType
    value: str | int | float | bool

    def sql(self, name: str, parameters: dict[str, Any]) -> str:
        """A condition on `chunk`; `name` begins the names of its parameters."""
        is_text = isinstance(self.value, str)
        parameters[f"{name}_key"] = self.key
        parameters[f"{name}_value"] = self.value if is_text else json.dumps(self.value)
        key, value = f"%({name}_key)s", f"%({name}_value)s" + ("" if is_text else "::jsonb #>> '{}'")
        found = f"(chunk.metadata ->> {key})"
        return {
            FilterType.EQUALS: "(chunk.metadata IS NOT NULL AND knowledge_facets(chunk.metadata) "
            f"@> ARRAY[knowledge_facet({key}::text, ({value})::text)])",
            FilterType.STARTS_WITH: f"starts_with({found}, {value})",
            FilterType.ENDS_WITH: f"right({found}, length({value})) = {value}",
            FilterType.CONTAINS: f"strpos({found}, {value}) > 0",
        }[self.type]


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, and where. `filters` hold all, or with `any_filter` at least one."""

    text: str
    method: SearchMethod = SearchMethod.SEMANTIC
    collection_ids: Sequence[int] = ()
    document_ids: Sequence[int] = ()
    filters: Sequence[Filter] = ()
    any_filter: bool = False
    limit: int = 10
    offset: int = 0
    rff_k: int = 60
    score_threshold: float = 0

    @property
    def depth(self) -> int:
        return self.offset + self.limit

    def conditions(self, parameters: dict[str, Any]) -> str:
        """What a `chunk` must fulfil, beside being visible; empty for nothing."""
        found = []
        if self.document_ids:
            parameters["document_ids"] = list(self.document_ids)
            found.append("chunk.document_id = ANY(%(document_ids)s)")
        filters = [item.sql(f"filter_{number}", parameters) for number, item in enumerate(self.filters)]
        if filters:
            found.append("(" + (" OR " if self.any_filter else " AND ").join(filters) + ")")
        return " AND ".join(found)


class Corpus(NamedTuple):
    """What one space and language hold of the collections that are searched."""

    space_id: int | None
    language: str
    chunks: int
    words: int


@dataclass(slots=True)
class Scope:
    """The collections that are searched: those named, or all that the caller may read."""

    user_id: int
    ids: Sequence[int] = ()
    corpora: Sequence[Corpus] = ()

    def parameters(self) -> dict[str, Any]:
        return {"user_id": self.user_id, "collection_ids": list(self.ids)}

    @property
    def sql(self) -> str:
        """Which rows of `collection` these are: the rights are in each statement, whatever was known before."""
        visible = "(collection.owner_id = %(user_id)s OR collection.visibility = 'public')"
        return visible + (" AND collection.id = ANY(%(collection_ids)s)" if self.ids else "")

    def chunks(self, space_id: int | None = None) -> int:
        return sum(corpus.chunks for corpus in self.corpora if space_id in (None, corpus.space_id))


@dataclass(slots=True)
class Asked:
    """A query as the models of the spaces embed it, and what that used."""

    vectors: dict[int, Vector] = field(default_factory=dict)
    usages: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Search:
    """A search under way: what the parts of its statement are made of. Each part adds its own `parameters`.

    `conditions` are what a `chunk` must fulfil, beside being visible; empty for nothing.
    """

    cursor: CursorWrapper
    query: Query
    scope: Scope
    asked: Asked
    parameters: dict[str, Any] = field(init=False)
    conditions: str = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = self.scope.parameters() | {"limit": self.query.limit, "offset": self.query.offset}
        self.conditions = self.query.conditions(self.parameters)


@dataclass(slots=True)
class WholeScope(Scope):
    """Collections whoever owns them, named by id: for the console alone, whose administrators see all."""

    @property
    def sql(self) -> str:
        return "collection.id = ANY(%(collection_ids)s)"


def whole_scope(collection: Collection) -> Scope:
    """A collection by itself, whoever asks: whether they may is the console's to know."""
    return _measured(WholeScope(collection.owner_id, [collection.pk]))


def scope_of(user_id: int, collection_ids: Sequence[int]) -> Scope:
    """The collections named, or all that the user may read; raises CollectionNotFound."""
    return _measured(Scope(user_id, list(dict.fromkeys(collection_ids))))


def _measured(scope: Scope) -> Scope:
    """With what its collections hold; raises CollectionNotFound for one that is named and not there."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT array_agg(id), space_id, language, sum(chunks), sum(words) FROM knowledge_collection collection "
            f"WHERE {scope.sql} {'' if scope.ids else 'AND chunks > 0'} GROUP BY space_id, language",
            scope.parameters(),
        )
        rows = cursor.fetchall()
    found = {id for ids, *_ in rows for id in ids}
    for id in scope.ids:
        if id not in found:
            raise CollectionNotFound(id)
    scope.corpora = [
        Corpus(space_id, language, int(chunks), int(words)) for _, space_id, language, chunks, words in rows if chunks
    ]
    return scope
