"""What an upstream says of a model, asked when a provider is made and whenever an operator wants to know."""

import logging
import os
import socket
import ssl
from dataclasses import dataclass

from inference import upstream
from inference.errors import UpstreamTrouble
from inference.upstream.connections import NotConnected
from routing import models
from routing.errors import ProviderUnreachable
from routing.snapshot import provider_of

logger = logging.getLogger(__name__)

MAX_TOKENS = 2**31 - 1  # what the column holds; no model takes as many
MAX_REASON = 200


@dataclass(frozen=True, slots=True)
class Discovered:
    """Tokens that the model takes and numbers of its vectors; None where the upstream does not tell."""

    max_context_length: int | None
    vector_size: int | None


async def discover(provider: models.Provider, router_type: str) -> Discovered:
    """Ask the provider's upstream about its model; raises ProviderUnreachable.

    The provider need not be stored. Never call it inside a transaction: the upstream may take the provider's timeout.
    """
    client = upstream.client(provider_of(provider))
    try:
        length = (await client.describe()).get(client.CONTEXT_LENGTH)
        embeds = router_type == models.ModelType.TEXT_EMBEDDINGS_INFERENCE
        rows = (await client.embed({"input": "hello world"}))["data"] if embeds else []
    except UpstreamTrouble as error:
        reason = f"{error.status}: {error.detail}"[:MAX_REASON]
        logger.warning("Provider %r is not reachable: %s %s", provider.model_name, error.status, error.in_short)
        raise ProviderUnreachable(provider.model_name, reason, _cause(error)) from error
    is_length = isinstance(length, int) and not isinstance(length, bool) and 0 < length <= MAX_TOKENS
    return Discovered(length if is_length else None, len(rows[0]["embedding"]) if rows else None)


def _cause(error: UpstreamTrouble) -> str:
    """Why nobody was met, for who runs the gateway; the API tells nobody what its network looks like from within."""
    cause = error.__cause__
    if not isinstance(cause, NotConnected):
        return ""
    if isinstance(cause.error, socket.gaierror):
        return f" (The name {cause.place.host} is not known.)"
    if isinstance(cause.error, ssl.SSLError):
        return f" ({cause.place.host}, port {cause.place.port}: {cause.error.reason or 'no TLS'}.)"
    return f" ({cause.place.host}, port {cause.place.port}: {os.strerror(cause.error.errno or 0)}.)"
