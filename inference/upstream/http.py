"""The pooled HTTP client for providers. No redirect is followed, no caller's header is forwarded, sizes are bounded.

Each new connection is asked about (`opengate.egress`): an address where no provider may be is not connected to.

A process has so many calls at a provider at most (UPSTREAM_MAX_CALLS): a slow one cannot take what others need.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from django.conf import settings
from pydantic_core import from_json

from inference.errors import AddressNotAllowed, ProviderFull, UnreadableAnswer, UpstreamFailed, UpstreamRefused
from inference.upstream.names import Names
from opengate import egress, traces
from opengate.loops import PerLoop
from routing.snapshot import Provider

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 3600
_DRAIN_SECONDS = 0.05

Body = bytes | Callable[[], aiohttp.FormData]  # JSON, or a form made anew for each try


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=Names(), socket_factory=egress.open_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent",),
        trust_env=False,
    )


@dataclass(slots=True)
class _Client:
    """The client of one event loop, and how many calls it has at each provider."""

    session: aiohttp.ClientSession = field(default_factory=_session)
    calls: dict[int, asyncio.Semaphore] = field(default_factory=dict)

    async def close(self) -> None:
        await self.session.close()


_client = PerLoop(_Client, _Client.close)


async def get(provider: Provider, path: str) -> bytes:
    """Get JSON and read the whole answer; raises as `post` does."""
    return await _whole(provider, path, None)


async def post(provider: Provider, path: str, body: Body) -> bytes:
    """Post JSON or a form and read the whole answer, within the provider's timeout.

    Raises UpstreamRefused for an error status, UpstreamFailed for everything that is no answer.
    """
    return await _whole(provider, path, body)


async def _whole(provider: Provider, path: str, body: Body | None) -> bytes:
    timeout = aiohttp.ClientTimeout(total=provider.timeout, connect=_connect_timeout(provider))
    accept = "*/*" if callable(body) else "application/json"
    async with _request(provider, path, body, timeout, accept=accept) as response:
        return await _read(response, settings.UPSTREAM_MAX_RESPONSE_BYTES)


async def stream(provider: Provider, path: str, body: bytes) -> AsyncGenerator[bytes]:
    """Post JSON and yield the bytes of the answer as they arrive; the provider's timeout runs from read to read.

    Raises as `post` does. Close it (aclosing) to hang up on the provider.
    """
    timeout = aiohttp.ClientTimeout(total=None, connect=_connect_timeout(provider), sock_read=provider.timeout)
    async with _request(provider, path, body, timeout, accept="text/event-stream") as response:
        if "text/event-stream" not in response.headers.get("Content-Type", "text/event-stream"):
            raise UnreadableAnswer
        try:
            async for data in response.content.iter_any():
                yield data
        except GeneratorExit:
            await _finish(response)
            raise


@asynccontextmanager
async def _request(
    provider: Provider, path: str, body: Body | None, timeout: aiohttp.ClientTimeout, *, accept: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer with status 200; the client's faults, here and while it is read, become ours."""
    if not provider.url[:8].lower().startswith(settings.PROVIDER_SCHEMES):  # stored before the setting was narrowed
        raise AddressNotAllowed
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    if isinstance(body, bytes):
        headers["Content-Type"] = "application/json"
    if provider.key:
        headers["Authorization"] = f"Bearer {provider.key}"
    if settings.TRACES_TO_PROVIDERS:
        traces.carried_on(headers)
    client = _client()
    calls = client.calls.get(provider.id)
    if calls is None:
        calls = client.calls[provider.id] = asyncio.Semaphore(settings.UPSTREAM_MAX_CALLS)
    await _enter(calls, _connect_timeout(provider))
    try:
        request = client.session.request(
            "GET" if body is None else "POST",
            provider.url + path,
            data=body() if callable(body) else body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        )
        async with AsyncExitStack() as stack:
            # The headers of a stream come a byte at a time, or in time.
            async with asyncio.timeout(provider.timeout if timeout.total is None else None):
                response = await stack.enter_async_context(request)
                if response.status != 200:
                    raise await _refusal(provider, response)
            yield response
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, egress.AddressRefused):
            raise AddressNotAllowed from error
        raise UpstreamFailed("Model is temporarily unavailable, please try again later.") from error
    except (TimeoutError, aiohttp.ClientOSError, aiohttp.ClientPayloadError, aiohttp.ServerConnectionError) as error:
        name = type(error).__name__
        raise UpstreamFailed(f"Model is too busy ({name}), please try again later.") from error
    except aiohttp.ClientError as error:
        logger.warning("Provider %s: %s", provider.id, type(error).__name__)  # its words may be the provider's
        raise UpstreamFailed(type(error).__name__, status=500) from error
    finally:
        calls.release()


async def _enter(calls: asyncio.Semaphore, timeout_seconds: float) -> None:
    """Raises ProviderFull when as many calls as may be are at the provider for so long."""
    if not calls.locked():
        await calls.acquire()  # at once
        return
    try:
        async with asyncio.timeout(timeout_seconds):
            await calls.acquire()
    except TimeoutError:
        raise ProviderFull from None


def _connect_timeout(provider: Provider) -> float:
    """Seconds to wait for a connection, be it new or one that others still use."""
    return float(min(provider.timeout, settings.UPSTREAM_CONNECT_TIMEOUT_SECONDS))


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body; raises UnreadableAnswer when it is longer than `limit`."""
    parts, length = [], 0
    async for data in response.content.iter_any():
        length += len(data)
        if length > limit:
            response.close()
            raise UnreadableAnswer
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _finish(response: aiohttp.ClientResponse) -> None:
    """The reader has enough: keep the connection when the answer ends in a moment, else hang up."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            if not response.content.at_eof() and await response.content.readany():
                response.close()  # it has more to say
    except (TimeoutError, aiohttp.ClientError):
        response.close()


async def _refusal(provider: Provider, response: aiohttp.ClientResponse) -> Exception:
    """What an answer other than 200 means: the upstream's own words, without its key, or ours for a redirect."""
    if response.status < 400:
        return UpstreamFailed("Model is temporarily unavailable, please try again later.")
    try:
        text = (await _read(response, MAX_ERROR_BYTES)).decode("utf-8", "replace")
    except UnreadableAnswer:
        text = ""
    if provider.key:
        text = text.replace(provider.key, "***")
    return UpstreamRefused(response.status, _detail(text), headers=_retry_after(response.headers))


def _detail(text: str) -> Any:
    """The `message` of a JSON error, else the JSON as it is, else the text."""
    try:
        body = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text or "The model provider gave no reason."
    return body["message"] if isinstance(body, dict) and isinstance(body.get("message"), str) else body


def _retry_after(headers: Mapping[str, str]) -> dict[str, str]:
    """The upstream's Retry-After when it is a number of seconds, an hour at most."""
    value = headers.get("Retry-After", "")
    return {"Retry-After": str(min(int(value), MAX_RETRY_AFTER_SECONDS))} if value.isascii() and value.isdigit() else {}
