"""What was used in a period."""

import csv
import json
import re
from argparse import ArgumentParser
from calendar import monthrange
from datetime import UTC, date
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from tabulate import tabulate

from usage import reporting
from usage.calendar import day

# Where a spreadsheet would begin a formula: at the start, or behind what it may take for the end of a cell.
FORMULA = re.compile(r"(?:^|(?<=[;,|]))(?= *[=+\-@＝＋－＠])")
HEADINGS = {
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
    "gco2eq": "gCO2eq",
    "kwh": "kWh",
}


class Command(BaseCommand):
    help = "Sums up requests, tokens, cost, carbon and energy of a period of UTC days."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", dest="first", type=day, metavar="DAY", help="First day; 30 days ago by default.")
        parser.add_argument("--to", dest="last", type=day, metavar="DAY", help="Last day; today by default.")
        parser.add_argument("--month", metavar="YYYY-MM", help="A whole month, instead of --from and --to.")
        parser.add_argument("--by", choices=list(reporting.GROUPS), default="user", help="What to sum up by.")
        parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="How to print it.")

    def handle(self, *args: Any, **options: Any) -> None:
        first, last = _period(options)
        rows = reporting.report(options["by"], first, last)
        {"table": self._table, "csv": self._csv, "json": self._json}[options["format"]](
            rows, options["by"], first, last
        )

    def _table(self, rows: list[dict[str, Any]], by: str, first: date, last: date) -> None:
        self.stdout.write(f"From {first} to {last}, by {by}:\n")
        first_column = {"id": "id", "name": by} if _is_named(by) else {by: by}
        columns = first_column | {field: HEADINGS.get(field, field) for field in reporting.SUMS}
        footer = dict.fromkeys(first_column, "") | reporting.total(rows)
        footer[list(first_column)[-1]] = "all"
        lines = [[_shown(row[field]) for field in columns] for row in [*rows, footer]]
        right = ["left"] * len(first_column) + ["right"] * len(reporting.SUMS)
        self.stdout.write(tabulate(lines, list(columns.values()), colalign=right, disable_numparse=True))

    def _csv(self, rows: list[dict[str, Any]], by: str, first: date, last: date) -> None:
        names = ["id", "name"] if _is_named(by) else [by]
        writer = csv.writer(self.stdout, lineterminator="\n")
        writer.writerow([*names, *reporting.SUMS])
        for row in rows:
            writer.writerow([_cell(row[name]) for name in (*names, *reporting.SUMS)])

    def _json(self, rows: list[dict[str, Any]], by: str, first: date, last: date) -> None:
        """Money and grams are texts: JSON's numbers are floats to most who read them."""
        content = {"from": first, "to": last, "by": by, "rows": rows, "total": reporting.total(rows)}
        self.stdout.write(json.dumps(content, default=str, ensure_ascii=False))


def _is_named(by: str) -> bool:
    return len(set(reporting.GROUPS[by])) == 2


def _period(options: dict[str, Any]) -> tuple[date, date]:
    today = timezone.now().astimezone(UTC).date()
    if options["month"] is not None:
        if options["first"] or options["last"]:
            raise CommandError("Give either --month or --from and --to.")
        try:
            first = date.fromisoformat(f"{options['month']}-01")
        except ValueError:
            raise CommandError("--month must be like 2026-11.") from None
        return first, first.replace(day=monthrange(first.year, first.month)[1])
    last = options["last"] or today
    first = options["first"] or date.fromordinal(max(last.toordinal() - 30, 1))
    if first > last:
        raise CommandError(f"The period ends before it begins: {first} to {last}.")
    return first, last


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, Decimal | float):
        return f"{value:,.6f}"
    if isinstance(value, int):
        return f"{value:,}"
    return _printable(str(value))


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would run as a formula is led by an apostrophe, and stays a name."""
    if value is None:
        return ""
    if isinstance(value, str):
        return FORMULA.sub("'", _printable(value))
    return f"{value:f}" if isinstance(value, Decimal) else value


def _printable(text: str) -> str:
    """Users name their keys; terminals obey what is not printable, and spreadsheets end lines and cells at it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
