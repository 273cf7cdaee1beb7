#!/usr/bin/env python3
"""A fake OpenAI-compatible provider that costs far less CPU than any gateway.

One process, one raw asyncio protocol (uvloop when it is installed), answers rendered
once and reused. Every behaviour is chosen per request, by a directive that survives any
gateway because it is carried in text the gateway must forward untouched:

    in a message or an input:   [[bench chunks=100 delay=10 ttft=50]]
    or in the model name:       fake:chunks=100,delay=10,ttft=50

Directive keys (all numbers; times in milliseconds):

    chunks   content chunks of a stream (default 100)
    delay    pause between two content chunks (default 10); 0 sends the stream in one write
    ttft     pause before the first chunk of a stream (default 0)
    latency  pause before a non-stream answer (default 0)
    size     characters of text in a non-stream answer (default 200)
    dim      dimensions of an embedding (default 384)
    status   answer this HTTP error status (429 carries Retry-After)
    retry    value of Retry-After in seconds (default 1)
    hang     1 = read the request and never answer
    cut      close the connection in the middle of a stream after this many chunks;
             in a non-stream answer: after half of the body
    stall    stop sending (connection kept open) after this many chunks
    bad      1 = malformed JSON (one broken event in a stream, a truncated body otherwise)
    every    apply status/hang/cut/stall/bad only to every n-th request (default 1: to all)

Streams carry the send time of each chunk inside its text, as @t<nanoseconds>@
(CLOCK_MONOTONIC, shared by all processes of one machine), so that load.py measures the
delay that a gateway adds to every single chunk.

Endpoints: POST .../chat/completions, .../completions, .../embeddings, GET .../models,
GET /stats (counters; "open" are those not answered to their end), POST /reset. Loopback by default. No authentication.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import signal
import struct
import time

try:
    import uvloop
except ImportError:  # works without, at about half the speed
    uvloop = None

STREAM = re.compile(rb'"stream"\s*:\s*true')
WANT_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
DIRECTIVE = re.compile(rb"\[\[bench ([^\]]*)\]\]")
MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.I)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.I)
PAIR = re.compile(r"([a-z_]+)\s*=\s*([0-9.]+)")

DEFAULTS = {
    "chunks": 100,
    "delay": 10.0,
    "ttft": 0.0,
    "latency": 0.0,
    "size": 200,
    "dim": 384,
    "status": 0,
    "retry": 1,
    "hang": 0,
    "cut": -1,
    "stall": -1,
    "bad": 0,
    "every": 1,
}
REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
WORDS = "the gateway relays this answer without touching a single byte of it and counts tokens "
PROMPT_TOKENS = 12


class Settings:
    """A directive, parsed once per distinct text."""

    __slots__ = tuple(DEFAULTS)
    cache: dict[bytes, Settings] = {}
    base = dict(DEFAULTS)

    @classmethod
    def of(cls, text: bytes) -> Settings:
        found = cls.cache.get(text)
        if found is None:
            values = dict(cls.base)
            for key, value in PAIR.findall(text.decode("latin-1")):
                if key in values:
                    values[key] = type(DEFAULTS[key])(float(value))
            found = cls()
            for key, value in values.items():
                setattr(found, key, value)
            if len(cls.cache) < 10_000:
                cls.cache[text] = found
        return found


def response(status: int, body: bytes, extra: str = "") -> bytes:
    reason = "OK" if status == 200 else REASONS.get(status, "Error")
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    ).encode() + body


def text_of(size: int) -> str:
    return (WORDS * (size // len(WORDS) + 1))[:size]


def usage_of(completion: int) -> dict:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": completion, "total_tokens": PROMPT_TOKENS + completion}


class Rendered:
    """Answers rendered once."""

    chat: dict[int, bytes] = {}
    text: dict[int, bytes] = {}
    vectors: dict[tuple[int, bool], str] = {}

    @classmethod
    def chat_answer(cls, size: int) -> bytes:
        if size not in cls.chat:
            body = {
                "id": "chatcmpl-bench",
                "object": "chat.completion",
                "created": 1700000000,
                "model": "fake",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "logprobs": None,
                        "message": {"role": "assistant", "content": text_of(size), "refusal": None},
                    }
                ],
                "usage": usage_of(max(1, size // 4)),
            }
            cls.chat[size] = response(200, json.dumps(body).encode())
        return cls.chat[size]

    @classmethod
    def text_answer(cls, size: int) -> bytes:
        if size not in cls.text:
            body = {
                "id": "cmpl-bench",
                "object": "text_completion",
                "created": 1700000000,
                "model": "fake",
                "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "text": text_of(size)}],
                "usage": usage_of(max(1, size // 4)),
            }
            cls.text[size] = response(200, json.dumps(body).encode())
        return cls.text[size]

    @classmethod
    def embedding_answer(cls, body: bytes, dim: int) -> bytes:
        try:
            request = json.loads(body)
        except ValueError:
            return response(400, error_body(400, "invalid JSON"))
        inputs = request.get("input", "")
        count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
        packed = request.get("encoding_format") == "base64"
        key = (dim, packed)
        if key not in cls.vectors:
            values = [((i * 2654435761) % 2000 - 1000) / 1000 / dim**0.5 for i in range(dim)]
            cls.vectors[key] = (
                json.dumps(base64.b64encode(struct.pack(f"<{dim}f", *values)).decode())
                if packed
                else json.dumps([round(v, 6) for v in values])
            )
        rows = ",".join(f'{{"object":"embedding","index":{i},"embedding":{cls.vectors[key]}}}' for i in range(count))
        text = (
            f'{{"object":"list","model":"fake","data":[{rows}],'
            f'"usage":{{"prompt_tokens":{8 * count},"total_tokens":{8 * count}}}}}'
        )
        return response(200, text.encode())


def error_body(status: int, message: str) -> bytes:
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": str(status)}}).encode()


def event(body: str) -> bytes:
    line = f"data: {body}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(line), line)


HEAD = '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"fake",'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ROLE = event(HEAD + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
FINISH = event(HEAD + '"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
BROKEN = event(HEAD + '"choices":[{"index":0,"delta":{"content":')
DONE = event("[DONE]") + b"0\r\n\r\n"
CHUNK_HEAD = HEAD.encode() + b'"choices":[{"index":0,"delta":{"content":" word @t'
CHUNK_TAIL = b'@"},"finish_reason":null}]}\n\n'
MODELS = response(
    200,
    json.dumps(
        {"object": "list", "data": [{"id": "fake", "object": "model", "created": 1700000000, "owned_by": "bench"}]}
    ).encode(),
)


def content_chunk() -> bytes:
    line = b"data: %s%d%s" % (CHUNK_HEAD, time.monotonic_ns(), CHUNK_TAIL)
    return b"%x\r\n%s\r\n" % (len(line), line)


def usage_chunk(completion: int) -> bytes:
    return event(HEAD + '"choices":[],"usage":' + json.dumps(usage_of(completion)) + "}")


STATS = {"connections": 0, "requests": 0, "streams": 0, "chunks": 0, "faults": 0, "aborted_by_client": 0, "open": 0}


class Provider(asyncio.Protocol):
    __slots__ = ("buffer", "busy", "loop", "timer", "todo", "transport")

    def __init__(self, loop):
        self.loop = loop
        self.transport = None
        self.buffer = b""
        self.busy = False
        self.timer = None
        self.todo = None

    def connection_made(self, transport):
        self.transport = transport
        STATS["connections"] += 1

    def connection_lost(self, exc):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.busy:
            STATS["aborted_by_client"] += 1
            self.done()
        self.transport = None

    def data_received(self, data):
        self.buffer = self.buffer + data if self.buffer else data
        if not self.busy:
            self.next_request()

    def next_request(self):
        while self.transport is not None and not self.busy and self.buffer:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head, start = self.buffer[:end], end + 4
            found = LENGTH.search(head)
            if found:
                stop = start + int(found[1])
                if len(self.buffer) < stop:
                    return
                body = self.buffer[start:stop]
            elif CHUNKED.search(head):
                body, stop = unchunk(self.buffer, start)
                if body is None:
                    return
            else:
                body, stop = b"", start
            self.buffer = self.buffer[stop:]
            self.busy = True
            STATS["open"] += 1
            self.answer(head, body)

    def done(self):
        self.busy = False
        STATS["open"] -= 1

    def send(self, data: bytes):
        if self.transport is not None:
            self.transport.write(data)
        if self.busy:
            self.done()

    def send_later(self, ms: float, data: bytes):
        if ms <= 0:
            self.send(data)
        else:
            self.timer = self.loop.call_later(ms / 1000, self.finish_later, data)

    def finish_later(self, data: bytes):
        self.timer = None
        self.send(data)
        self.next_request()

    def answer(self, head: bytes, body: bytes):
        path = head.split(b" ", 2)[1].split(b"?", 1)[0]
        STATS["requests"] += 1
        if path.endswith(b"/models"):
            return self.send(MODELS)
        if path == b"/stats":
            STATS["requests"] -= 1
            return self.send(response(200, json.dumps(STATS | {"open": STATS["open"] - 1}).encode()))
        if path == b"/reset":
            for key in STATS.keys() - {"open"}:
                STATS[key] = 0
            return self.send(response(200, b"{}"))
        found = DIRECTIVE.search(body)
        if not found:
            found = MODEL.search(body)
        want = Settings.of(found[1] if found else b"")
        faulty = want.every <= 1 or STATS["requests"] % want.every == 0
        if faulty and (want.status or want.hang):
            STATS["faults"] += 1
            if want.status:
                extra = f"Retry-After: {want.retry}\r\n" if want.status == 429 else ""
                return self.send_later(
                    want.latency, response(want.status, error_body(want.status, "fault asked for by the bench"), extra)
                )
            return None  # hang
        if path.endswith(b"/embeddings"):
            return self.send_later(want.latency, Rendered.embedding_answer(body, want.dim))
        chat = path.endswith(b"/chat/completions")
        if not chat and not path.endswith(b"/completions"):
            return self.send(response(404, error_body(404, "no such endpoint")))
        if chat and STREAM.search(body):
            return self.start_stream(want, faulty, bool(WANT_USAGE.search(body)))
        data = Rendered.chat_answer(want.size) if chat else Rendered.text_answer(want.size)
        if faulty and want.bad:
            STATS["faults"] += 1
            body_at = data.index(b"\r\n\r\n") + 4
            data = response(200, data[body_at : body_at + 80])
        elif faulty and want.cut >= 0:
            STATS["faults"] += 1
            self.transport.write(data[: len(data) // 2])
            self.transport.close()
            return None
        return self.send_later(want.latency, data)

    # a stream ------------------------------------------------------------------------

    def start_stream(self, want: Settings, faulty: bool, usage: bool):
        STATS["streams"] += 1
        tail = FINISH + (usage_chunk(want.chunks) if usage else b"") + DONE
        cut = want.cut if faulty else -1
        stall = want.stall if faulty else -1
        bad = want.chunks // 2 if faulty and want.bad else -1
        if want.delay <= 0 and want.ttft <= 0 and cut < 0 and stall < 0 and bad < 0:
            STATS["chunks"] += want.chunks
            return self.send(STREAM_HEAD + ROLE + content_chunk() * want.chunks + tail)
        self.transport.write(STREAM_HEAD + ROLE if want.ttft <= 0 else STREAM_HEAD)
        self.todo = [0, want.chunks, want.delay / 1000, tail, cut, stall, bad, want.ttft > 0]
        self.timer = self.loop.call_later((want.ttft if want.ttft > 0 else want.delay) / 1000, self.tick)

    def tick(self):
        self.timer = None
        if self.transport is None:
            return
        todo = self.todo
        sent, total, delay, tail, cut, stall, bad, late_role = todo
        if late_role:
            self.transport.write(ROLE)
            todo[7] = False
        if sent == cut:
            STATS["faults"] += 1
            self.done()
            self.transport.abort() if sent % 2 else self.transport.close()
            return
        if sent == stall:
            STATS["faults"] += 1
            return
        if sent >= total:
            self.send(tail)
            self.next_request()
            return
        self.transport.write(BROKEN if sent == bad else content_chunk())
        todo[0] = sent + 1
        STATS["chunks"] += 1
        if sent + 1 == total:
            self.send(tail)
            self.next_request()
        else:
            self.timer = self.loop.call_later(delay, self.tick)


def unchunk(data: bytes, at: int):
    parts = []
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None, 0
        size = int(data[at:line].split(b";")[0], 16)
        at = line + 2
        if len(data) < at + size + 2:
            return None, 0
        if size == 0:
            return b"".join(parts), at + 2
        parts.append(data[at : at + size])
        at += size + 2


async def main(args):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(loop), args.host, args.port, backlog=4096)
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    print(f"fake provider on http://{args.host}:{args.port}/v1", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument(
        "--default", default="", help="directive used when a request has none, e.g. 'chunks=20 delay=5'"
    )
    options = parser.parse_args()
    for name, number in PAIR.findall(options.default):
        if name in Settings.base:
            Settings.base[name] = type(DEFAULTS[name])(float(number))
    (uvloop.run if uvloop else asyncio.run)(main(options))
