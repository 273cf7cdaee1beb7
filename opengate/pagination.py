"""Lists: one page of a query, in the order asked for, with the number of rows there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers

from opengate.fields import Constant, QueryInteger

DEFAULT_LIMIT = 10
MAX_LIMIT = 100


class PageQuery(serializers.Serializer):
    """Which page of a list."""

    offset = QueryInteger(min_value=0, default=0, help_text="How many rows to leave out.")
    limit = QueryInteger(min_value=1, max_value=MAX_LIMIT, default=DEFAULT_LIMIT, help_text="Most rows to answer.")


def ordered_query(*fields: str, by: str = "order_by", direction: str = "order_direction") -> type[PageQuery]:
    """A page query that also takes the order: one of `fields`, the first by default."""
    choices = serializers.ChoiceField(choices=fields, default=fields[0], help_text="What to sort by.")
    directions = serializers.ChoiceField(choices=["asc", "desc"], default="asc", help_text="Smallest or largest first.")

    def validate(self: PageQuery, attrs: dict[str, Any]) -> dict[str, Any]:
        return attrs | {"order": ("-" if attrs[direction] == "desc" else "") + attrs[by]}

    return type("OrderedPageQuery", (PageQuery,), {by: choices, direction: directions, "validate": validate})


@dataclass(frozen=True)
class Counted:
    """Rows of which somebody knows how many they are without counting them."""

    rows: QuerySet[Any]
    total: int


def page(given: QuerySet[Any] | Counted, query: dict[str, Any]) -> tuple[int, Sequence[Any]]:
    """How many rows there are, and those of the page: two queries, whatever their number.

    Rows that are equal in the field asked for come in the order of their ids, so that pages never overlap. A page of
    the second half is counted from the end: the last costs as much as the first.
    """
    rows, total = (given.rows, given.total) if isinstance(given, Counted) else (given, given.count())
    offset, limit = query["offset"], query["limit"]
    if offset >= total:  # also what no database could count to
        return total, []
    if "order" in query:
        sign = "-" if query["order"].startswith("-") else ""
        rows = rows.order_by(*dict.fromkeys((query["order"], f"{sign}id")))
    is_near_the_end = offset > total - offset
    if is_near_the_end:
        rows, offset, limit = rows.reverse(), max(total - offset - limit, 0), min(limit, total - offset)
    found = list(rows[offset : offset + limit])
    return total, found[::-1] if is_near_the_end else found


@cache
def list_of(item: type[serializers.Serializer], name: str) -> type[serializers.Serializer]:
    """The envelope of a list of items, for the OpenAPI document; `name` is the component's."""
    return type(
        f"{name}Serializer",
        (serializers.Serializer,),
        {
            "__doc__": "One page of a list.",
            "object": Constant("list"),
            "total": serializers.IntegerField(help_text="Rows there are."),
            "offset": serializers.IntegerField(help_text="Rows left out before the page."),
            "limit": serializers.IntegerField(help_text="Most rows on the page."),
            "data": item(many=True, help_text="The rows of the page."),
        },
    )
