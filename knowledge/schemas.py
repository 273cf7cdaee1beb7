"""A search as a body asks for it: of its own, or as a tool of a chat."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from knowledge.queries import Filter, FilterType, Query, SearchMethod
from opengate.fields import MAX_ID, TEXT

MAX_NUMBER = 9_999_999_999_999_999
MAX_QUERY = 100_000


def _within(number: int | float) -> int | float:
    if not abs(number) <= MAX_NUMBER:
        raise ValueError(f"number should be within ±{MAX_NUMBER}")
    return number


def _whole(number: object) -> object:
    """1.0 is an integer, as JSON has it."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


WHOLE = BeforeValidator(_whole)  # after the bounds, which the document would not show otherwise
Id = Annotated[StrictInt, Field(ge=1, le=MAX_ID), WHOLE]
Ids = Annotated[list[Id], Field(max_length=100, fail_fast=True)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY, pattern=TEXT)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255, pattern=TEXT)]
Number = Annotated[
    StrictInt | StrictFloat,
    AfterValidator(_within),
    WithJsonSchema({"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}),
]


class ComparisonFilter(BaseModel):
    """A test of one value of the chunks' metadata; both are compared as text."""

    model_config = ConfigDict(extra="allow")

    key: Word = Field(description="Name of the value.")
    type: FilterType = Field(description="`eq` equals, `sw` starts with, `ew` ends with, `co` contains.")
    value: StrictBool | Number | Word = Field(description="What it is compared with; taken literally.")

    def filter(self) -> Filter:
        return Filter(self.key, self.type, self.value)


class CompoundFilter(BaseModel):
    """Several tests."""

    model_config = ConfigDict(extra="allow")

    filters: Annotated[list[ComparisonFilter], Field(min_length=2, max_length=4)] = Field(description="The tests.")
    operator: Literal["and", "or"] = Field(description="Whether all must hold, or one.")


class SearchArgs(BaseModel):
    """Where and how to search."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    collection_ids: Ids = Field(
        default=[],
        validation_alias=AliasChoices("collection_ids", "collections"),
        description="Collections to search; all that you may read without any.",
    )
    document_ids: Ids = Field([], description="Only in these documents.")
    metadata_filters: ComparisonFilter | CompoundFilter | None = Field(None, description="Tests of the metadata.")
    limit: Annotated[StrictInt, Field(ge=1, le=100), WHOLE] = Field(10, description="Most results.")
    offset: Annotated[StrictInt, Field(ge=0, le=2**31 - 1), WHOLE] = Field(
        0, description="How many results to leave out."
    )
    method: SearchMethod = Field(
        SearchMethod.SEMANTIC, description="By meaning, by words (BM25), or both (reciprocal rank fusion)."
    )
    rff_k: Annotated[StrictInt, Field(ge=0, le=16384), WHOLE] = Field(60, description="Constant of the fusion.")
    score_threshold: Annotated[StrictFloat, Field(ge=0, le=1)] = Field(
        0, description="Least score; only with `semantic`."
    )

    def query_for(self, text: str) -> Query:
        """The search for a text."""
        given = self.metadata_filters
        filters = given.filters if isinstance(given, CompoundFilter) else [given] if given else []
        return Query(
            text=text,
            method=self.method,
            collection_ids=self.collection_ids,
            document_ids=self.document_ids,
            filters=[item.filter() for item in filters],
            any_filter=isinstance(given, CompoundFilter) and given.operator == "or",
            limit=self.limit,
            offset=self.offset,
            rff_k=self.rff_k,
            score_threshold=self.score_threshold,
        )


class SearchTool(SearchArgs):
    """A tool of a chat: what the last message asks is looked for in documents, and answered from them."""

    type: Literal["search"] = Field(description="Always `search`.")


class CreateSearch(SearchArgs):
    """A search."""

    query: Text = Field(validation_alias=AliasChoices("query", "prompt"), description="What is looked for.")

    @model_validator(mode="before")
    @classmethod
    def _asks(cls, data: Any) -> Any:
        given = getattr(data, "_obj", data)
        if isinstance(given, Mapping) and given.get("query") is None and given.get("prompt") is None:
            raise ValueError("query or prompt must be provided")
        return data
