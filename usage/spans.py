"""The spans of a call, made at its settlement out of its flight record: nothing is done for them on the way.

Names are those of OpenTelemetry's conventions for generative AI; what they do not know begins with `opengate.`. No text
of a prompt or an answer is in them, nor the words of a provider's error.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opengate import traces
from routing.models import ProviderType
from routing.snapshot import Provider
from usage.flight import Try
from usage.models import Endpoint, Outcome

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from usage.accounting import Call

logger = logging.getLogger(__name__)

OPERATIONS: Mapping[str, str] = {
    Endpoint.AUDIO_TRANSCRIPTIONS: "transcription",
    Endpoint.CHAT_COMPLETIONS: "chat",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.OCR: "ocr",
    Endpoint.RERANK: "rerank",
    Endpoint.SEARCH: "embeddings",  # of the question
}
PROVIDERS: Mapping[str, str] = {ProviderType.MISTRAL: "mistral_ai"}  # the others have the conventions' name, or none


def record(call: "Call", status: int, outcome: Outcome) -> None:
    """Send what is known of a settled call; whatever goes wrong with that is no trouble of the call."""
    try:
        _Spans(call).make(status, outcome)
    except Exception:
        logger.exception("The call %s has no spans.", call.request_id)


class _Spans:
    """Those of one call. Moments are those of `time.perf_counter`, and become nanoseconds since 1970."""

    def __init__(self, call: "Call") -> None:
        self.call = call
        self.zero = int(call.created * 1e9) - int(call.started * 1e9)
        self.providers = {provider.id: provider for provider in call.router.providers} if call.router else {}

    def make(self, status: int, outcome: Outcome) -> None:
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind

        call, flight = self.call, self.call.flight
        operation = OPERATIONS.get(call.endpoint, call.endpoint)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": call.router_name,
            "gen_ai.usage.input_tokens": call.tokens.prompt,
            "gen_ai.usage.output_tokens": call.tokens.completion,
            "opengate.request_id": call.request_id,
            "opengate.outcome": outcome.value,
            "opengate.tokens_estimated": call.tokens.estimated,
            "user.id": str(call.principal.user_id),
            **(_about(call.provider) if call.provider else {}),
        }
        if call.ttft_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = call.ttft_ms / 1000
        error = None if outcome == Outcome.FINISHED else str(status) if status >= 400 else outcome.value
        span = traces.tracer().start_span(
            f"{operation} {call.router_name}", self.call.part_of, SpanKind.CLIENT, attributes, start_time=self._ns()
        )
        if span.is_recording():
            within = trace.set_span_in_context(span, self.call.part_of)
            self._stage("admission", within, call.started, flight.admitted_at)
            self._stage("reservation", within, flight.admitted_at, flight.reserved_at)
            self._stage("wait for a place", within, flight.sought_at, flight.placed_at)
            for one in flight.tries:
                self._try(one, within)
        _end(span, error, None)

    def _stage(self, name: str, within: "Context", began: float | None, ended: float | None) -> None:
        if began is not None and ended is not None:
            traces.tracer().start_span(name, within, start_time=self._ns(began)).end(self._ns(ended))

    def _try(self, one: Try, within: "Context") -> None:
        from opentelemetry.trace import SpanKind

        provider = self.providers.get(one.provider_id)
        name = f"try {provider.model_name}" if provider else "try"
        attributes = {**(_about(provider) if provider else {}), "opengate.provider.id": one.provider_id}
        span = traces.tracer().start_span(name, within, SpanKind.CLIENT, attributes, start_time=self._ns(one.began))
        _end(span, None if one.status is None else str(one.status), None if one.ended is None else self._ns(one.ended))

    def _ns(self, moment: float | None = None) -> int:
        return self.zero + int((self.call.started if moment is None else moment) * 1e9)


def _about(provider: Provider) -> dict[str, Any]:
    """What serves, by its type and address: neither a path nor a password, which an address may hold."""
    address = urlsplit(provider.url)
    port = address.port or (443 if address.scheme == "https" else 80)
    return {
        "gen_ai.provider.name": PROVIDERS.get(provider.type, provider.type),
        "gen_ai.response.model": provider.model_name,
        "server.address": address.hostname or "",
        "server.port": port,
    }


def _end(span: Any, error: str | None, moment: int | None) -> None:
    """`error` is a status or a word of ours."""
    from opentelemetry.trace import StatusCode

    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)
    span.end(moment)
