"""Chat completions over Channels, before Django's own application: no middleware and no thread stand in the way."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from channels.generic.http import AsyncHttpConsumer
from pydantic_core import to_json

from accounts import authentication
from accounts.principals import Principal
from inference import gateway, prompting, streaming
from inference.schemas import ChatCompletionRequest
from knowledge import search
from knowledge.schemas import MAX_QUERY, SearchTool
from opengate import work
from opengate.bodies import Incoming
from opengate.draining import Stopping
from opengate.errors import APIError, openai_error
from opengate.request_id import HEADER, new_request_id
from usage.accounting import Call

logger = logging.getLogger(__name__)

JSON = "application/json"
EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Disconnected(Exception):
    """The caller hung up before its request was complete."""


class CallConsumer(AsyncHttpConsumer):
    """A call with a key. Keeps the interface of Channels' consumer without its dispatch loop, which would hold back
    `http.disconnect` for as long as a handler runs: here the work is a task, cancelled when the caller leaves."""

    method: ClassVar[str]
    is_authenticated: ClassVar[bool] = True  # every subclass is; the test of all routes looks here

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        self.scope = scope
        self.base_send = send
        self.request_id = work.current().request_id or new_request_id()
        self.started = False
        incoming = Incoming(scope, receive)
        try:
            await self._serve(incoming)
        finally:
            incoming.release()

    async def _serve(self, incoming: Incoming) -> None:
        try:
            principal = await self._caller()
            incoming.known(principal.user_id)
            body = await self._body(incoming)
        except Disconnected:
            return
        except asyncio.CancelledError:  # by a server that ends, and nobody else
            await self._refuse(Stopping())
            return
        except Exception as error:
            await self._refuse(error)
            return
        answer = asyncio.ensure_future(self._answer(principal, body))
        leaving = asyncio.ensure_future(self._left(incoming.message))
        is_cut = False
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            is_cut = True
        finally:
            leaving.cancel()
            answer.cancel()  # does nothing to a task that is done
            await asyncio.gather(answer, leaving, return_exceptions=True)
        if is_cut and answer.cancelled():
            with suppress(RuntimeError):  # of an announced length, it can only be cut
                await self._refuse(Stopping())

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        """Answer with the `send…` methods; what is raised before the headers is sent as an error."""
        raise NotImplementedError

    async def send_headers(self, *, status: int = 200, headers: Any = None) -> None:
        """`headers` is a mapping of text; the request id goes with each answer."""
        self.started = True
        pairs = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        await super().send_headers(status=status, headers=[*pairs, (HEADER.encode(), self.request_id.encode())])

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
        # Two of them could mean one to a proxy and the other to us.
        return await authentication.authenticate(values[0].decode("latin-1") if len(values) == 1 else None)

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

    async def _left(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _answer(self, principal: Principal, body: bytes) -> None:
        try:
            await self.handle_call(principal, body)
        except Exception as error:
            await self._refuse(error)

    async def _refuse(self, error: Exception) -> None:
        if not isinstance(error, APIError):
            logger.error("Request %s failed.", self.request_id, exc_info=error)
            error = APIError("An unexpected error occurred")
        content = {"detail": error.detail, "error": openai_error(error.status, error.detail)}
        if not self.started:
            await self.send_json(error.status, content, error.headers)
        else:
            await self.send_body(streaming.encode(to_json(content)))


class ChatCompletions(CallConsumer):
    """`POST /v1/chat/completions`, answered with JSON or with server-sent events."""

    method = "POST"
    endpoint = "/v1/chat/completions"

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        request, payload, tool = ChatCompletionRequest.read(body)
        call = Call(principal, self.endpoint, self.request_id, self.method)
        found: dict[str, Any] = {}
        if tool is not None:
            payload, found = await self._informed(call, payload, tool)
        if not request.stream:
            answer = await gateway.complete(call, payload)
            await self.send_json(200, answer | found, call.headers())
            return
        async with aclosing(gateway.stream(call, payload, beside=found)) as events:
            async for event in events:
                if not self.started:  # the first event decides between a stream and a status code
                    await self.send_headers(headers=EVENTS | call.headers())
                await self.send_body(event, more_body=True)
            await self.send_body(b"")

    async def _informed(
        self, call: Call, payload: dict[str, Any], tool: SearchTool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The payload with what was found for its last message, and that as the answer shows it."""
        question = prompting.question_of(payload["messages"])[:MAX_QUERY]
        if not question:
            return payload, {}
        results, usage = await search.find(call.principal, tool.query_for(question), new_request_id())
        call.before = [usage]
        if not results:
            return payload, {}
        payload = prompting.with_sources(payload, question, [result.content for result in results])
        return payload, {"search_results": [result.as_search() for result in results]}
