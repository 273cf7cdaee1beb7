"""What calls did, counted for `/metrics` once each at their settlement, by the contract's names.

Labels are of few values: the endpoints there are, status codes, and names of routers, which administrators give. Of
their combinations a process counts `MAX_SERIES`; a new one beyond is counted under the model `other`.
"""

from typing import Final

from prometheus_client import Counter, Histogram

from opengate.metrics import Observed, adder, registry
from opengate.quick_settings import settings
from usage.models import Endpoint

MAX_SERIES: Final = 2000
OTHER: Final = "other"
ENDPOINTS: Final = frozenset(Endpoint.values)

_CALL = ("endpoint", "model", "status_code")

_REQUESTS = Counter("ogl_inference_requests", "Calls of models.", _CALL, registry=registry)
_DURATION = Histogram(
    "ogl_inference_requests_duration_seconds",
    "How long calls of models took.",
    _CALL,
    registry=registry,
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300),
)
_TTFT = Histogram(
    "ogl_inference_ttft_milliseconds",
    "Milliseconds until the first token of streams.",
    _CALL,
    registry=registry,
    buckets=(
        *(5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500, 10_000, 15_000),
        *(20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 240_000, 300_000),
    ),
)
_SPEED = Histogram(
    "ogl_inference_output_tokens_per_second",
    "Completion tokens by the full duration of their call.",
    ("endpoint", "model"),
    registry=registry,
    buckets=(5, 10, 20, 30, 50, 75, 100, 125, 150, 200, 250, 300, 400, 500, 750, 1000),
)
_TOKENS = Counter("ogl_inference_tokens", "Tokens of models' calls.", ("endpoint", "model", "type"), registry=registry)


class _Calls:
    """All series of one endpoint, model and status, so that they are looked up once."""

    def __init__(self, endpoint: str, model: str, status: str) -> None:
        self._labels = (endpoint, model, status)
        self.add = adder(_REQUESTS.labels(endpoint, model, status))
        self.duration = Observed(_DURATION.labels(endpoint, model, status))
        self.speed = Observed(_SPEED.labels(endpoint, model))
        self.add_prompt = adder(_TOKENS.labels(endpoint, model, "prompt"))
        self.add_completion = adder(_TOKENS.labels(endpoint, model, "completion"))
        self._ttft: Observed | None = None

    @property
    def ttft(self) -> Observed:
        """Of streams alone."""
        if self._ttft is None:
            self._ttft = Observed(_TTFT.labels(*self._labels))
        return self._ttft


_calls: dict[tuple[str, str, int], _Calls] = {}


def count(
    endpoint: str, model: str, status: int, latency_ms: int, ttft_ms: int | None, prompt: int, completion: int
) -> None:
    """Count one call of a router; prompt and completion in tokens."""
    calls = _calls.get((endpoint, model, status))
    if calls is None:
        if not settings.METRICS:
            return
        calls = _begun(endpoint, model, status)
    calls.add(1)
    calls.duration.observe(latency_ms / 1000)
    if ttft_ms is not None:
        calls.ttft.observe(ttft_ms)
    if prompt:
        calls.add_prompt(prompt)
    if completion:
        calls.add_completion(completion)
        calls.speed.observe(completion * 1000 / max(latency_ms, 1))


def _begun(endpoint: str, model: str, status: int) -> _Calls:
    if endpoint not in ENDPOINTS:
        endpoint = OTHER
    if len(_calls) >= MAX_SERIES:
        model = OTHER
    key = (endpoint, model, status)
    if key not in _calls:
        _calls[key] = _Calls(endpoint, model, str(status))
    return _calls[key]
