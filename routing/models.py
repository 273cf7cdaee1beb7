"""Routers, the names callers use, and providers, the upstreams that serve them."""

from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator, URLValidator
from django.db import models, transaction
from django.db.models import Count, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from opengate import egress
from opengate.encryption import EncryptedTextField
from opengate.errors import APIError
from routing import circuit
from routing.errors import (
    AliasesExist,
    InconsistentMaxContextLength,
    InconsistentMaxContextLengthOfNewRouter,
    InconsistentVectorSize,
    InconsistentVectorSizeOfNewRouter,
    InvalidProviderType,
    InvalidProviderTypeForNewRouter,
    RouterExists,
)
from routing.zones import ZONES


class ModelType(models.TextChoices):
    AUTOMATIC_SPEECH_RECOGNITION = "automatic-speech-recognition", "automatic-speech-recognition"
    IMAGE_TEXT_TO_TEXT = "image-text-to-text", "image-text-to-text"
    IMAGE_TO_TEXT = "image-to-text", "image-to-text"
    TEXT_EMBEDDINGS_INFERENCE = "text-embeddings-inference", "text-embeddings-inference"
    TEXT_GENERATION = "text-generation", "text-generation"
    TEXT_CLASSIFICATION = "text-classification", "text-classification"


CHAT_TYPES = frozenset({ModelType.TEXT_GENERATION, ModelType.IMAGE_TEXT_TO_TEXT})


class ProviderType(models.TextChoices):
    ALBERT = "albert", "albert"
    OPENAI = "openai", "openai"
    MISTRAL = "mistral", "mistral"
    TEI = "tei", "tei"
    VLLM = "vllm", "vllm"


class LoadBalancingStrategy(models.TextChoices):
    SHUFFLE = "shuffle", "shuffle"
    LEAST_BUSY = "least_busy", "least_busy"
    LOWEST_LATENCY = "lowest_latency", "lowest_latency"
    CHEAPEST = "cheapest", "cheapest"
    LOWEST_CARBON = "lowest_carbon", "lowest_carbon"


class Metric(models.TextChoices):
    TTFT = "ttft", "ttft"
    LATENCY = "latency", "latency"
    INFLIGHT = "inflight", "inflight"
    PERFORMANCE = "performance", "performance"


SERVED_BY = {
    ModelType.TEXT_GENERATION: {"albert", "mistral", "openai", "vllm"},
    ModelType.IMAGE_TEXT_TO_TEXT: {"albert", "mistral", "openai", "vllm"},
    ModelType.TEXT_EMBEDDINGS_INFERENCE: {"albert", "openai", "mistral", "tei", "vllm"},
    ModelType.AUTOMATIC_SPEECH_RECOGNITION: {"albert", "mistral", "openai", "vllm"},
    ModelType.TEXT_CLASSIFICATION: {"albert", "tei", "vllm"},
    ModelType.IMAGE_TO_TEXT: {"mistral"},
}
DEFAULT_URLS = {
    ProviderType.ALBERT: "https://albert.api.etalab.gouv.fr/",
    ProviderType.OPENAI: "https://api.openai.com/",
    ProviderType.MISTRAL: "https://api.mistral.ai/",
}
KEY_PATTERN = r"^[!-~]+$"  # what a header carries


class RouterQuerySet(models.QuerySet["Router"]):
    def described(self) -> Self:
        """With names, `provider_count`, and what the first provider says of the model: two queries for any number."""
        providers = Provider.objects.filter(router=OuterRef("pk"))
        counts = providers.order_by().values("router").annotate(count=Count("pk")).values("count")
        first = providers.order_by("id")
        return self.prefetch_related("names").annotate(
            provider_count=Coalesce(Subquery(counts), 0),
            vector_size=Subquery(first.values("vector_size")[:1]),
            max_context_length=Subquery(first.values("max_context_length")[:1]),
        )


class Router(models.Model):
    """A model as callers know it. Saving it claims its name in the one namespace of names and aliases."""

    name = models.CharField(max_length=255, unique=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="routers", null=True, blank=True
    )
    type = models.CharField(max_length=64, choices=ModelType.choices)
    load_balancing_strategy = models.CharField(
        max_length=32,
        choices=LoadBalancingStrategy.choices,
        default=LoadBalancingStrategy.SHUFFLE,
        help_text="Which provider is tried first: any (shuffle), the lowest 95th percentile of the time to first token "
        "(least_busy), the quicker of two (lowest_latency), the least upstream cost (cheapest), the fewest grams of "
        "CO2eq a token (lowest_carbon).",
    )
    cost_prompt_tokens = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        default=Decimal(0),
        validators=[MinValueValidator(0)],
        help_text="Price of a million prompt tokens.",
    )
    cost_completion_tokens = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        default=Decimal(0),
        validators=[MinValueValidator(0)],
        help_text="Price of a million completion tokens.",
    )
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    objects: ClassVar[RouterQuerySet] = RouterQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(cost_prompt_tokens__gte=0) & Q(cost_completion_tokens__gte=0),
                name="router_costs_not_negative",
            )
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        # An alias of its own may become its name: `rename` swaps them.
        if RouterName.objects.filter(value=self.name).exclude(router_id=self.pk).exists():
            raise ValidationError({"name": f"Router {self.name} already exists."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        with transaction.atomic():
            super().save(*args, **kwargs)
            RouterName.objects.update_or_create(router=self, is_alias=False, defaults={"value": self.name})

    def rename(self, name: str, aliases: Iterable[str] | None) -> None:
        """Save the router with this name and, unless None, these aliases in place of the former; in a transaction.

        Aliases that go are gone first, so that a router and its alias may swap names.
        """
        held = {row.value: row for row in self.names.filter(is_alias=True)} if self.pk else {}
        wanted = list(held) if aliases is None else list(dict.fromkeys(aliases))
        for value in held.keys() - set(wanted):
            held[value].delete()
        self.name = name
        self.save()
        for value in wanted:
            if value not in held:
                RouterName.objects.create(router=self, value=value)

    def name_conflict(self, name: str, aliases: Iterable[str]) -> APIError:
        """The refusal for names of which one is another router's, or is wanted twice."""
        others = RouterName.objects.exclude(router_id=self.pk) if self.pk else RouterName.objects.all()
        aliases = list(dict.fromkeys(aliases))
        taken = set(others.filter(value__in=[name, *aliases]).values_list("value", flat=True))
        clashing = [alias for alias in aliases if alias in taken or alias == name]
        return AliasesExist(clashing) if clashing and name not in taken else RouterExists(name)

    def serves(self, provider_type: str) -> bool:
        """Whether providers of that type can serve this router's model."""
        return provider_type in SERVED_BY[ModelType(self.type)]

    def require_fit(self, provider: "Provider", *, moving: bool = False) -> None:
        """Raises one of the four faults of a provider that cannot serve this router's model beside those that do.

        What an upstream does not tell (null) contradicts nothing. `moving` chooses the words.
        """
        if not self.serves(provider.type):
            raise InvalidProviderTypeForNewRouter if moving else InvalidProviderType(provider.type, self.type)
        for other in self.providers.exclude(pk=provider.pk):
            sizes = other.vector_size, provider.vector_size
            if None not in sizes and sizes[0] != sizes[1]:
                raise InconsistentVectorSizeOfNewRouter if moving else InconsistentVectorSize(self.name, *sizes)  # type: ignore[arg-type]
            lengths = other.max_context_length, provider.max_context_length
            if None not in lengths and lengths[0] != lengths[1]:
                if moving:
                    raise InconsistentMaxContextLengthOfNewRouter
                raise InconsistentMaxContextLength(self.name, *lengths)  # type: ignore[arg-type]


class RouterNameQuerySet(models.QuerySet["RouterName"]):
    def aliases(self) -> Self:
        return self.filter(is_alias=True)


class RouterName(models.Model):
    """A name that a router answers to: its own, which follows Router.name, or an alias. Unique over all routers."""

    value = models.CharField("alias", max_length=255, unique=True)
    router = models.ForeignKey(Router, on_delete=models.CASCADE, related_name="names")
    is_alias = models.BooleanField(default=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)

    objects = RouterNameQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["router"], condition=Q(is_alias=False), name="router_has_one_own_name")
        ]

    def __str__(self) -> str:
        return self.value


class Provider(models.Model):
    """One upstream that serves a router's model."""

    router = models.ForeignKey(Router, on_delete=models.CASCADE, related_name="providers")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="providers", null=True, blank=True
    )
    type = models.CharField(max_length=16, choices=ProviderType.choices)
    url = models.CharField(
        max_length=512, blank=True, help_text="Without /v1; empty takes the address of albert, openai or mistral."
    )
    key = EncryptedTextField(
        null=True,
        blank=True,
        validators=[RegexValidator(KEY_PATTERN, "Letters, digits and signs of ASCII, without spaces.")],
        help_text="The upstream's API key; encrypted at rest.",
    )
    timeout = models.PositiveIntegerField(
        default=300, validators=[MinValueValidator(1), MaxValueValidator(3600)], help_text="Seconds."
    )
    model_name = models.CharField(max_length=255, help_text="The model's name at the upstream.")
    model_hosting_zone = models.CharField(
        max_length=3, choices=[(zone, zone) for zone in ZONES], default="WOR", help_text="ISO 3166-1 alpha-3, or WOR."
    )
    model_total_params = models.PositiveIntegerField(default=0, help_text="Billions of parameters.")
    model_active_params = models.PositiveIntegerField(default=0, help_text="Billions of parameters.")
    cost_prompt_tokens = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="What the upstream charges for a million prompt tokens, for the strategy cheapest; empty if unknown.",
    )
    cost_completion_tokens = models.DecimalField(
        max_digits=18,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text="What the upstream charges for a million completion tokens.",
    )
    qos_metric = models.CharField(
        max_length=16,
        choices=Metric.choices,
        null=True,
        blank=True,
        help_text="inflight: calls at a time. Over the last two minutes, ttft and latency: 95th percentile in ms; "
        "performance: median of completion tokens a second. Beyond the limit calls go elsewhere, or wait.",
    )
    qos_limit = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0)])
    max_context_length = models.PositiveIntegerField(null=True, blank=True, editable=False)
    vector_size = models.PositiveIntegerField(null=True, blank=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["router", "url", "model_name"], name="provider_once_a_router"),
            models.CheckConstraint(
                condition=Q(qos_metric__isnull=True) | Q(qos_limit__isnull=False), name="provider_qos_has_a_limit"
            ),
            models.CheckConstraint(
                condition=(Q(cost_prompt_tokens__isnull=True) | Q(cost_prompt_tokens__gte=0))
                & (Q(cost_completion_tokens__isnull=True) | Q(cost_completion_tokens__gte=0)),
                name="provider_costs_not_negative",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model_name} at {self.url}"

    def clean(self) -> None:
        # The address is completed here, so that the constraints that follow see what will be stored.
        self.url = self.completed_url()
        if not self.url:
            raise ValidationError({"url": "URL is required for this model provider type."})
        try:
            check_url(self.url)
        except ValidationError as error:
            raise ValidationError({"url": error.messages}) from None
        if self.qos_metric and self.qos_limit is None:
            raise ValidationError({"qos_limit": "QoS value is required if QoS metric is provided."})
        if self.router_id and not self.router.serves(self.type):
            message = f"Invalid model provider type {self.type} for {self.router.type} router."
            raise ValidationError({"type": message})

    def learn(self, max_context_length: int | None, vector_size: int | None) -> bool:
        """Store what the upstream told of the model, if that is news; what it did not tell (null) is not forgotten."""
        known = self.max_context_length, self.vector_size
        self.max_context_length = max_context_length or self.max_context_length
        self.vector_size = vector_size or self.vector_size
        if known == (self.max_context_length, self.vector_size):
            return False
        self.save(update_fields=["max_context_length", "vector_size", "updated"])
        return True

    def completed_url(self) -> str:
        """The address with its trailing slash; the type's own where none is given, empty where there is none."""
        url = self.url or (DEFAULT_URLS.get(ProviderType(self.type), "") if self.type else "")
        return url if not url or url.endswith("/") else f"{url}/"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save it; outages of the past say nothing about what it is now."""
        self.url = self.completed_url()
        super().save(*args, **kwargs)
        transaction.on_commit(partial(circuit.forget, self.pk))


def check_url(url: str) -> None:
    """Raises ValidationError unless it is http or https and a host that providers may have, and paths can be added."""
    URLValidator(schemes=["http", "https"])(_checkable(url))
    if any(sign in url for sign in "?#@\\"):
        raise ValidationError("Enter a URL without credentials, query or fragment.")
    if not url[:8].lower().startswith(settings.PROVIDER_SCHEMES):
        raise ValidationError(f"Enter a URL that starts with {' or '.join(settings.PROVIDER_SCHEMES)}.")
    reason = egress.refusal_of_host(urlsplit(url).hostname or "")
    if reason is not None:
        raise ValidationError(reason)


def _checkable(url: str) -> str:
    """Django's URL check wants a dot in the host; hosts of a cluster (http://vllm:8000/) have none."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    name, colon, port = host.partition(":")
    return url if "." in name or name.startswith("[") else f"{scheme}://{name}.internal{colon}{port}{slash}{path}"
