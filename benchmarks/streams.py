#!/usr/bin/env python
"""Many streams at once on one web process: memory of one, delay and CPU of a chunk, errors, and the usage records.

    python benchmarks/streams.py [--streams N] [--seconds N] [--rate CHUNKS_A_SECOND] [--json FILE]

Starts everything itself; the streams begin together, last for that long and end by themselves. The same streams go to
the provider directly before, a quarter as long. Ends with 1 when a stream failed or a usage record is missing. Writes
benchmarks/results/streams.json and its part of docs/performance.md when nothing else is asked for.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import document
from benchmarks.client import Endpoint, Options, Run, Scenario, Target, summary
from benchmarks.processes import end_with_our_own
from benchmarks.systems import Direct, OpenGate, stage

WARM_STREAMS = 20
PATIENCE_SECONDS = 30.0  # of a stream beyond the time that it should take


async def streamed(endpoint: Endpoint, streams: int, seconds: float, rate: float) -> dict[str, Any]:
    """So many streams at once, each as long; what they cost and how late their chunks came."""
    directive = f"chunks={round(rate * seconds)} delay={1000 / rate:g}"
    target = Target(endpoint, Scenario("streams", "stream", streams, directive=directive))
    idle_kib = target.processes.largest_kib()
    run = Run(target, Options(streams, requests=streams, timeout=PATIENCE_SECONDS), True, b"")
    peak = asyncio.create_task(peak_kib(target))
    # The run ends when all have been answered, or when one is late by our patience.
    record = await run.once(seconds + PATIENCE_SECONDS, True)
    peak.cancel()
    most_kib = await peak
    run.close()
    return {
        "ended_well": record.ok,
        "errors": dict(record.errors),
        "seconds": round(record.seconds, 1),
        "chunks": record.chunks,
        "chunks_a_second": round(record.chunks / record.seconds),
        "cpu_us_per_chunk": round(1e6 * record.cpu / max(record.chunks, 1), 1),
        "cores": round(record.cpu / record.seconds, 2),
        "chunk_delay": summary(record.delay),
        "ttft": summary(record.ttft),
        "mib_idle": round(idle_kib / 1024, 1),
        "mib_at_most": round(most_kib / 1024, 1),
        "kib_a_stream": round((most_kib - idle_kib) / streams, 1),
    }


async def peak_kib(target: Target) -> int:
    most = 0
    try:
        while True:
            most = max(most, target.processes.largest_kib())
            await asyncio.sleep(1)
    except asyncio.CancelledError:
        return most


def measure(streams: int, seconds: float, rate: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"machine": document.machine(), "streams": streams, "chunks_a_second_each": rate}
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengate-bench-")))
        where = stack.enter_context(stage(home))
        system = OpenGate(more={"OPENGATE_UPSTREAM_MAX_CALLS": str(2 * streams)})
        opengate, direct = system.start(where, stack), Direct().start(where, stack)
        figures["direct"] = uvloop.run(streamed(direct, streams, seconds / 4, rate))
        uvloop.run(streamed(opengate, WARM_STREAMS, 1, rate))
        figures["opengate"] = uvloop.run(streamed(opengate, streams, seconds, rate))
        time.sleep(1)
        figures["usage_records_missing"] = WARM_STREAMS + streams - system.usage_records()
        figures["warnings_of_the_web_process"] = (home / "web.log").read_text().splitlines()[:20]
    return figures


def section(figures: dict[str, Any]) -> str:
    def cells(found: dict[str, Any]) -> list[str]:
        delay = found["chunk_delay"] or {}
        return [
            f"{found['ended_well']:,}",
            f"{sum(found['errors'].values())}",
            f"{found['chunks_a_second']:,}",
            f"{found['cpu_us_per_chunk']:g}",
            f"{found['cores']:g}",
            " / ".join(document.readable(delay[name]) for name in ("p50_ms", "p99_ms", "max_ms") if name in delay),
            f"{found['mib_idle']:g}, {found['mib_at_most']:g}",
            f"{found['kib_a_stream']:g}",
        ]

    head = ["", "ended well", "errors", "chunks a second", "CPU a chunk, µs", "cores"]
    head += ["chunk's delay p50 / p99 / longest, ms", "MiB before, at most", "KiB a stream"]
    body = [[name, *cells(figures[name])] for name in ("direct", "opengate")]
    missing = figures["usage_records_missing"]
    told = "Every stream has its usage record." if not missing else f"**{missing} usage records are missing.**"
    return f"{document.machine_sentence(figures['machine'])}\n\n{document.rows(head, body)}\n\n{told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--json", type=Path, help="where the figures go, instead of into the results and the document")
    given = parser.parse_args()
    end_with_our_own()
    figures = measure(given.streams, given.seconds, given.rate)
    print(section(figures))
    document.keep(given.json or document.RESULTS / "streams.json", figures)
    if not given.json:
        document.write("streams", section(figures))
    return int(bool(figures["opengate"]["errors"] or figures["usage_records_missing"]))


if __name__ == "__main__":
    sys.exit(main())
