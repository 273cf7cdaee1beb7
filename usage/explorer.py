"""What the console shows of requests: which of them, by a form that no value can break, and the story of each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django import forms
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.models import Key, User
from opengate.console_forms import ROW_ID
from opengate.csv_export import newest_first
from routing.models import Provider, Router
from usage.models import Outcome, UsageRecord

PERIODS: Mapping[str, tuple[str, timedelta]] = {
    "hour": ("Last hour", timedelta(hours=1)),
    "day": ("Last 24 hours", timedelta(days=1)),
    "week": ("Last 7 days", timedelta(days=7)),
    "month": ("Last 30 days", timedelta(days=30)),
}
USUAL_PERIOD = "day"
FOUND_AT_MOST = 50  # users, or keys, whose records one search shows
YEARS = range(2000, 2101)
REQUEST_ID = re.compile("[0-9a-f]{32}")
STATUS = re.compile(r"\A[1-5](xx|[0-9][0-9])\Z")

# Columns of the CSV file, which are fields of the record.
COLUMNS = (
    "created",
    "request_id",
    "user_email",
    "organization_name",
    "key_name",
    "router_name",
    "provider_id",
    "provider_model_name",
    "endpoint",
    "method",
    "status",
    "outcome",
    "latency_ms",
    "ttft_ms",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "tokens_estimated",
    "cost_prompt_tokens",
    "cost_completion_tokens",
    "cost",
    "estimated_cost",
    "kwh_min",
    "kwh_max",
    "kgco2eq_min",
    "kgco2eq_max",
    "gco2eq",
)


def rows_of(records: QuerySet[UsageRecord], columns: Sequence[str] = COLUMNS) -> Iterator[Sequence[Any]]:
    """The records' columns, newest first, for a CSV file."""
    return newest_first(records.defer("flight"), lambda record: [getattr(record, name) for name in columns])


class RequestFilter(forms.Form):
    """Which requests. All fields may be empty; without a period it is the last 24 hours. Rows that are gone are asked
    for by their ids.

    What has no index is looked for within the period, so that bounds what is read.
    """

    period = forms.ChoiceField(choices=[(name, words) for name, (words, _) in PERIODS.items()], required=False)
    since = forms.DateTimeField(required=False, label="From (UTC)")
    until = forms.DateTimeField(required=False, label="To (UTC)")
    user = forms.CharField(required=False, max_length=254, label="User's e-mail, or a part")
    key = forms.CharField(required=False, max_length=255, label="Key's name, or a part")
    router = forms.TypedChoiceField(coerce=int, empty_value=None, required=False)
    provider = forms.TypedChoiceField(coerce=int, empty_value=None, required=False)
    status = forms.RegexField(STATUS, required=False, error_messages={"invalid": "A status is like 429, or like 4xx."})
    outcome = forms.ChoiceField(choices=[("", "Any"), *Outcome.choices], required=False)
    q = forms.CharField(required=False, max_length=255, label="Request id")

    def __init__(self, given: Mapping[str, Any]) -> None:
        asked = {name: given[name] for name in self.base_fields if name in given}
        super().__init__({"period": USUAL_PERIOD} | asked)
        providers = Provider.objects.order_by("router__name", "model_name", "id")
        self._offer(
            "router", [(str(id), name) for id, name in Router.objects.order_by("name").values_list("id", "name")]
        )
        named = providers.values_list("id", "router__name", "model_name")
        self._offer("provider", [(str(id), f"{model} ({router})") for id, router, model in named])
        for name in ("since", "until"):
            self.fields[name].widget = forms.DateTimeInput(attrs={"type": "datetime-local"})
        self.fields["status"].widget.attrs |= {"list": "statuses", "size": 6, "placeholder": "Any"}
        self.fields["q"].widget.attrs |= {"size": 16}
        self.fields["key"].widget.attrs |= {"size": 12}

    def _offer(self, name: str, rows: list[tuple[str, str]]) -> None:
        asked = str(self.data.get(name, ""))
        if ROW_ID.fullmatch(asked) and asked not in dict(rows):
            rows = [*rows, (asked, f"{asked} (gone)")]
        field: Any = self.fields[name]
        field.choices = [("", "Any"), *rows]

    def clean_since(self) -> datetime | None:
        return self._moment("since")

    def clean_until(self) -> datetime | None:
        return self._moment("until")

    def _moment(self, name: str) -> datetime | None:
        moment: datetime | None = self.cleaned_data[name]
        if moment is not None and moment.year not in YEARS:
            raise forms.ValidationError(f"The year is between {YEARS[0]} and {YEARS[-1]}.")
        return moment

    def clean_q(self) -> str:
        asked = str(self.cleaned_data["q"]).strip().lower()
        if asked and not REQUEST_ID.fullmatch(asked):
            raise forms.ValidationError("A request id has 32 hexadecimal digits.")
        return asked

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        since, until = given.get("since"), given.get("until")
        if since and until and since >= until:
            self.add_error("until", "The end is before the beginning.")
        return given

    @property
    def faults(self) -> list[str]:
        """What is wrong with what was asked for, with the field's name."""
        return [
            f"{self.fields[name].label or name.title()}: {' '.join(map(str, found))}"
            for name, found in self.errors.items()
        ]

    def of(self, records: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        """Those of the records that were asked for; none when the question makes no sense."""
        if not self.is_valid():
            return records.none()
        asked = self.cleaned_data
        if asked["q"]:
            return records.filter(request_id=asked["q"])
        records = records.filter(self._period())
        if asked["user"]:
            records = records.filter(_of_user(asked["user"].strip()))
        if asked["key"]:
            records = records.filter(_of_key(asked["key"].strip()))
        for name in ("router", "provider"):
            if asked[name] is not None:
                records = records.filter(**{f"{name}_id": asked[name]})
        if asked["status"]:
            records = records.filter(_of_status(asked["status"]))
        if asked["outcome"]:
            records = records.filter(outcome=asked["outcome"])
        return records

    def _period(self) -> Q:
        since, until = self.cleaned_data["since"], self.cleaned_data["until"]
        if since is None and until is None:
            return Q(created__gte=timezone.now() - PERIODS[self.cleaned_data["period"] or USUAL_PERIOD][1])
        found = Q()
        if since is not None:
            found &= Q(created__gte=since)
        if until is not None:
            found &= Q(created__lt=until)
        return found


def _of_user(term: str) -> Q:
    """By the users there are, whose records have an index; somebody who is gone is found by the whole e-mail."""
    users = list(User.objects.filter(email__icontains=term).values_list("id", flat=True)[:FOUND_AT_MOST])
    return Q(user_id__in=users) if users else Q(user_email=term)


def _of_key(term: str) -> Q:
    """As `_of_user`: a key's records are its user's."""
    keys = list(Key.objects.filter(name__icontains=term).values_list("id", "user_id")[:FOUND_AT_MOST])
    if not keys:
        return Q(key_name=term)
    return Q(user_id__in={user for _, user in keys}, key_id__in={key for key, _ in keys})


def _of_status(asked: str) -> Q:
    found = Q(status=asked)
    if asked.endswith("xx"):
        first = int(asked[0]) * 100
        found = Q(status__gte=first, status__lt=first + 100)
    if asked[0] in "45":
        found &= ~Q(outcome=Outcome.FINISHED)  # as is everything that has such a status: of these there is an index
    return found


# The story of one request

OUTCOME_BADGES: Mapping[str, str] = {
    Outcome.FINISHED: "good",
    Outcome.CLIENT_LEFT: "fair",
    Outcome.REFUSED_MIDWAY: "fair",
    Outcome.RECOVERED: "fair",
}
LIMIT_WORDS: Mapping[str, str] = {
    "rpm": "Requests a minute",
    "rpd": "Requests a day",
    "tpm": "Prompt tokens a minute",
    "tpd": "Prompt tokens a day",
}
STRATEGY_WORDS: Mapping[str, str] = {
    "shuffle": "by chance",
    "least_busy": "the quickest to its first token first",
    "lowest_latency": "the quicker of two by chance first",
    "cheapest": "the cheapest first",
    "lowest_carbon": "the one with the least carbon first",
}
WHY_WORDS: Mapping[str, tuple[str, str, str]] = {  # badge, its word, the reason
    "chosen": ("good", "Chosen", "The first in order that had room."),
    "not_needed": ("", "Not needed", "One before it had room."),
    "tried": ("bad", "Tried", "It failed before in this call."),
    "open": ("bad", "Circuit open", "It was away too often lately."),
    "full": ("fair", "Full", "It had all the calls that it takes at a time."),
}
CAME_WORDS: Mapping[str, tuple[str, str]] = {
    "answered": ("good", "Answered"),
    "failed": ("bad", "Failed"),
    "broke": ("bad", "Broke off"),
    "unended": ("fair", "Given up before it answered"),
}


def status_badge(status: int) -> str:
    return "good" if status < 300 else "bad" if status >= 500 else "fair"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of time of a call, in ms from its start; `x` and `width` are percents of the whole."""

    name: str
    start_ms: float
    end_ms: float
    x: str
    width: str

    @property
    def took_ms(self) -> float:
        return round(self.end_ms - self.start_ms, 1)


class Story:
    """A record for people to read."""

    def __init__(self, record: UsageRecord) -> None:
        self.record = record
        self.flight: Mapping[str, Any] = record.flight or {}
        self.status_badge = status_badge(record.status)
        self.outcome_badge = OUTCOME_BADGES.get(record.outcome, "bad")
        self.models = {provider.get("id"): provider.get("model") for provider in self.flight.get("providers", ())}

    @property
    def carbon_range(self) -> tuple[Decimal, Decimal]:
        """Grams, least and most."""
        return Decimal(repr(self.record.kgco2eq_min)) * 1000, Decimal(repr(self.record.kgco2eq_max)) * 1000

    @property
    def are_limits_unchecked(self) -> bool:
        return self.flight.get("limits") == "unchecked"

    @property
    def limits(self) -> list[dict[str, Any]]:
        found = self.flight.get("limits")
        if not isinstance(found, Mapping):
            return []
        shown = []
        for type, words in LIMIT_WORDS.items():
            state = found.get(type)
            row: dict[str, Any] = {"type": type, "words": words}
            if state is not None:
                limit = state["limit"]
                row |= state | {"left": max(limit - state["used"], 0), "low": limit // 2, "high": limit * 9 // 10}
            shown.append(row)
        return shown

    @property
    def strategy(self) -> str:
        name = self.flight.get("strategy") or ""
        return STRATEGY_WORDS.get(name, name)

    @property
    def providers(self) -> list[dict[str, Any]]:
        shown = []
        for provider in self.flight.get("providers", ()):
            badge, word, reason = WHY_WORDS.get(provider["why"], ("", provider["why"], ""))
            if "takes" in provider:
                reason = f"It takes {provider['takes']} at a time."
            shown.append({**provider, "badge": badge, "word": word, "reason": reason})
        return shown

    @property
    def tries(self) -> list[dict[str, Any]]:
        shown = []
        for tried in self.flight.get("tries", ()):
            badge, words = CAME_WORDS.get(tried["came"], ("", tried["came"]))
            shown.append({**tried, "model": self.models.get(tried["provider"]), "badge": badge, "words": words})
        return shown

    @property
    def stages(self) -> list[Stage]:
        """In the order in which they began."""
        times = self.flight.get("times_ms") or {}
        whole = max((value for value in times.values() if value), default=0) or 1.0

        def stage(name: str, start: float, end: float) -> Stage:
            x = min(max(start / whole * 100, 0), 99.5)
            return Stage(name, start, end, f"{x:.2f}%", f"{min(max((end - start) / whole * 100, 0.5), 100 - x):.2f}%")

        found = []
        if "admitted" in times:
            found.append(stage("Found the model and checked limits", 0.0, times["admitted"]))
        if "reserved" in times:
            found.append(stage("Reserved in the budget", times.get("admitted", 0.0), times["reserved"]))
        if "placed" in times:
            waited = times.get("waited", 0.0)
            found.append(stage("Got a place at a provider", times["placed"] - waited, times["placed"]))
        elif "waited" in times:
            ended = times.get("recorded", times["waited"])
            found.append(stage("Waited for a place, in vain", ended - times["waited"], ended))
        for tried in self.tries:
            began = tried["began_ms"]
            found.append(stage(f"{tried['words']}: {tried['model'] or 'provider'}", began, began + tried["took_ms"]))
        if "first_token" in times and "last_byte" in times:
            found.append(stage("From the first token to the last", times["first_token"], times["last_byte"]))
        if "last_byte" in times and "recorded" in times:
            found.append(stage("Counted and recorded", times["last_byte"], times["recorded"]))
        elif set(times) == {"recorded"}:
            found.append(stage("Answered by the gateway itself", 0.0, times["recorded"]))
        return sorted(found, key=lambda one: (one.start_ms, one.end_ms))
