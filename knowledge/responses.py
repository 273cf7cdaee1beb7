"""Answers of a search, as they are documented."""

from typing import Any, Literal

from ninja import Schema
from pydantic import Field

from inference.responses import Usage


class FoundChunk(Schema):
    """A piece of a document."""

    object: Literal["chunk"] = Field("chunk", description="Always `chunk`.")
    id: int = Field(description="Its number inside the document, from 0.")
    collection_id: int = Field(description="Id of its collection.")
    document_id: int = Field(description="Id of its document.")
    content: str = Field(description="Its text.")
    metadata: dict[str, Any] | None = Field(None, description="What is known of it; `page` counts from 1.")
    created: int = Field(description="When it came, in Unix seconds.")


class Search(Schema):
    """One result."""

    method: Literal["semantic", "lexical", "hybrid"] = Field(description="How it was found.")
    score: float = Field(description="More is better: from 0 to 1 by meaning, unbounded by words.")
    chunk: FoundChunk = Field(description="What was found.")


class Searches(Schema):
    """Results, best first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Search] = Field(description="The results.")
    usage: Usage = Field(description="Tokens, cost and carbon of embedding the query.")
