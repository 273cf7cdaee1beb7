#!/usr/bin/env python3
"""Load generator for OpenAI-compatible gateways: what a request costs, and what a gateway adds.

One process, raw asyncio protocol, httptools, uvloop. Any number of targets run in one
invocation, interleaved in short slices (A B C, then B C A, ...), so that the noise of a
shared machine hits all of them alike; every ratio is taken slice by slice and reported as
the median over the rounds. The first target is the reference.

    load.py --target direct,url=http://127.0.0.1:9100/v1 \\
            --target ours,url=http://127.0.0.1:8000/v1,key=sk-1,pids=port:8000 \\
            --mode chat --concurrency 32 --seconds 3 --rounds 5 --json out.json

A target is NAME,url=...[,key=...][,model=...][,pids=...][,aux=...][,headers=A:b|C:d]:
    pids   processes whose CPU and memory are the gateway's: numbers joined by '+',
           or port:N (whoever listens there); descendants are always included
    aux    the same for what it leans on (Redis, Postgres); reported apart

Closed loop (--concurrency): each connection sends its next request when the last is answered.
Open loop (--rate): Poisson arrivals; latency counts from the scheduled arrival, so a stalled
server cannot hide its queue.
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import json
import os
import random
import re
import resource
import statistics
import sys
import time
from urllib.parse import urlsplit

import httptools

try:
    import uvloop
except ImportError:
    uvloop = None

TICK = os.sysconf("SC_CLK_TCK")
STAMP = re.compile(rb"@t(\d+)@")
now_ns = time.monotonic_ns


# ---------------------------------------------------------------- what processes cost


def listener_pids(port: int) -> list[int]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = open(table).read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            part = row.split()
            if part[3] == "0A" and int(part[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{part[9]}]")
    found = []
    for fd in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(fd) in inodes:
                found.append(int(fd.split("/")[2]))
        except OSError:
            pass
    return sorted(set(found))


def stat_fields(pid: int) -> list[str] | None:
    try:
        text = open(f"/proc/{pid}/stat").read()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def with_descendants(roots) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        pid = int(path.split("/")[2])
        fields = stat_fields(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    seen, todo = [], list(roots)
    while todo:
        pid = todo.pop()
        if pid not in seen and os.path.exists(f"/proc/{pid}"):
            seen.append(pid)
            todo += children.get(pid, [])
    return seen


class Processes:
    """CPU seconds and memory of a set of process trees."""

    def __init__(self, spec: str):
        self.spec = spec
        self.peak_kib = 0
        self.refresh()

    def refresh(self):
        roots = []
        for part in filter(None, self.spec.split("+")):
            roots += listener_pids(int(part[5:])) if part.startswith("port:") else [int(part)]
        self.pids = with_descendants(roots)

    def cpu(self) -> float:
        total = 0
        for pid in self.pids:
            fields = stat_fields(pid)
            if fields:  # utime stime, and those of children already reaped
                total += sum(int(fields[i]) for i in (11, 12, 13, 14))
        return total / TICK

    def rss_kib(self) -> int:
        total = 0
        for pid in self.pids:
            try:
                for line in open(f"/proc/{pid}/status"):
                    if line.startswith("VmRSS"):
                        total += int(line.split()[1])
                        break
            except OSError:
                pass
        self.peak_kib = max(self.peak_kib, total)
        return total

    def pss_kib(self) -> int:
        total = 0
        for pid in self.pids:
            try:
                for line in open(f"/proc/{pid}/smaps_rollup"):
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
                        break
            except OSError:
                pass
        return total


# ---------------------------------------------------------------- one request


def percentile(sorted_values, share: float):
    if not sorted_values:
        return None
    at = min(len(sorted_values) - 1, max(0, round(share * (len(sorted_values) - 1))))
    return sorted_values[at]


def summary(values_ns) -> dict | None:
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    ms = 1e6
    return {
        "p50_ms": round(percentile(ordered, 0.50) / ms, 4),
        "p95_ms": round(percentile(ordered, 0.95) / ms, 4),
        "p99_ms": round(percentile(ordered, 0.99) / ms, 4),
        "max_ms": round(ordered[-1] / ms, 4),
        "mean_ms": round(sum(ordered) / len(ordered) / ms, 4),
        "n": len(ordered),
    }


class Slice:
    """What one slice of one target recorded."""

    def __init__(self):
        self.latency, self.ttft, self.gap, self.delay, self.jitter = [], [], [], [], []
        self.errors: dict[str, int] = {}
        self.ok = self.chunks = self.bytes = 0
        self.seconds = self.cpu = self.aux_cpu = 0.0

    def error(self, kind: str):
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Target:
    def __init__(self, spec: str, body: bytes, path: str, options):
        self.name, _, rest = spec.partition(",")
        self.values = dict(part.partition("=")[::2] for part in rest.split(",") if part)
        parts = urlsplit(self.values["url"])
        self.host, self.port = parts.hostname, parts.port or 80
        self.model = self.values.get("model", options.model)
        body = body.replace(b"MODEL_NAME", self.model.encode())
        key = self.values.get("key", "")
        auth = f"Authorization: Bearer {key}\r\n" if key else ""
        for header in filter(None, self.values.get("headers", "").split("|")):
            name, _, value = header.partition(":")
            auth += f"{name}: {value}\r\n"
        self.request = (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{auth}"
            f"Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: bench\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.processes = Processes(self.values.get("pids", ""))
        self.aux = Processes(self.values.get("aux", ""))
        self.slices: list[Slice] = []


class Connection(asyncio.Protocol):
    def __init__(self, run):
        self.run = run
        self.transport = None
        self.parser = None
        self.busy = False
        self.scheduled = 0

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self.transport = None
        if self.busy:
            self.busy = False
            self.run.finished(self, "connection lost" if self.head_done else "connection lost before the answer")

    def send(self, scheduled: int = 0):
        self.busy = True
        self.started = now_ns()
        self.scheduled = scheduled or self.started
        self.parser = httptools.HttpResponseParser(self)
        self.head_done = self.good = self.ended = False
        self.first = self.last = self.last_sent = 0
        self.tail = b""
        self.pending_chunks = 0
        self.transport.write(self.run.target.request)

    def data_received(self, data):
        if self.busy:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.busy = False
                self.transport.abort()
                self.run.finished(self, "bad HTTP")

    def on_headers_complete(self):
        self.head_done = True
        self.status = self.parser.get_status_code()

    def on_body(self, data):
        run = self.run
        if self.status != 200:
            self.tail = (self.tail + data)[-400:]
            return
        if not run.stream:
            self.good = self.good or run.proof in data or run.proof in self.tail + data[:20]
            self.tail = data[-20:]
            return
        at = now_ns()
        record = run.record
        data = self.tail + data
        # Keep an unfinished event for the next read, so that no stamp is missed or seen twice.
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

    def on_message_complete(self):
        self.busy = False
        if self.status != 200:
            error = f"status {self.status}"
        elif not self.good:
            error = "stream without [DONE]" if self.run.stream else "answer without the expected field"
        else:
            error = ""
        if not self.parser.should_keep_alive() and self.transport is not None:
            self.transport.close()
            self.transport = None
        self.run.finished(self, error)


class Run:
    """One slice: a closed loop of N connections, or an open loop at a rate."""

    def __init__(self, target, options, stream: bool, proof: bytes):
        self.target, self.options, self.stream, self.proof = target, options, stream, proof
        self.loop = asyncio.get_running_loop()
        self.record = Slice()
        self.idle: list[Connection] = []
        self.all: list[Connection] = []
        self.queue: list[int] = []
        self.left = None
        self.open = False
        self.in_flight = 0
        self.drained = asyncio.Event()

    async def connect(self, count: int):
        for _ in range(count):
            _, connection = await self.loop.create_connection(
                lambda: Connection(self), self.target.host, self.target.port
            )
            self.idle.append(connection)
            self.all.append(connection)

    def dispatch(self, connection, scheduled: int = 0):
        self.in_flight += 1
        connection.send(scheduled)

    def finished(self, connection, error: str):
        self.in_flight -= 1
        record = self.record
        if error:
            record.error(error)
        else:
            record.ok += 1
            record.latency.append(now_ns() - connection.scheduled)
        if connection.transport is None or connection.transport.is_closing():
            if self.open:
                self.loop.create_task(self.replace())
        elif self.open and self.options.rate == 0 and self.take():
            self.dispatch(connection)
        elif self.open and self.queue:
            self.dispatch(connection, self.queue.pop(0))
        else:
            self.idle.append(connection)
        if not self.open and self.in_flight == 0:
            self.drained.set()

    def take(self) -> bool:
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0

    async def replace(self):
        try:
            await self.connect(1)
        except OSError:
            self.record.error("connection refused")
            return
        if self.open and self.options.rate == 0 and self.take():
            self.dispatch(self.idle.pop())

    async def drain(self):
        self.open = False
        if self.in_flight:
            self.drained.clear()
            try:
                await asyncio.wait_for(self.drained.wait(), self.options.timeout)
            except TimeoutError:
                for connection in self.all:
                    if connection.busy:
                        connection.busy = False
                        self.record.error("timeout")
                        if connection.transport:
                            connection.transport.abort()
                self.in_flight = 0

    async def once(self, seconds: float, measured: bool):
        options = self.options
        self.record = Slice()
        self.left = options.requests or None
        self.open = True
        target = self.target
        if measured:
            target.processes.refresh()
            target.aux.refresh()
        if not options.rate:
            self.idle = [c for c in self.idle if c.transport is not None and not c.transport.is_closing()]
            await self.connect(options.concurrency - len(self.idle))
        cpu, aux = target.processes.cpu(), target.aux.cpu()
        started = now_ns()
        if options.rate and measured:
            await self.open_loop(seconds)
        else:
            connections, self.idle = self.idle, []
            for connection in connections:
                if connection.transport is None or connection.transport.is_closing():
                    await self.replace()
                elif self.take():
                    self.dispatch(connection)
                else:
                    self.idle.append(connection)
            stop = started + int(seconds * 1e9)
            while now_ns() < stop and not (self.left is not None and self.left < 0 and self.in_flight == 0):
                await asyncio.sleep(min(0.1, max(0.0, (stop - now_ns()) / 1e9)))
                target.processes.rss_kib()
        await self.drain()
        self.record.seconds = (now_ns() - started) / 1e9
        self.record.cpu = target.processes.cpu() - cpu
        self.record.aux_cpu = target.aux.cpu() - aux
        return self.record

    async def open_loop(self, seconds: float):
        start = now_ns()
        at, stop = start, start + int(seconds * 1e9)
        gap = 1e9 / self.options.rate
        sampled = start
        while True:
            at += int(random.expovariate(1) * gap)
            if at >= stop:
                break
            while (wait := at - now_ns()) > 200_000:
                await asyncio.sleep(wait / 1e9)
            while self.idle:
                connection = self.idle.pop()
                if connection.transport is not None and not connection.transport.is_closing():
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

    def close(self):
        for connection in self.all:
            if connection.transport:
                connection.transport.close()


# ---------------------------------------------------------------- all targets, interleaved


def request_body(options) -> tuple[bytes, str, bool, bytes]:
    directive = f"[[bench {options.directive}]] " if options.directive else ""
    text = directive + ("All work and no play makes a dull gateway. " * 1000)[: options.prompt]
    if options.mode == "embeddings":
        body = {"model": "MODEL_NAME", "input": [text] * options.inputs, "encoding_format": "float"}
        return json.dumps(body).encode(), "/embeddings", False, b'"embedding"'
    body = {
        "model": "MODEL_NAME",
        "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}],
    }
    if options.mode == "stream":
        body["stream"] = True
        if not options.no_usage:
            body["stream_options"] = {"include_usage": True}
        return json.dumps(body).encode(), "/chat/completions", True, b""
    return json.dumps(body).encode(), "/chat/completions", False, b'"choices"'


def report(target: Target) -> dict:
    slices = target.slices
    ok = sum(s.ok for s in slices)
    failed = sum(sum(s.errors.values()) for s in slices)
    errors: dict[str, int] = {}
    for piece in slices:
        for kind, count in piece.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    seconds, cpu, aux = (sum(getattr(s, k) for s in slices) for k in ("seconds", "cpu", "aux_cpu"))
    chunks = sum(s.chunks for s in slices)
    gather = lambda name: summary([v for s in slices for v in getattr(s, name)])
    done = ok + failed
    out = {
        "requests": ok,
        "errors": failed,
        "error_kinds": errors,
        "seconds": round(seconds, 3),
        "rps": round(ok / seconds, 1) if seconds else 0,
        "latency": gather("latency"),
    }
    if chunks:
        out |= {
            "chunks": chunks,
            "chunks_per_second": round(chunks / seconds),
            "ttft": gather("ttft"),
            "chunk_gap": gather("gap"),
            "chunk_delay": gather("delay"),
            "chunk_jitter": gather("jitter"),
        }
    if target.processes.pids and done:
        out |= {
            "cpu_ms_per_request": round(1000 * cpu / done, 4),
            "cpu_cores": round(cpu / seconds, 3),
            "rps_per_core": round(done / cpu, 1) if cpu else None,
            "rss_peak_mib": round(target.processes.peak_kib / 1024, 1),
            "pss_mib": round(target.processes.pss_kib() / 1024, 1),
            "processes": len(target.processes.pids),
        }
        if chunks:
            out["cpu_us_per_chunk"] = round(1e6 * cpu / chunks, 2)
    if target.aux.pids and done:
        out |= {"aux_cpu_ms_per_request": round(1000 * aux / done, 4)}
    out["rounds"] = [
        {
            "rps": round(s.ok / s.seconds, 1),
            "p50_ms": round(percentile(sorted(s.latency), 0.5) / 1e6, 4) if s.latency else None,
            "p99_ms": round(percentile(sorted(s.latency), 0.99) / 1e6, 4) if s.latency else None,
            "cpu_ms_per_request": round(1000 * s.cpu / max(1, s.ok + sum(s.errors.values())), 4),
        }
        for s in slices
    ]
    return out


def compare(base: dict, other: dict) -> dict:
    out = {}
    for key in ("rps", "p50_ms", "p99_ms", "cpu_ms_per_request"):
        pairs = [(a[key], b[key]) for a, b in zip(base["rounds"], other["rounds"]) if a[key] and b[key]]
        if pairs:
            ratios = sorted(b / a for a, b in pairs)
            out[key.replace("_ms", "") + "_ratio"] = {
                "median": round(statistics.median(ratios), 4),
                "min": round(ratios[0], 4),
                "max": round(ratios[-1], 4),
            }
            if key in ("p50_ms", "p99_ms"):
                added = sorted(b - a for a, b in pairs)
                out["added_" + key] = {
                    "median": round(statistics.median(added), 4),
                    "min": round(added[0], 4),
                    "max": round(added[-1], 4),
                }
    if "ttft" in base and "ttft" in other and base["ttft"] and other["ttft"]:
        out["added_ttft_p50_ms"] = round(other["ttft"]["p50_ms"] - base["ttft"]["p50_ms"], 4)
        out["added_chunk_delay_p50_ms"] = round(other["chunk_delay"]["p50_ms"] - base["chunk_delay"]["p50_ms"], 4)
        out["added_chunk_delay_p99_ms"] = round(other["chunk_delay"]["p99_ms"] - base["chunk_delay"]["p99_ms"], 4)
    return out


async def main(options) -> dict:
    body, path, stream, proof = request_body(options)
    targets = [Target(spec, body, path, options) for spec in options.target]
    for number in range(options.rounds):
        order = targets[number % len(targets) :] + targets[: number % len(targets)]
        for target in order:
            run = Run(target, options, stream, proof)
            # Warm up in the same shape, unmeasured, then let the record start clean.
            if options.rate:
                await run.connect(min(64, options.max_connections))
            keep, options.requests = options.requests, 0
            await run.once(options.warm if number else max(options.warm, options.first_warm), False)
            options.requests = keep
            target.slices.append(await run.once(options.seconds, True))
            run.close()
            await asyncio.sleep(options.pause)
    results = {target.name: report(target) for target in targets}
    used = resource.getrusage(resource.RUSAGE_SELF)
    base = targets[0].name
    return {
        "mode": options.mode,
        "concurrency": options.concurrency,
        "rate": options.rate,
        "directive": options.directive,
        "prompt": options.prompt,
        "reference": base,
        "targets": results,
        "versus_reference": {t.name: compare(results[base], results[t.name]) for t in targets[1:]},
        "load_generator_cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
    }


def table(result: dict) -> str:
    head = ["target", "ok", "err", "rps", "p50", "p95", "p99", "cpu ms/req", "aux ms/req", "rss MiB"]
    stream = result["mode"] == "stream"
    if stream:
        head += ["ttft p50", "chunk delay p50", "p99", "jitter p99", "cpu us/chunk"]
    rows = [head]
    for name, t in result["targets"].items():
        lat = t["latency"] or {}
        row = [
            name,
            t["requests"],
            t["errors"],
            t["rps"],
            lat.get("p50_ms"),
            lat.get("p95_ms"),
            lat.get("p99_ms"),
            t.get("cpu_ms_per_request"),
            t.get("aux_cpu_ms_per_request"),
            t.get("rss_peak_mib"),
        ]
        if stream:
            pick = lambda k, p: (t.get(k) or {}).get(p)
            row += [
                pick("ttft", "p50_ms"),
                pick("chunk_delay", "p50_ms"),
                pick("chunk_delay", "p99_ms"),
                pick("chunk_jitter", "p99_ms"),
                t.get("cpu_us_per_chunk"),
            ]
        rows.append(
            [
                ""
                if v is None
                else f"{v:.3f}"
                if isinstance(v, float) and v < 100
                else f"{v:.0f}"
                if isinstance(v, float)
                else str(v)
                for v in row
            ]
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))) for r in rows
    ]
    for name, t in result["targets"].items():
        if t["error_kinds"]:
            lines.append(f"errors of {name}: {t['error_kinds']}")
    for name, versus in result["versus_reference"].items():
        added = versus.get("added_p50_ms", {}).get("median")
        worst = versus.get("added_p99_ms", {}).get("median")
        ratio = versus.get("cpu_per_request_ratio", {}).get("median")
        lines.append(
            f"{name} against {result['reference']}: added p50 {added} ms, added p99 {worst} ms"
            + (f", CPU per request x{ratio}" if ratio else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--target",
        action="append",
        required=True,
        help="NAME,url=...[,key=][,model=][,pids=][,aux=]; the first is the reference",
    )
    add("--mode", choices=("chat", "stream", "embeddings"), default="chat")
    add("--model", default="fake")
    add("--directive", default="", help="behaviour asked of the fake provider, e.g. 'chunks=100 delay=10'")
    add("--prompt", type=int, default=400, help="characters of prompt")
    add("--inputs", type=int, default=1, help="texts in one embeddings request")
    add("--no-usage", action="store_true", help="do not ask for the usage chunk in a stream")
    add("--concurrency", type=int, default=32)
    add("--rate", type=float, default=0, help="open loop: requests per second")
    add("--max-connections", type=int, default=1024)
    add("--requests", type=int, default=0, help="stop a slice after this many requests")
    add("--seconds", type=float, default=3, help="length of one slice")
    add("--rounds", type=int, default=3)
    add("--warm", type=float, default=0.3)
    add("--first-warm", type=float, default=1.5)
    add("--pause", type=float, default=0.1)
    add("--timeout", type=float, default=30)
    add("--json", default="", help="write the full result here")
    opts = parser.parse_args()
    outcome = (uvloop.run if uvloop else asyncio.run)(main(opts))
    if opts.json:
        with open(opts.json, "w") as file:
            json.dump(outcome, file, indent=1)
    print(table(outcome))
    if any(t["requests"] == 0 for t in outcome["targets"].values()):
        sys.exit(1)
