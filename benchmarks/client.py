"""The caller of a benchmark: raw HTTP on asyncio, closed and open loops, JSON and SSE; load.py measures with it.

Closed loop: each connection sends its next request when the last is answered. Open loop (`rate`): Poisson arrivals;
latency counts from the scheduled arrival, so a stalled server cannot hide its queue.
"""

import asyncio
import json
import random
import re
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from benchmarks.processes import Processes

STAMP = re.compile(rb"@t(\d+)@")
now_ns = time.monotonic_ns


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of at least one value, in order."""
    return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) - 1))))]


def summary(values_ns: Sequence[int]) -> dict[str, float] | None:
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    found = {f"p{share}_ms": percentile(ordered, share / 100) for share in (50, 95, 99)}
    found |= {"max_ms": ordered[-1], "mean_ms": sum(ordered) / len(ordered)}
    return {name: round(value / 1e6, 4) for name, value in found.items()} | {"n": len(ordered)}


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `directive` tells the scripted provider how to behave (see upstream.py)."""

    name: str
    mode: str = "chat"  # or stream, or embeddings
    callers: int = 32
    rate: float = 0  # requests a second, in an open loop
    directive: str = ""
    prompt: int = 400  # characters
    inputs: int = 1  # texts of a request for embeddings
    usage: bool = True  # a stream is asked for its usage

    @property
    def path(self) -> str:
        return "/embeddings" if self.mode == "embeddings" else "/chat/completions"

    @property
    def proof(self) -> bytes:
        """What the body of a good answer contains."""
        return b'"embedding"' if self.mode == "embeddings" else b'"choices"'

    def body(self, model: str) -> bytes:
        directive = f"[[bench {self.directive}]] " if self.directive else ""
        text = directive + ("All work and no play makes a dull gateway. " * 1000)[: self.prompt]
        if self.mode == "embeddings":
            return json.dumps({"model": model, "input": [text] * self.inputs, "encoding_format": "float"}).encode()
        said = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]
        body: dict[str, Any] = {"model": model, "messages": said}
        if self.mode == "stream":
            body["stream"] = True
            if self.usage:
                body["stream_options"] = {"include_usage": True}
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Endpoint:
    """Where a system is called, and which processes (see Processes) are its own, or lent: Redis, Postgres."""

    name: str
    url: str
    key: str = ""
    model: str = "fake"
    embedder: str = "fake"
    pids: str = ""
    aux: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Slice:
    """What a slice of one target recorded; times in nanoseconds."""

    latency: "array[int]" = field(default_factory=lambda: array("q"))
    ttft: "array[int]" = field(default_factory=lambda: array("q"))
    gap: "array[int]" = field(default_factory=lambda: array("q"))
    delay: "array[int]" = field(default_factory=lambda: array("q"))
    jitter: "array[int]" = field(default_factory=lambda: array("q"))
    errors: Counter[str] = field(default_factory=Counter)
    ok: int = 0
    chunks: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    aux_cpu: float = 0.0
    memory_kib: int = 0  # of the process that serves, at the end

    @property
    def done(self) -> int:
        return self.ok + self.errors.total()


class Target:
    """An endpoint under one load, and what its slices recorded."""

    def __init__(self, endpoint: Endpoint, scenario: Scenario) -> None:
        self.name = endpoint.name
        parts = urlsplit(endpoint.url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        body = scenario.body(endpoint.embedder if scenario.mode == "embeddings" else endpoint.model)
        headers = {"Host": parts.netloc, "Content-Type": "application/json", "Accept": "*/*", "User-Agent": "bench"}
        headers |= {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        headers |= endpoint.headers | {"Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._request = f"POST {parts.path.rstrip('/')}{scenario.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        self.processes, self.aux = Processes(endpoint.pids), Processes(endpoint.aux)
        self.slices: list[Slice] = []

    @property
    def request(self) -> bytes:
        return self._request


@dataclass
class Options:
    """Of a run: so many callers, or arrivals a second; at most `requests` when that is not 0."""

    concurrency: int = 32
    rate: float = 0
    requests: int = 0
    timeout: float = 60
    max_connections: int = 2048


class Connection(asyncio.Protocol):
    def __init__(self, run: "Run") -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.busy = self.head_done = self.good = False
        self.scheduled = self.status = 0

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.busy:
            self.busy = False
            self.run.finished(self, "connection lost" if self.head_done else "connection lost before the answer")

    def send(self, scheduled: int = 0) -> None:
        self.busy = True
        self.started = now_ns()
        self.scheduled = scheduled or self.started
        self.parser = httptools.HttpResponseParser(self)
        self.head_done = self.good = False
        self.first = self.last = self.last_sent = self.last_at = 0
        self.tail = b""
        assert self.transport is not None
        self.transport.write(self.run.target.request)

    def data_received(self, data: bytes) -> None:
        if self.busy:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.busy = False
                if self.transport is not None:
                    self.transport.abort()
                self.run.finished(self, "bad HTTP")

    def on_headers_complete(self) -> None:
        self.head_done = True
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        run = self.run
        if self.status != 200:
            self.tail = (self.tail + data)[-400:]
        elif not run.stream:
            self.good = self.good or run.proof in data or run.proof in self.tail + data[:20]
            self.tail = data[-20:]
        else:
            self.on_events(data)

    def on_events(self, data: bytes) -> None:
        at = now_ns()
        record = self.run.record
        data = self.tail + data
        # An unfinished event waits for the next read, so that no stamp is missed or seen twice.
        cut = data.rfind(b"\n\n")
        if cut < 0:
            self.tail = data
            return
        data, self.tail = data[: cut + 2], data[cut + 2 :]
        stamps = STAMP.findall(data)
        if b"data: [DONE]" in data:
            self.good = True
        if stamps:
            record.chunks += len(stamps)
            if not self.first:
                self.first = at
                record.ttft.append(at - self.started)
            else:
                record.gap.append(at - self.last)
            self.last = at
            for stamp in stamps:
                sent = int(stamp)
                record.delay.append(at - sent)
                if self.last_sent:
                    record.jitter.append(abs((at - self.last_at) - (sent - self.last_sent)))
                self.last_sent, self.last_at = sent, at
        elif not self.first and b"data:" in data and b'"content":""' not in data:
            self.first = self.last = at
            record.ttft.append(at - self.started)

    def on_message_complete(self) -> None:
        self.busy = False
        error = ""
        if self.status != 200:
            error = f"status {self.status}"
        elif not self.good:
            error = "stream without [DONE]" if self.run.stream else "answer without the expected field"
        if not self.parser.should_keep_alive() and self.transport is not None:
            self.transport.close()
            self.transport = None
        self.run.finished(self, error)


class Run:
    """One slice: a closed loop of N connections, or an open loop at a rate."""

    def __init__(self, target: Target, options: Options, stream: bool, proof: bytes) -> None:
        self.target, self.options, self.stream, self.proof = target, options, stream, proof
        self.loop = asyncio.get_running_loop()
        self.record = Slice()
        self.idle: list[Connection] = []
        self.all: list[Connection] = []
        self.queue: deque[int] = deque()
        self.left: int | None = None
        self.open = False
        self.in_flight = 0
        self.drained = asyncio.Event()
        self.replacing: set[asyncio.Task[None]] = set()

    async def connect(self, count: int) -> None:
        for _ in range(count):
            _, connection = await self.loop.create_connection(
                lambda: Connection(self), self.target.host, self.target.port
            )
            self.idle.append(connection)
            self.all.append(connection)

    def dispatch(self, connection: Connection, scheduled: int = 0) -> None:
        self.in_flight += 1
        connection.send(scheduled)

    def finished(self, connection: Connection, error: str) -> None:
        self.in_flight -= 1
        record = self.record
        if error:
            record.errors[error] += 1
        else:
            record.ok += 1
            record.latency.append(now_ns() - connection.scheduled)
        if not connection.is_open:
            if self.open:
                task = self.loop.create_task(self.replace())
                self.replacing.add(task)
                task.add_done_callback(self.replacing.discard)
        elif self.open and self.options.rate == 0 and self.take():
            self.dispatch(connection)
        elif self.open and self.queue:
            self.dispatch(connection, self.queue.popleft())
        else:
            self.idle.append(connection)
        if not self.open and self.in_flight == 0:
            self.drained.set()

    def take(self) -> bool:
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0

    async def replace(self) -> None:
        try:
            await self.connect(1)
        except OSError:
            self.record.errors["connection refused"] += 1
            return
        if self.open and self.options.rate == 0 and self.take():
            self.dispatch(self.idle.pop())

    async def drain(self) -> None:
        self.open = False
        if self.in_flight:
            self.drained.clear()
            try:
                await asyncio.wait_for(self.drained.wait(), self.options.timeout)
            except TimeoutError:
                for connection in self.all:
                    if connection.busy:
                        connection.busy = False
                        self.record.errors["timeout"] += 1
                        if connection.transport:
                            connection.transport.abort()
                self.in_flight = 0

    async def once(self, seconds: float, measured: bool) -> Slice:
        """Call for so long, wait for the last answers; what is recorded reaches from the first call to that."""
        options, target = self.options, self.target
        self.record = Slice()
        self.left = options.requests or None
        self.open = True
        if measured:
            target.processes.refresh()
            target.aux.refresh()
        if not options.rate:
            self.idle = [connection for connection in self.idle if connection.is_open]
            await self.connect(options.concurrency - len(self.idle))
        cpu, aux = target.processes.cpu(), target.aux.cpu()
        started = now_ns()
        if options.rate and measured:
            await self.open_loop(seconds)
        else:
            await self.closed_loop(seconds, started)
        await self.drain()
        self.record.seconds = (now_ns() - started) / 1e9
        self.record.cpu = target.processes.cpu() - cpu
        self.record.aux_cpu = target.aux.cpu() - aux
        self.record.memory_kib = target.processes.largest_kib()
        return self.record

    async def closed_loop(self, seconds: float, started: int) -> None:
        connections, self.idle = self.idle, []
        for connection in connections:
            if not connection.is_open:
                await self.replace()
            elif self.take():
                self.dispatch(connection)
            else:
                self.idle.append(connection)
        stop = started + int(seconds * 1e9)
        while now_ns() < stop and not (self.left is not None and self.left < 0 and self.in_flight == 0):
            await asyncio.sleep(min(0.1, max(0.0, (stop - now_ns()) / 1e9)))
            self.target.processes.rss_kib()

    async def open_loop(self, seconds: float) -> None:
        at = sampled = now_ns()
        stop = at + int(seconds * 1e9)
        gap = 1e9 / self.options.rate
        while True:
            at += int(random.expovariate(1) * gap)
            if at >= stop:
                break
            while (wait := at - now_ns()) > 200_000:
                await asyncio.sleep(wait / 1e9)
            while self.idle:
                connection = self.idle.pop()
                if connection.is_open:
                    self.dispatch(connection, at)
                    break
            else:
                if len(self.all) < self.options.max_connections:
                    await self.connect(1)
                    self.dispatch(self.idle.pop(), at)
                else:
                    self.queue.append(at)
            if now_ns() - sampled > 200_000_000:
                sampled = now_ns()
                self.target.processes.rss_kib()
        while self.queue and now_ns() < stop + int(self.options.timeout * 1e9):
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for connection in self.all:
            if connection.transport:
                connection.transport.close()
