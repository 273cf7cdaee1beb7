"""Tables as CSV files of any length: written while they are read, a batch at a time, so that memory stays flat."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

from django.db.models import Model, Q, QuerySet
from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

from opengate.database import in_thread

BATCH = 500  # rows that are read and sent at a time
PAGE = 2000  # rows of a query
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet might run


def rows_as_csv(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingHttpResponse:
    """The file `name`, sent as it is written; the caller who leaves ends it.

    `rows` are read in threads, a batch in each, and no connection lives from one batch to the next: whatever reads
    them from the database asks anew for each page, as `newest_first` does, and uses no cursor.
    """
    disposition = content_disposition_header(as_attachment=True, filename=name) or "attachment"
    return StreamingHttpResponse(
        _batches(header, rows),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": disposition, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )


def newest_first(rows: QuerySet[Any], values: Callable[[Any], Sequence[Any]], page: int = PAGE) -> Iterator[Any]:
    """What `values` says of each row, by `created` and `id`, in queries that each go on where the last one ended.

    So a slow reader holds no transaction open, and rows that come meanwhile shift none.
    """
    ordered = rows.order_by("-created", "-id")
    last: Model | None = None
    while True:
        found = list((ordered.filter(_after(last)) if last is not None else ordered)[:page])
        yield from map(values, found)
        if len(found) < page:
            return
        last = found[-1]


def _after(last: Any) -> Q:
    return Q(created__lte=last.created) & (Q(created__lt=last.created) | Q(id__lt=last.id))


async def _batches(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> AsyncIterator[bytes]:
    yield _written([header])  # before the first query: the caller sees that it comes
    source = iter(rows)
    read = in_thread(lambda: _written(islice(source, BATCH)))
    while written := await read():
        yield written


def _written(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def cell(value: Any) -> str:
    """ISO times, decimal points, nothing for None; text that a spreadsheet would take for a formula is quoted."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case int() | float():
            return str(value)
        case datetime() | date():
            return value.isoformat()
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
