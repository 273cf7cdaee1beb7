"""The flight record of a call: what was checked, which providers were possible, what each try came to, and when.

It is for whoever asks afterwards why a call went as it did. No text of a prompt or an answer is in it, nor the words of
a provider's error, which may repeat a prompt: only our own.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from routing.places import UNLIMITED, Choice, Verdict
from usage.budgets import Held
from usage.limits import WINDOW_SECONDS, Admission

Flown = dict[str, Any]  # as JSON types; None is left out, but for a limit, which is unlimited then


@dataclass(slots=True)
class Try:
    """One attempt at a provider; moments are those of `time.perf_counter`."""

    provider_id: int
    began: float
    has_answered: bool = False  # the answer, or the beginning of a stream
    ended: float | None = None
    status: int | None = None  # of its failure
    error: str = ""

    def as_json(self, started: float, now: float) -> Flown:
        came = "answered" if self.has_answered else "unended"
        ended = now if self.ended is None else self.ended
        shown: Flown = {
            "provider": self.provider_id,
            "began_ms": _ms(self.began - started),
            "took_ms": _ms(ended - self.began),
            "came": came,
        }
        if self.status is not None:
            shown |= {"came": "broke" if self.has_answered else "failed", "status": self.status, "error": self.error}
        return shown


@dataclass(slots=True)
class Flight:
    """What is noted on the way of one call; cheap to note, and made into JSON once."""

    started: float
    admission: Admission | None = None
    admitted_at: float | None = None
    held: Held | None = None
    reserved_at: float | None = None
    strategy: str | None = None
    choice: Choice | None = None  # the last one
    sought_at: float | None = None
    placed_at: float | None = None
    tries: list[Try] = field(default_factory=list)
    last_byte_at: float | None = None

    def admitted(self, admission: Admission) -> None:
        self.admission, self.admitted_at = admission, time.perf_counter()
        if self.sought_at is not None:  # in the same trip
            self.sought_at = self.admitted_at

    def reserved(self, held: Held) -> None:
        self.held, self.reserved_at = held, time.perf_counter()

    def seeks(self, strategy: str) -> Choice:
        """A place is looked for; the answer is to be filled in by whoever finds it."""
        self.strategy, self.choice = strategy, Choice()
        self.sought_at, self.placed_at = time.perf_counter(), None
        return self.choice

    def placed(self, provider_id: int) -> None:
        self.placed_at = time.perf_counter()
        self.tries.append(Try(provider_id, self.placed_at))

    def answered(self) -> None:
        """The provider gave an answer, or the beginning of one."""
        if self.tries:
            self.tries[-1].has_answered = True
            self.tries[-1].ended = time.perf_counter()

    def troubled(self, status: int, error: str) -> None:
        """The provider gave none, or broke off; `error` is in our words."""
        if self.tries:
            last = self.tries[-1]
            last.ended, last.status, last.error = time.perf_counter(), status, error

    def counted(self) -> None:
        """All that the provider sends is there."""
        self.last_byte_at = time.perf_counter()
        if self.tries:
            self.tries[-1].ended = self.last_byte_at

    def as_json(self, ttft_ms: int | None) -> Flown:
        now = time.perf_counter()
        flown: Flown = {"times_ms": self._times(now, ttft_ms)}
        if self.admission is not None:
            flown["limits"] = _limits(self.admission) if self.admission.is_checked else "unchecked"
        if self.held is not None:
            flown["budget"] = {"cost": str(self.held.cost), "gco2eq": str(self.held.grams)}
        if self.choice is not None:
            flown["strategy"] = self.strategy
            flown["providers"] = _providers(self.choice)
            if not self.choice.is_counted:
                flown["uncounted"] = True
        if self.tries:
            flown["tries"] = [one.as_json(self.started, now) for one in self.tries]
        return flown

    def _times(self, now: float, ttft_ms: int | None) -> Flown:
        """Of each stage that was reached, since the start; `waited` is for the place."""
        started = self.started
        times: Flown = {}
        if self.admitted_at is not None:
            times["admitted"] = _ms(self.admitted_at - started)
        if self.reserved_at is not None:
            times["reserved"] = _ms(self.reserved_at - started)
        if self.sought_at is not None:
            times["waited"] = _ms((self.placed_at or now) - self.sought_at)
        if self.placed_at is not None:
            times["placed"] = _ms(self.placed_at - started)
        if ttft_ms is not None:
            times["first_token"] = ttft_ms
        if self.last_byte_at is not None:
            times["last_byte"] = _ms(self.last_byte_at - started)
        times["recorded"] = _ms(now - started)
        return times


def _ms(seconds: float) -> float:
    """Of a time that is not negative, to a tenth; `round` does it by way of a text, eight times a call."""
    return int(seconds * 10_000 + 0.5) / 10


def _limits(admission: Admission) -> Flown:
    found: Flown = dict.fromkeys(WINDOW_SECONDS)
    for window in admission.windows:
        found[window.type] = {"limit": window.limit, "used": window.taken, "resets_ms": window.reset_ms}
    return found


def _providers(choice: Choice) -> list[Flown]:
    """In the order of preference."""
    found: list[Flown] = []
    for option, verdict in choice.verdicts():
        shown: Flown = {"id": option.provider.id, "model": option.provider.model_name, "why": verdict.value}
        if verdict == Verdict.FULL and option.capacity != UNLIMITED:
            shown["takes"] = option.capacity
        found.append(shown)
    return found
