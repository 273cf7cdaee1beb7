"""What a role may use, what a user may spend, and what was used."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Self
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Count, F, Q
from django.db.models.functions import Greatest

from accounts.models import Key, Organization, Role, User
from opengate import audit
from opengate.errors import Conflict
from opengate.fields import MAX_AMOUNT
from routing.errors import RouterNotFound
from routing.models import Provider, Router
from usage import calendar


class LimitType(models.TextChoices):
    TPM = "tpm", "tpm: prompt tokens a minute"
    TPD = "tpd", "tpd: prompt tokens a day"
    RPM = "rpm", "rpm: requests a minute"
    RPD = "rpd", "rpd: requests a day"


def in_words(value: int | None) -> str:
    """A limit as people read and write it."""
    return "unlimited" if value is None else "closed" if value == 0 else str(value)


class LimitQuerySet(models.QuerySet["Limit"]):
    def replace(self, role: Role, limits: Mapping[tuple[int, str], int | None]) -> None:
        """Make these the role's limits: value by router id and type. Raises RouterNotFound; run it in a transaction.

        What stays as it is, is not touched: it leaves no trace in the log of changes.
        """
        wanted = {router for router, _ in limits}
        unknown = wanted - set(Router.objects.filter(id__in=wanted).values_list("id", flat=True))
        if unknown:
            raise RouterNotFound(min(unknown))
        held = {(limit.router_id, limit.type): limit for limit in self.filter(role=role)}
        for pair in held.keys() - limits.keys():
            held[pair].delete()
        for (router_id, type), value in limits.items():
            limit = held.get((router_id, type)) or Limit(role=role, router_id=router_id, type=type)
            if limit._state.adding or limit.value != value:
                limit.value = value
                limit.save()

    def write(self, cells: Mapping[tuple[int, int, str], int | None], emptied: Iterable[tuple[int, int, str]]) -> None:
        """Set limits by role id, router id and type, remove those `emptied`, and touch no other; in a transaction."""
        emptied = set(emptied)
        touched = {*cells, *emptied}
        rows = self.select_for_update().filter(
            role__in={role for role, _, _ in touched}, router__in={router for _, router, _ in touched}
        )
        held = {(limit.role_id, limit.router_id, limit.type): limit for limit in rows} if touched else {}
        for cell in held.keys() & emptied:
            held[cell].delete()
        for (role_id, router_id, type), value in cells.items():
            limit = held.get((role_id, router_id, type)) or self._new(role_id, router_id, type, value)
            if limit.value != value:
                limit.value = value
                limit.save()

    def _new(self, role_id: int, router_id: int, type: str, value: int | None) -> "Limit":
        return self.get_or_create(role_id=role_id, router_id=router_id, type=type, defaults={"value": value})[0]

    def open_pairs(self) -> list[tuple[int, int]]:
        """Ids of role and router of those pairs that have all four limits and none of them 0."""
        pairs = self.order_by().values("role_id", "router_id")
        counted = pairs.annotate(given=Count("id"), closed=Count("id", filter=Q(value=0)))
        return list(counted.filter(given=len(LimitType.values), closed=0).values_list("role_id", "router_id"))

    def open_router(self, role: Role, router: Router, value: int | None = None) -> None:
        """Give the role all four limits of the router with one value, null for unlimited; those it has stay."""
        for type in LimitType.values:
            self.get_or_create(role=role, router=router, type=type, defaults={"value": value})


class Limit(models.Model):
    """How much a user of the role may ask of a router. Null is unlimited; 0, or no row, closes the router."""

    role = models.ForeignKey(Role, on_delete=models.CASCADE, related_name="limits")
    router = models.ForeignKey(Router, on_delete=models.CASCADE, related_name="limits")
    type = models.CharField(max_length=3, choices=LimitType.choices)
    value = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty is unlimited, 0 closes the router.")
    created = models.DateTimeField(auto_now_add=True)

    objects = LimitQuerySet.as_manager()

    class Meta:
        ordering = ["role", "router", "type"]
        constraints = [models.UniqueConstraint(fields=["role", "router", "type"], name="limit_once_a_type")]

    def __str__(self) -> str:
        return f"{self.type} {self.shown_value}"

    @property
    def shown_value(self) -> str:
        return in_words(self.value)


class Endpoint(models.TextChoices):
    AUDIO_TRANSCRIPTIONS = "/v1/audio/transcriptions", "/v1/audio/transcriptions"
    CHAT_COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions"
    EMBEDDINGS = "/v1/embeddings", "/v1/embeddings"
    OCR = "/v1/ocr", "/v1/ocr"
    RERANK = "/v1/rerank", "/v1/rerank"
    SEARCH = "/v1/search", "/v1/search"


class Period(models.TextChoices):
    DAY = "day", "day"
    MONTH = "month", "month"


def is_time_zone(name: str) -> None:
    if name not in calendar.time_zones():
        raise ValidationError(f"{name} is no time zone, such as Europe/Paris.")


class AccountQuerySet(models.QuerySet["Account"]):
    def of(self, user: User) -> "Account":
        """The user's account, locked until the transaction ends; made when it is missing."""
        Account.objects.bulk_create([Account(user=user)], ignore_conflicts=True)
        return self.select_for_update(of=("self",)).select_related("user").get(user=user)

    def set_budget(self, user: User, amount: Decimal | None) -> None:
        """Leave the user this much to spend, null for no limit; run it in a transaction."""
        if amount is not None or self.filter(user=user).exists():
            self.of(user).set_budget(amount)

    def raise_budgets(self, amount: Decimal) -> int:
        """Let those with a budget, of these, spend this much more; how many they are. Run it in a transaction.

        A few statements, however many. An overrun is forgotten, as with any budget that is set. Raises nobody's, but
        ValidationError when one would grow beyond what an account can hold, or Conflict when one was set meanwhile.
        """
        limited = self.filter(granted__isnull=False).select_related("user")
        accounts = list(limited.order_by("pk"))
        budgets = {account.user: account.budget or NOTHING for account in accounts}
        over = next((user for user, budget in budgets.items() if budget + amount > MAX_AMOUNT), None)
        if over is not None:
            raise ValidationError(f"The budget of {over} would grow beyond {MAX_AMOUNT}.")
        audit.record_all({user: {"budget": (budget, budget + amount)} for user, budget in budgets.items()})
        # Now, and no sooner: the settlements of all calls wait behind one account that is locked.
        rows = Account.objects.filter(pk__in=[account.pk for account in accounts])
        held = dict(rows.order_by("pk").select_for_update(no_key=True).values_list("pk", "granted"))
        if held != {account.pk: account.granted for account in accounts}:
            raise Conflict("The budgets were changed meanwhile, please try again.")
        rows.update(granted=Greatest("granted", "spent") + amount)
        return len(accounts)

    def due(self, now: datetime) -> Self:
        return self.filter(refills__lte=now)

    def release(self, reservation: "Reservation") -> None:
        self.filter(pk=reservation.user_id).update(
            reserved=F("reserved") - reservation.cost, carbon_reserved=F("carbon_reserved") - reservation.gco2eq
        )


NOTHING = Decimal("0.000000")


def _amount(help_text: str, **how: Any) -> "models.DecimalField[Any, Any]":
    return models.DecimalField(max_digits=24, decimal_places=6, help_text=help_text, **how)


def _limit(help_text: str) -> "models.DecimalField[Any, Any]":
    bounds = [MinValueValidator(Decimal(0)), MaxValueValidator(Decimal(MAX_AMOUNT))]
    return _amount(help_text, null=True, blank=True, validators=bounds)


class Account(models.Model):
    """What a user has spent, ever, and may spend: money in the currency of the costs, carbon in grams of CO2eq.

    `spent` only grows, with the records of the ledger, and equals their sum. A budget of x is `granted` = `spent` + x,
    null is unlimited; so what is left needs no figure of its own, and a budget that is set anew forgets an overrun.
    `reserved` is the sum of the user's reservations. Calls move `spent` and `reserved` in SQL alone (`usage.ledger`,
    `usage.budgets`); a row in memory is for reading, and for the fields that an administrator sets.
    """

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True, related_name="account")
    granted = _amount("Spent and left together; null is unlimited.", null=True, editable=False)
    spent = _amount("All costs of the user's calls.", default=Decimal(0), editable=False)
    reserved = _amount("Estimated costs of calls under way.", default=Decimal(0), editable=False)
    carbon_granted = _amount("Spent and left together, grams; null is unlimited.", null=True, editable=False)
    carbon_spent = _amount("Grams of CO2eq of all the user's calls.", default=Decimal(0), editable=False)
    carbon_reserved = _amount("Estimated grams of calls under way.", default=Decimal(0), editable=False)
    allowance = _limit("What the budget is set to at the beginning of each period; empty leaves it alone.")
    carbon_allowance = _limit("Grams of CO2eq that may be spent in each period; empty leaves that alone.")
    period = models.CharField(
        max_length=8, choices=Period.choices, blank=True, help_text="How often allowances refill."
    )
    time_zone = models.CharField(
        max_length=64, default="UTC", validators=[is_time_zone], help_text="Whose clock counts."
    )
    refill_day = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(28)],
        help_text="Day of the month at which a monthly allowance refills, 1 to 28.",
    )
    refill_hour = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(23)], help_text="Hour of the day at which it refills, 0 to 23."
    )
    refills = models.DateTimeField(null=True, editable=False, help_text="When it refills next.")

    objects = AccountQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(granted__isnull=True) | Q(granted__gte=0), name="account_granted"),
            models.CheckConstraint(condition=Q(spent__gte=0), name="account_spent_not_negative"),
            models.CheckConstraint(condition=Q(reserved__gte=0), name="account_reserved_not_negative"),
            models.CheckConstraint(
                condition=Q(carbon_granted__isnull=True) | Q(carbon_granted__gte=0), name="account_carbon_granted"
            ),
            models.CheckConstraint(condition=Q(carbon_spent__gte=0), name="account_carbon_spent_not_negative"),
            models.CheckConstraint(condition=Q(carbon_reserved__gte=0), name="account_carbon_reserved_not_negative"),
            models.CheckConstraint(
                condition=(Q(allowance__isnull=True) | Q(allowance__gte=0))
                & (Q(carbon_allowance__isnull=True) | Q(carbon_allowance__gte=0)),
                name="account_allowances_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(refills__isnull=True, allowance__isnull=True, carbon_allowance__isnull=True)
                | Q(refills__isnull=False, period__in=Period.values)
                & (Q(allowance__isnull=False) | Q(carbon_allowance__isnull=False)),
                name="account_allowance_has_a_period",
            ),
        ]
        indexes = [models.Index(fields=["refills"], name="account_by_refill", condition=Q(refills__isnull=False))]

    def __str__(self) -> str:
        return f"Account of {self.user}"

    @property
    def budget(self) -> Decimal | None:
        """What is left to spend, calls under way not counted; null is unlimited."""
        return None if self.granted is None else max(self.granted - self.spent, NOTHING)

    @property
    def carbon_budget(self) -> Decimal | None:
        """Grams that are left; null is unlimited."""
        return None if self.carbon_granted is None else max(self.carbon_granted - self.carbon_spent, NOTHING)

    @property
    def has_allowance(self) -> bool:
        return not (self.allowance is None and self.carbon_allowance is None)

    def clean(self) -> None:
        if self.has_allowance and not self.period:
            raise ValidationError({"period": "An allowance needs a period."})

    def set_budget(self, amount: Decimal | None) -> None:
        """Leave this much to spend, or no limit; run it on a locked row. An allowance keeps what null would lift."""
        granted = None if amount is None else self.spent + amount
        if granted == self.granted or (amount is None and self.allowance is not None):
            return
        before, self.granted = self.budget, granted
        self.save(update_fields=["granted"])
        audit.record(self.user, budget=(before, self.budget))

    def set_carbon_budget(self, grams: Decimal | None) -> None:
        """As `set_budget`, in grams of CO2eq."""
        granted = None if grams is None else self.carbon_spent + grams
        if granted == self.carbon_granted or (grams is None and self.carbon_allowance is not None):
            return
        before, self.carbon_granted = self.carbon_budget, granted
        self.save(update_fields=["carbon_granted"])
        audit.record(self.user, carbon_budget=(before, self.carbon_budget))

    def set_allowances(self, now: datetime) -> None:
        """Put the allowances and their calendar, as they are in memory, in force; what is new is there at once."""
        self.refills = self._next_refill(now) if self.has_allowance else None
        fields = ["allowance", "carbon_allowance", "period", "time_zone", "refill_day", "refill_hour", "refills"]
        before = Account.objects.get(pk=self.pk)
        if self.allowance is not None and self.allowance != before.allowance:
            self.granted = self.spent + self.allowance
            fields.append("granted")
        if self.carbon_allowance is not None and self.carbon_allowance != before.carbon_allowance:
            self.carbon_granted = self.carbon_spent + self.carbon_allowance
            fields.append("carbon_granted")
        self.save(update_fields=fields)

    def refill(self, now: datetime) -> None:
        """Begin a new period; run it on a locked row. What was left of the last one is forgotten, overruns too."""
        changes: dict[str, Any] = {"refills": self._next_refill(now)}
        if self.allowance is not None:
            changes["granted"] = F("spent") + self.allowance
        if self.carbon_allowance is not None:
            changes["carbon_granted"] = F("carbon_spent") + self.carbon_allowance
        Account.objects.filter(pk=self.pk).update(**changes)

    def _next_refill(self, now: datetime) -> datetime:
        zone = ZoneInfo(self.time_zone)
        if self.period == Period.DAY:
            return calendar.next_day(now, zone, self.refill_hour)
        return calendar.next_month(now, zone, self.refill_day, self.refill_hour)


class Reservation(models.Model):
    """What a call under way may cost: taken from the user's account before it starts, freed by its settlement.

    It is kept alive by the process that answers the call; one that expires belongs to a process that died, and is
    settled at its estimate. `record` is the usage record as it would be then. That of a user who is gone ends the same
    way, and moves no account.
    """

    request_id = models.CharField(max_length=32, primary_key=True)
    # Without a constraint: a user who calls without a pause could not be deleted, for there is always one more.
    user = models.ForeignKey(User, on_delete=models.DO_NOTHING, db_constraint=False, related_name="reservations")
    cost = _amount("What is held of the account: its `reserved` has it.")
    gco2eq = _amount("Grams of CO2eq that are held: its `carbon_reserved` has them.", verbose_name="gCO2eq")
    prompt_tokens = models.PositiveIntegerField()
    completion_tokens = models.PositiveIntegerField()
    record = models.JSONField()
    created = models.DateTimeField()
    expires = models.DateTimeField(db_index=True)

    class Meta:
        ordering: ClassVar[list[str]] = ["created"]
        constraints = [
            models.CheckConstraint(condition=Q(cost__gte=0) & Q(gco2eq__gte=0), name="reservation_not_negative")
        ]

    def __str__(self) -> str:
        return self.request_id


class Estimate(models.Model):
    """What a router's calls usually need, learned from its last ones: the 95th percentile, or the most of a few.

    `overrun` is by how much they cost more than was expected of them: 1.5 is half as much again, 1 the least.
    """

    router = models.OneToOneField(Router, on_delete=models.CASCADE, primary_key=True, related_name="estimate")
    prompt_tokens = models.PositiveIntegerField()
    completion_tokens = models.PositiveIntegerField()
    overrun = models.DecimalField(max_digits=9, decimal_places=3, default=Decimal(1))
    calls = models.PositiveIntegerField(help_text="How many calls it was learned from.")

    def __str__(self) -> str:
        return f"{self.prompt_tokens} and {self.completion_tokens} tokens"


class Outcome(models.TextChoices):
    FINISHED = "finished", "Finished"
    CLIENT_LEFT = "client_left", "Caller hung up"
    UPSTREAM_FAILED = "upstream_failed", "Provider failed"
    REFUSED_MIDWAY = "refused_midway", "Refused after admission"
    FAILED = "failed", "Gateway failed"
    RECOVERED = "recovered", "Process died; charged at the estimate"


def _trace(model: Any, **how: Any) -> "models.ForeignKey[Any, Any]":
    """The id of a row that may be gone: history keeps it, and a deletion does not search ten million records."""
    return models.ForeignKey(model, models.DO_NOTHING, null=True, db_constraint=False, db_index=False, **how)


class UsageRecord(models.Model):
    """One admitted call, however it ended. Never any prompt or answer text.

    Ids are kept without database constraints and names are copied beside them: a record outlives its user, key,
    router and provider, and deleting one of those rewrites no history.
    """

    request_id = models.CharField(max_length=32)
    created = models.DateTimeField()
    user = _trace(settings.AUTH_USER_MODEL, related_name="usage_records")
    user_email = models.CharField("user", max_length=254)
    organization = _trace(Organization)
    organization_name = models.CharField("organization", max_length=255, null=True)
    key = _trace(Key)
    key_name = models.CharField("key", max_length=255)
    router = _trace(Router)
    router_name = models.CharField("router", max_length=255)
    provider = _trace(Provider)
    provider_model_name = models.CharField("provider's model", max_length=255, null=True)
    endpoint = models.CharField(max_length=64)
    method = models.CharField(max_length=8)
    status = models.PositiveSmallIntegerField(
        help_text="HTTP status of the answer; 499 when the caller left before it."
    )
    outcome = models.CharField(max_length=16, choices=Outcome.choices)
    latency_ms = models.PositiveIntegerField()
    ttft_ms = models.PositiveIntegerField("time to first token, ms", null=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    total_tokens = models.PositiveBigIntegerField(default=0)
    tokens_estimated = models.BooleanField(default=False, help_text="The provider gave no figures, or not all.")
    cost_prompt_tokens = models.DecimalField("price of a million prompt tokens", max_digits=18, decimal_places=6)
    cost_completion_tokens = models.DecimalField(
        "price of a million completion tokens", max_digits=18, decimal_places=6
    )
    cost = models.DecimalField(max_digits=24, decimal_places=6, default=0)
    estimated_cost = models.DecimalField(
        max_digits=24, decimal_places=6, null=True, help_text="What it was expected to cost, where a budget was asked."
    )
    kwh_min = models.FloatField("kWh, least", default=0)
    kwh_max = models.FloatField("kWh, most", default=0)
    kgco2eq_min = models.FloatField("kgCO2eq, least", default=0)
    kgco2eq_max = models.FloatField("kgCO2eq, most", default=0)
    gco2eq = models.DecimalField(
        "gCO2eq", max_digits=24, decimal_places=6, default=0, help_text="Grams between least and most, as accounted."
    )
    flight = models.JSONField("flight record", null=True, help_text="How the call went, step by step.")

    class Meta:
        verbose_name = "request"
        ordering: ClassVar[list[str]] = ["-created", "-id"]
        indexes = [
            # With the status, so that a user's answered calls are counted in the index.
            models.Index(fields=["user", "-created"], include=["status"], name="usage_of_user"),
            models.Index(fields=["router", "-created"], name="usage_of_router"),
            models.Index(fields=["-created"], name="usage_by_time"),
            models.Index(fields=["outcome", "-created"], condition=~Q(outcome="finished"), name="usage_not_finished"),
        ]
        constraints = [
            # Not `unique` of the field, which would bring a second index, for patterns.
            models.UniqueConstraint(fields=["request_id"], name="usage_once_a_request"),
            models.CheckConstraint(condition=Q(cost__gte=0) & Q(gco2eq__gte=0), name="usage_cost_not_negative"),
        ]

    def __str__(self) -> str:
        return self.request_id


class DailyUsage(models.Model):
    """The sums of a UTC day's records of one user, key, organization, router, provider and endpoint.

    Written in the statement that writes the records, so the two agree at any moment. It stays when records are old
    enough to be deleted; names are those of the day's last record.
    """

    day = models.DateField()
    user = _trace(settings.AUTH_USER_MODEL, related_name="daily_usage")
    user_email = models.CharField("user", max_length=254)
    organization = _trace(Organization)
    organization_name = models.CharField("organization", max_length=255, null=True)
    key = _trace(Key)
    key_name = models.CharField("key", max_length=255)
    router = _trace(Router)
    router_name = models.CharField("router", max_length=255)
    provider = _trace(Provider)
    provider_model_name = models.CharField("provider's model", max_length=255, null=True)
    endpoint = models.CharField(max_length=64)
    requests = models.PositiveBigIntegerField(default=0)
    errors = models.PositiveBigIntegerField(default=0, help_text="Calls without an answer of status 2xx.")
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    cost = models.DecimalField(max_digits=24, decimal_places=6, default=0)
    gco2eq = models.DecimalField("gCO2eq", max_digits=24, decimal_places=6, default=0)
    kwh = models.FloatField("kWh", default=0)
    records_deleted = models.BooleanField(default=False, help_text="The records of that day are no longer kept.")

    class Meta:
        ordering: ClassVar[list[str]] = ["-day", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["day", "user", "key", "organization", "router", "provider", "endpoint"],
                nulls_distinct=False,
                name="one_sum_a_day",
            )
        ]
        indexes = [models.Index(fields=["user", "-day"], name="daily_usage_of_user")]
        verbose_name_plural = "daily usage"

    def __str__(self) -> str:
        return f"{self.day} {self.user_email} {self.router_name}"


class Grain(models.TextChoices):
    HOUR = "hour", "hour"
    DAY = "day", "day"


def _histogram(help_text: str) -> Any:
    return ArrayField(models.IntegerField(), help_text=help_text)


class Rollup(models.Model):
    """The sums of the calls of one hour or day of UTC, for the charts of the console; `usage.rollups` writes them.

    They follow the records by some seconds. What must be true at any moment is asked of the records or of DailyUsage.
    """

    grain = models.CharField(max_length=4, choices=Grain.choices)
    start = models.DateTimeField()
    organization = _trace(Organization)
    organization_name = models.CharField("organization", max_length=255, null=True)
    router = _trace(Router)
    router_name = models.CharField("router", max_length=255)
    provider = _trace(Provider)
    provider_model_name = models.CharField("provider's model", max_length=255, null=True)
    requests = models.PositiveBigIntegerField()
    errors = models.PositiveBigIntegerField(help_text="Calls without an answer of status 2xx.")
    prompt_tokens = models.PositiveBigIntegerField()
    completion_tokens = models.PositiveBigIntegerField()
    cost = models.DecimalField(max_digits=24, decimal_places=6)
    gco2eq = models.DecimalField("gCO2eq", max_digits=24, decimal_places=6)
    kwh = models.FloatField("kWh")
    latency = _histogram("How many answered calls fell between the bounds of `usage.rollups.BOUNDS_MS`.")
    ttft = _histogram("The same of the times to the first token.")

    class Meta:
        ordering: ClassVar[list[str]] = ["-start", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["grain", "start", "organization", "router", "provider"],
                nulls_distinct=False,
                name="one_rollup_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"{self.grain} {self.start:%Y-%m-%d %H:%M} {self.router_name}"


class RollupProgress(models.Model):
    """How far the roll-ups have come; one row, or none before the first run.

    Records up to `settled_id` are in them, and no more will appear among those: ids that are given out in order are
    committed in any. `mark_id` follows once every transaction that ran when it was taken, before `mark_xid`, is over.
    """

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    settled_id = models.BigIntegerField(default=0)
    mark_id = models.BigIntegerField(default=0)
    mark_xid = models.BigIntegerField(null=True)
    marked = models.DateTimeField(null=True)
    last_day = models.DateField(null=True, help_text="Up to where days from before the first run are summed up.")
    is_backfilled = models.BooleanField(default=False)
    short_users = ArrayField(
        models.BigIntegerField(), default=list, help_text="Whose budgets end soon, as the last run found."
    )
    as_of = models.DateTimeField(null=True, help_text="When the last run that came to its end began.")

    def __str__(self) -> str:
        return f"up to record {self.settled_id}"
