"""What a role may use, and what was used."""

from collections.abc import Mapping
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q

from accounts.models import Key, Organization, Role
from routing.errors import RouterNotFound
from routing.models import Provider, Router


class LimitType(models.TextChoices):
    TPM = "tpm", "tpm: prompt tokens a minute"
    TPD = "tpd", "tpd: prompt tokens a day"
    RPM = "rpm", "rpm: requests a minute"
    RPD = "rpd", "rpd: requests a day"


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
        return "unlimited" if self.value is None else "closed" if self.value == 0 else str(self.value)


class Endpoint(models.TextChoices):
    AUDIO_TRANSCRIPTIONS = "/v1/audio/transcriptions", "/v1/audio/transcriptions"
    CHAT_COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions"
    EMBEDDINGS = "/v1/embeddings", "/v1/embeddings"
    OCR = "/v1/ocr", "/v1/ocr"
    RERANK = "/v1/rerank", "/v1/rerank"
    SEARCH = "/v1/search", "/v1/search"


class Outcome(models.TextChoices):
    FINISHED = "finished", "Finished"
    CLIENT_LEFT = "client_left", "Caller hung up"
    UPSTREAM_FAILED = "upstream_failed", "Provider failed"
    FAILED = "failed", "Gateway failed"


class UsageRecord(models.Model):
    """One admitted call, however it ended. Never any prompt or answer text.

    Ids are kept without database constraints and names are copied beside them: a record outlives its user, key,
    router and provider, and deleting one of those rewrites no history.
    """

    request_id = models.CharField(max_length=32, unique=True)
    created = models.DateTimeField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, db_constraint=False, related_name="usage_records"
    )
    user_email = models.CharField("user", max_length=254)
    organization = models.ForeignKey(Organization, models.SET_NULL, null=True, db_constraint=False, db_index=False)
    key = models.ForeignKey(Key, models.SET_NULL, null=True, db_constraint=False, db_index=False)
    key_name = models.CharField("key", max_length=255)
    router = models.ForeignKey(Router, models.SET_NULL, null=True, db_constraint=False, db_index=False)
    router_name = models.CharField("router", max_length=255)
    provider = models.ForeignKey(Provider, models.SET_NULL, null=True, db_constraint=False, db_index=False)
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
    kwh_min = models.FloatField("kWh, least", default=0)
    kwh_max = models.FloatField("kWh, most", default=0)
    kgco2eq_min = models.FloatField("kgCO2eq, least", default=0)
    kgco2eq_max = models.FloatField("kgCO2eq, most", default=0)

    class Meta:
        ordering: ClassVar[list[str]] = ["-id"]
        indexes = [
            models.Index(fields=["user", "-created"], name="usage_by_user"),
            models.Index(fields=["-created"], name="usage_by_time"),
        ]
        constraints = [models.CheckConstraint(condition=Q(cost__gte=0), name="usage_cost_not_negative")]

    def __str__(self) -> str:
        return self.request_id
