"""CSV files: readable by any spreadsheet, harmless in each, written as they are read."""

import csv
import io
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from opengate.csv_export import BATCH, cell, newest_first, rows_as_csv
from opengate.loops import in_loop
from tests.usage.records import record
from usage import ledger
from usage.models import UsageRecord


async def parts(response) -> list[bytes]:
    return [part async for part in response]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, ""),
        (True, "true"),
        (-3, "-3"),
        (Decimal("0.000001"), "0.000001"),
        (Decimal("1E+3"), "1000"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@sum", "'@sum"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("a=1", "a=1"),
        ('é, "x"\n', 'é, "x"\n'),
    ],
)
def test_a_cell_is_plain_and_no_formula(value, written):
    assert cell(value) == written


def test_what_was_written_is_read_again():
    rows = [("é", 'a "quoted", word'), ("two\nlines", "=cmd()")]
    response = rows_as_csv("vie privée.csv", ["one", "=two"], iter(rows))
    text = b"".join(in_loop(parts(response))).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["one", "'=two"],
        ["é", 'a "quoted", word'],
        ["two\nlines", "'=cmd()"],
    ]
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert response["Content-Disposition"] == "attachment; filename*=utf-8''vie%20priv%C3%A9e.csv"


def test_rows_are_read_while_they_are_sent_and_not_kept():
    read = 0

    def rows():
        nonlocal read
        for read in range(1, 200_001):
            yield ("x" * 50, read)

    async def story() -> tuple[int, int, int]:
        sent, first = 0, None
        tracemalloc.start()
        async for part in rows_as_csv("long.csv", ["text", "number"], rows()):
            if first is None:
                assert read == 0
                first = len(part)
            sent += len(part)
            assert read % BATCH == 0
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return first or 0, sent, most

    first, sent, most = in_loop(story())
    assert first == len("text,number\r\n")
    assert sent > 10_000_000
    assert most < 1_000_000


@pytest.mark.usefixtures("transactional_db")
def test_pages_go_on_where_the_last_one_ended(ada):
    ledger.store([record(f"{n}", user=ada, created=f"2026-01-0{1 + n % 3}T00:00:00+00:00") for n in range(10)])
    expected = list(UsageRecord.objects.values_list("id", flat=True))
    for page in (1, 3, 10, 11):
        assert list(newest_first(UsageRecord.objects.all(), lambda row: row.id, page)) == expected
