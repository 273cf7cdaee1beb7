"""Charts of a page: what `charts.js` draws, and what the table beneath says to those who do not see it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal

Value = int | float | Decimal | None


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or the bars of one colour; a value for each label of its chart, None where nothing is known.

    What `is_bad` counts failures, and is drawn in the colour of those.
    """

    name: str
    values: Sequence[Value]
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """`id` is unique on its page; `labels` stand along the time, `unit` behind each value."""

    id: str
    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    kind: Literal["bar", "line"] = "bar"
    unit: str = ""
    stacked: bool = False

    def as_json(self) -> dict[str, Any]:
        """Numbers as JSON has them; a chart is looked at, not added up."""
        told = asdict(self)
        for series in told["series"]:
            series["values"] = [float(v) if isinstance(v, Decimal) else v for v in series["values"]]
        return told

    @property
    def is_empty(self) -> bool:
        return not any(value for series in self.series for value in series.values)

    def rows(self) -> Iterator[tuple[str, Sequence[Value]]]:
        """Label and values, for the table."""
        for index, label in enumerate(self.labels):
            yield label, [series.values[index] for series in self.series]
