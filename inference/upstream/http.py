"""Calls of providers: what is sent, and which fault of theirs is which of ours.

No redirect is followed, no caller's header is forwarded, sizes are bounded.

Each new connection is asked about (`opengate.egress`): an address where no provider may be is not connected to.

A process has so many calls at a provider at most (UPSTREAM_MAX_CALLS): a slow one cannot take what others need.
"""

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic_core import from_json

from inference.errors import AddressNotAllowed, ProviderFull, UnreadableAnswer, UpstreamFailed, UpstreamRefused
from inference.upstream.connections import (
    Answer,
    AnswerGarbled,
    AnswerTooLong,
    NotConnected,
    Place,
    Pool,
    Trouble,
)
from inference.upstream.forms import Form
from opengate import egress, traces
from opengate.loops import PerLoop
from opengate.quick_settings import settings
from routing.snapshot import Provider

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 3600
JSON = "application/json"
UNAVAILABLE = "Model is temporarily unavailable, please try again later."

Body = bytes | Form  # bytes are JSON


class _Calls:
    """The calls at one provider: so many at a time, and the others in line."""

    __slots__ = ("_free", "_line")

    def __init__(self, most: int) -> None:
        self._free = most  # while nobody is in line
        self._line: deque[asyncio.Future[None]] = deque()

    def enter(self) -> bool:
        """Whether there was room."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def wait(self, provider: Provider) -> None:
        """Enter when it is one's turn; raises ProviderFull if that takes longer than a connection may."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(min(provider.timeout, settings.UPSTREAM_CONNECT_TIMEOUT_SECONDS)):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came just now
                self.leave()
            elif turn in self._line:
                self._line.remove(turn)
            if isinstance(error, TimeoutError):
                raise ProviderFull from None
            raise

    def leave(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


@dataclass(slots=True)
class _Client:
    """The connections of one event loop, and how many calls it has at each provider."""

    pool: Pool = field(default_factory=Pool)
    calls: dict[int, _Calls] = field(default_factory=dict)

    def calls_at(self, provider: Provider) -> _Calls:
        calls = self.calls.get(provider.id)
        if calls is None:
            calls = self.calls[provider.id] = _Calls(settings.UPSTREAM_MAX_CALLS)
        return calls

    async def close(self) -> None:
        await self.pool.close()


_client = PerLoop(_Client, _Client.close)


def get(provider: Provider, path: str) -> Awaitable[bytes]:
    """Get JSON and read the whole answer; raises as `post` does."""
    return _whole(provider, path, None)


def post(provider: Provider, path: str, body: Body) -> Awaitable[bytes]:
    """Post JSON or a form and read the whole answer, within the provider's timeout.

    Raises UpstreamRefused for an error status, UpstreamFailed for everything that is no answer.
    """
    return _whole(provider, path, body)


async def _whole(provider: Provider, path: str, body: Body | None) -> bytes:
    client = _client()
    calls = client.calls_at(provider)
    if not calls.enter():
        await calls.wait(provider)
    answer: Answer | None = None
    try:
        answer = await _asked(client.pool, provider, path, body, "*/*" if isinstance(body, Form) else JSON)
        return await _text(answer, settings.UPSTREAM_MAX_RESPONSE_BYTES)
    except (Trouble, TimeoutError) as error:
        raise _ours(provider, error) from error
    finally:
        if answer is not None:
            answer.close()
        calls.leave()


async def stream(provider: Provider, path: str, body: bytes) -> AsyncGenerator[bytes]:
    """Post JSON and yield the bytes of the answer as they arrive; the provider's timeout runs from read to read.

    Raises as `post` does. Close it (aclosing) to hang up on the provider.
    """
    client = _client()
    calls = client.calls_at(provider)
    if not calls.enter():
        await calls.wait(provider)
    answer: Answer | None = None
    try:
        answer = await _asked(client.pool, provider, path, body, "text/event-stream")
        type = answer.headers.get(b"content-type", b"text/event-stream").lower()
        if b"text/event-stream" not in type or _coding(answer) != b"identity":
            raise UnreadableAnswer
        answer.flows(provider.timeout)
        while data := await answer.read():
            yield data
    except GeneratorExit:
        if answer is not None:
            answer.leave()
            answer = None
        raise
    except (Trouble, TimeoutError) as error:
        raise _ours(provider, error) from error
    finally:
        if answer is not None:
            answer.close()
        calls.leave()


async def _asked(pool: Pool, provider: Provider, path: str, body: Body | None, accept: str) -> Answer:
    """An answer with status 200, its headers read."""
    address = _address(provider.url)
    if not address.place.is_secure and "http://" not in settings.PROVIDER_SCHEMES:
        raise AddressNotAllowed  # stored before the setting was narrowed
    if isinstance(body, Form):
        with body.opened() as (length, pieces):
            about = f"multipart/form-data; boundary={body.boundary}\r\nContent-Length: {length}"
            head = _head(provider, address, path, accept, about)
            answer = await pool.ask(address.place, head, pieces, provider.timeout)
    else:
        about = "" if body is None else f"application/json\r\nContent-Length: {len(body)}"
        head = _head(provider, address, path, accept, about)
        answer = await pool.ask(address.place, head, body or b"", provider.timeout)
    if answer.status != 200:
        try:
            raise await _refusal(provider, answer)
        finally:
            answer.close()
    return answer


class _Address(NamedTuple):
    """Where to connect to, what to call it, and the path that all others begin with; as a request can hold them."""

    place: Place
    host: str
    base: str


@lru_cache(maxsize=1024)
def _address(url: str) -> _Address:
    try:
        parts = urlsplit(url)
        is_secure = parts.scheme == "https"
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError as error:
        raise UpstreamFailed(UNAVAILABLE) from error
    if parts.scheme not in ("http", "https"):
        raise AddressNotAllowed
    name = f"[{host}]" if ":" in host else host
    return _Address(
        Place(host, port or (443 if is_secure else 80), is_secure),
        name if port is None else f"{name}:{port}",
        quote(parts.path, safe="/%:@!$&'()*+,;=~") or "/",
    )


def _head(provider: Provider, address: _Address, path: str, accept: str, about_body: str) -> bytes:
    """The request but for its body; one without has nothing about it."""
    method, about = ("POST", f"Content-Type: {about_body}\r\n") if about_body else ("GET", "")
    key = ""
    if provider.key:
        if not provider.key.isprintable():
            raise UpstreamFailed("The provider's key has characters that no header can hold.", status=500)
        key = f"Authorization: Bearer {provider.key}\r\n"
    trace = _trace() if settings.TRACES_TO_PROVIDERS else ""
    return (
        f"{method} {address.base}{path} HTTP/1.1\r\nHost: {address.host}\r\n"
        f"Accept: {accept}\r\nAccept-Encoding: identity\r\n{about}{key}{trace}\r\n"
    ).encode()


def _trace() -> str:
    carried: dict[str, str] = {}
    traces.carried_on(carried)
    return "".join(f"{name}: {value}\r\n" for name, value in carried.items())


def _ours(provider: Provider, error: Trouble | TimeoutError) -> UpstreamFailed:
    """What a fault of the connection is to the caller."""
    if isinstance(error, NotConnected):
        return AddressNotAllowed() if isinstance(error.error, egress.AddressRefused) else UpstreamFailed(UNAVAILABLE)
    if isinstance(error, AnswerTooLong):
        return UnreadableAnswer()
    name = type(error).__name__
    if isinstance(error, AnswerGarbled):
        logger.warning("Provider %s: %s", provider.id, name)
        return UpstreamFailed(name, status=500)
    return UpstreamFailed(f"Model is too busy ({name}), please try again later.")


def _coding(answer: Answer) -> bytes:
    """What the body is coded in; it was asked for as it is."""
    return answer.headers.get(b"content-encoding", b"identity").strip().lower()


async def _text(answer: Answer, limit: int) -> bytes:
    """The whole body, decoded; raises AnswerTooLong, or UnreadableAnswer for a coding it does not know."""
    body = await answer.whole(limit)
    if b"content-encoding" not in answer.headers or (coding := _coding(answer)) == b"identity":
        return body
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's or zlib's header, whichever is there
    try:
        text = inflater.decompress(body, limit)
    except zlib.error:
        raise UnreadableAnswer from None
    if coding not in (b"gzip", b"deflate") or not inflater.eof:
        raise UnreadableAnswer
    return text


async def _refusal(provider: Provider, answer: Answer) -> Exception:
    """What an answer other than 200 means: the upstream's own words, without its key, or ours for a redirect."""
    if answer.status < 400:
        return UpstreamFailed(UNAVAILABLE)
    try:
        text = (await _text(answer, MAX_ERROR_BYTES)).decode("utf-8", "replace")
    except (AnswerTooLong, UnreadableAnswer):
        text = ""
    if provider.key:
        text = text.replace(provider.key, "***")
    return UpstreamRefused(answer.status, _detail(text), headers=_retry_after(answer))


def _detail(text: str) -> Any:
    """The `message` of a JSON error, else the JSON as it is, else the text."""
    try:
        body = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text or "The model provider gave no reason."
    return body["message"] if isinstance(body, dict) and isinstance(body.get("message"), str) else body


def _retry_after(answer: Answer) -> dict[str, str]:
    """The upstream's Retry-After when it is a number of seconds, an hour at most."""
    value = answer.headers.get(b"retry-after", b"")
    if not value.isdigit():
        return {}
    return {"Retry-After": str(min(int(value[:10]), MAX_RETRY_AFTER_SECONDS))}
