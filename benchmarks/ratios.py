"""Ratios between systems of one run: each is taken within a round; the median, lowest and highest round are told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True)
class Spread:
    """Of a figure over the rounds of one run."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        return {name: float(f"{value:.5g}") for name, value in asdict(self).items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Round by round, ours over theirs; a round in which theirs is nothing tells nothing and is left out."""
    return Spread.of([our / their for our, their in zip(ours, theirs, strict=True) if their > 0])


def added_ratio(ours: Sequence[float], theirs: Sequence[float], direct: Sequence[float]) -> Spread:
    """Round by round, what we add to `direct` over what they add."""
    rounds = zip(ours, theirs, direct, strict=True)
    added = [(our - bare, their - bare) for our, their, bare in rounds]
    return ratio([our for our, _ in added], [their for _, their in added])


def fraction(value: float) -> str:
    """As a reader compares: 1/38 for what is small, 1.3 × for what is not."""
    if 0 < value < 0.8:
        return f"1/{1 / value:.0f}" if value < 0.1 else f"1/{1 / value:.1f}"
    return f"{value:.2f} ×" if value < 10 else f"{value:.1f} ×"
