"""A scripted provider on a loopback port: real HTTP, byte for byte as a test says."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.listener import Listener

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass
class Received:
    """A request as it came; `left` is set when the caller hung up before the whole answer was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What to answer: `chunks` one by one, `gap` seconds apart, then the end, a cut connection, or silence."""

    chunks: Iterable[bytes]
    status: int = 200
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    gap: float = 0.002
    then: Literal["end", "cut", "stall"] = "end"
    head_gap: float = 0.0  # seconds from byte to byte of the headers


def completion(content: str = "Hello there.", **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1772500000,
        "model": "upstream-name",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    } | fields


def chunk(content: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1772500000,
        "model": "upstream-name",
        "choices": [choice],
    } | fields


def finish() -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


def usage_chunk(prompt_tokens: int = 9, completion_tokens: int = 12) -> dict[str, Any]:
    total = prompt_tokens + completion_tokens
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    return chunk(choices=[], usage=usage)


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


WORDS = ("Hello", " there", ", friend", ".")


def story(*, usage: bool = True, done: bool = True) -> list[bytes]:
    """The events of an ordinary stream of WORDS."""
    events = [event(chunk(word)) for word in WORDS] + [event(finish())]
    if usage:
        events.append(event(usage_chunk()))
    if done:
        events.append(event("[DONE]"))
    return events


class Upstream(Listener):
    """Answers what `route` says of the path, else what `reply` lined up, in order; with nothing left, an ordinary
    completion or stream."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.most_at_once = 0  # calls that it had, since the reset
        self._open: set[int] = set()
        self._replies: deque[Reply] = deque()
        self._routes: dict[str, Callable[[Received], Reply]] = {}
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def reset(self) -> None:
        self.received.clear()
        self.most_at_once = len(self._open)
        self._replies.clear()
        self._routes.clear()

    def route(self, path: str, body: Any, **how: Any) -> None:
        """Always answer this JSON `body` at the path; a function makes it, or a Reply, of the request."""

        def reply(request: Received) -> Reply:
            made = body(request) if callable(body) else body
            return made if isinstance(made, Reply) else Reply([json.dumps(made).encode()], **how)

        self._routes[path] = reply

    def reply(
        self,
        body: Any = None,
        *,
        chunks: Sequence[bytes] | None = None,
        content_type: str | None = None,
        **how: Any,
    ) -> None:
        """Line up an answer: a JSON `body` (or bytes), or the `chunks` of a stream."""
        if chunks is not None:
            self._replies.append(Reply(list(chunks), content_type=content_type or EVENTS, **how))
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._replies.append(Reply([data], content_type=content_type or JSON, **how))

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port: int = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Received(method, path, headers, body)
                self.received.append(request)
                self._begin(request)
                try:
                    goes_on = await self._answer(request, reader, writer)
                finally:
                    self._end(request)
                if not goes_on:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _begin(self, request: Received) -> None:
        self._open.add(id(request))
        self.most_at_once = max(self.most_at_once, len(self._open))

    def _end(self, request: Received) -> None:
        self._open.discard(id(request))

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        route = self._routes.get(request.path)
        if route is not None:
            reply = route(request)
        else:
            reply = self._replies.popleft() if self._replies else self._ordinary(request)
        work = asyncio.ensure_future(self._write(request, reply, writer))
        # The caller sends nothing before it has our answer: what can be read meanwhile is its leaving.
        leaving = asyncio.ensure_future(self._left(reader))
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() or work.exception():
            request.left.set()
            work.cancel()
            return False
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        if reply.then == "cut":
            writer.transport.abort()
            return False
        return True

    async def _left(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)

    async def _write(self, request: Received, reply: Reply, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(reply.wait)
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        head = f"HTTP/1.1 {reply.status} X\r\nContent-Type: {reply.content_type}\r\n{extra}"
        whole = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        for part in (whole[at : at + 1] for at in range(len(whole))) if reply.head_gap else (whole,):
            writer.write(part)
            await asyncio.sleep(reply.head_gap)
        for data in reply.chunks:
            if data:
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(reply.gap)
        if reply.then == "stall":
            await asyncio.sleep(3600)
        if reply.then == "end":
            self._end(request)  # who reads the end may send the next one
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    def _ordinary(self, request: Received) -> Reply:
        try:
            wants_stream = json.loads(request.body or b"{}").get("stream")
        except ValueError:
            wants_stream = False
        if wants_stream:
            return Reply(story(), content_type=EVENTS)
        return Reply([json.dumps(completion()).encode()])
