"""Calls over Channels, before Django's own application: no middleware and no thread stand in their way."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar

from channels.generic.http import AsyncHttpConsumer
from pydantic_core import to_json

from accounts import authentication
from accounts.principals import Principal
from inference import streaming
from opengate import work
from opengate.bodies import WHEN_GONE, Incoming
from opengate.draining import Stopping
from opengate.errors import APIError, openai_error
from opengate.request_id import HEADER, new_request_id
from usage.accounting import Call

logger = logging.getLogger(__name__)

JSON = "application/json"
REQUEST_ID = HEADER.encode()


@lru_cache(maxsize=64)
def _name(header: str) -> bytes:
    return header.lower().encode()


class Disconnected(Exception):
    """The caller hung up before its request was complete."""


class _Watch:
    """What is called when the caller leaves, under a server that has no such thing: WHEN_GONE for one call."""

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def add(self, call: Callable[[], object]) -> None:
        self._task = asyncio.ensure_future(self._wait(call))

    def discard(self, call: Callable[[], object]) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _wait(self, call: Callable[[], object]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        call()


class CallConsumer(AsyncHttpConsumer):
    """A call with a key. Keeps the interface of Channels' consumer without its dispatch loop, which would hold back
    `http.disconnect` for as long as a handler runs: here the work is cancelled as soon as the caller leaves."""

    method: ClassVar[str] = "POST"
    endpoint: ClassVar[str]  # as usage and metrics call it
    is_authenticated: ClassVar[bool] = True  # every subclass is; the test of all routes looks here
    is_admitted: ClassVar[bool] = True  # the admission finds out whether what is remembered of the caller is old

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        self.scope = scope
        self.base_send = send
        self.request_id = work.current().request_id or new_request_id()
        self.started = False
        incoming = Incoming(scope, receive)
        try:
            principal = await self._caller()
            incoming.known(principal.user_id)
            body = await self._body(incoming)
            await self._answer(principal, body, receive)
        except Disconnected:
            pass
        except asyncio.CancelledError:  # by a server that ends, and nobody else
            with suppress(RuntimeError):  # of an announced length, an answer can only be cut
                await self._refuse(Stopping())
        except Exception as error:
            await self._refuse(error)
        finally:
            incoming.release()

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        """Answer with the `send…` methods; what is raised before the headers is sent as an error."""
        raise NotImplementedError

    def call(self, principal: Principal) -> Call:
        """This request as a call of a model."""
        return Call(principal, self.endpoint, self.request_id, self.method)

    async def send_headers(self, *, status: int = 200, headers: Any = None) -> None:
        """`headers` is a mapping of text; the request id goes with each answer."""
        self.started = True
        pairs = [(_name(name), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        pairs.append((REQUEST_ID, self.request_id.encode()))
        await self.base_send({"type": "http.response.start", "status": status, "headers": pairs})

    async def send_body(self, body: bytes, *, more_body: bool = False) -> None:
        await self.base_send({"type": "http.response.body", "body": body, "more_body": more_body})

    async def send_json(self, status: int, content: Any, headers: Mapping[str, str]) -> None:
        body = to_json(content, inf_nan_mode="null")
        await self.send_headers(
            status=status, headers={"Content-Type": JSON, "Content-Length": str(len(body)), **headers}
        )
        await self.send_body(body)

    def _require_method(self) -> None:
        if self.scope["method"] != self.method:
            raise APIError("Method Not Allowed", status=405, headers={"Allow": self.method})

    async def _caller(self) -> Principal:
        self._require_method()
        values = [value for name, value in self.scope["headers"] if name == b"authorization"]
        ask = authentication.authenticate if self.is_admitted else authentication.authenticate_now
        # Two of them could mean one to a proxy and the other to us.
        return await ask(values[0].decode("latin-1") if len(values) == 1 else None)

    async def _body(self, incoming: Incoming) -> bytes:
        """The whole body, bounded as it arrives; raises what `Incoming` does, or Disconnected."""
        parts = []
        while True:
            message = await incoming.message()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _answer(self, principal: Principal, body: bytes, receive: Callable[[], Awaitable[Any]]) -> None:
        """Answer as long as the caller is there: when he leaves, what is under way for him is cancelled."""
        answering = asyncio.current_task()
        assert answering is not None
        has_left = False

        def leave() -> None:
            nonlocal has_left
            has_left = True
            answering.cancel()

        when_gone = self.scope.get(WHEN_GONE)
        if when_gone is None:
            when_gone = _Watch(receive)
        when_gone.add(leave)
        try:
            await self.handle_call(principal, body)
        except asyncio.CancelledError:
            if not has_left:
                raise
            answering.uncancel()
        finally:
            when_gone.discard(leave)

    async def _refuse(self, error: Exception) -> None:
        if not isinstance(error, APIError):
            logger.error("Request %s failed.", self.request_id, exc_info=error)
            error = APIError("An unexpected error occurred")
        content = {"detail": error.detail, "error": openai_error(error.status, error.detail)}
        if not self.started:
            await self.send_json(error.status, content, error.headers)
        else:
            await self.send_body(streaming.encode(to_json(content)))
