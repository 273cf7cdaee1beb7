#!/usr/bin/env python
"""Load generator for OpenAI-compatible gateways: what a request costs, and what a gateway adds.

Any number of targets run in one invocation, in short slices that take turns (A B C, then B C A, ...), so that the
noise of a shared machine hits all of them alike; every ratio is taken within a round. The first is the reference.

    python benchmarks/load.py --target direct,url=http://127.0.0.1:9100/v1 \\
        --target ours,url=http://127.0.0.1:8000/v1,key=sk-1,pids=port:8000 \\
        --mode chat --concurrency 32 --seconds 3 --rounds 5 --json out.json

A target is NAME,url=...[,key=...][,model=...][,pids=...][,aux=...][,headers=A:b|C:d]:
    pids   processes whose CPU and memory are the gateway's: numbers joined by "+", or port:N (whoever listens
           there); descendants are always included
    aux    the same for what it leans on (Redis, Postgres); reported apart

One process, raw HTTP on uvloop; see client.py for its loops. `make bench` starts everything by itself and calls
`measure` here; this command line is for a gateway that already runs.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.client import (
    Endpoint,
    Options,
    Run,
    Scenario,
    Slice,
    Target,
    percentile,
    summary,
)
from benchmarks.ratios import Spread, fraction, ratio

FIRST_WARM_SECONDS, WARM_SECONDS, PAUSE_SECONDS = 1.5, 0.3, 0.1
FIGURES = ("cpu_ms_per_request", "cpu_us_per_chunk", "p50_ms", "p99_ms", "chunk_delay_p99_ms", "rps")

Measured = dict[str, dict[str, Target]]  # by name of the scenario, then of the target


async def measure(
    plan: Sequence[tuple[Scenario, Sequence[Endpoint]]], *, rounds: int, seconds: float, timeout: float = 60
) -> Measured:
    """Every scenario and every target in each round, so that any two of them can be compared within it."""
    measured = {scenario.name: {one.name: Target(one, scenario) for one in called} for scenario, called in plan}
    for number in range(rounds):
        for scenario, _ in plan:
            targets = list(measured[scenario.name].values())
            first = number % len(targets)
            for target in targets[first:] + targets[:first]:
                warm = WARM_SECONDS if number else FIRST_WARM_SECONDS
                target.slices.append(await one_slice(target, scenario, warm, seconds, timeout))
                await asyncio.sleep(PAUSE_SECONDS)
    return measured


async def one_slice(target: Target, scenario: Scenario, warm: float, seconds: float, timeout: float) -> Slice:
    """Warmed up in the same shape, unmeasured; then the record starts clean."""
    is_stream = scenario.mode == "stream"
    options = Options(concurrency=scenario.callers, rate=scenario.rate, timeout=timeout)
    run = Run(target, options, is_stream, scenario.proof)
    if scenario.rate:
        await run.connect(64)
    # A few are enough where many, or long ones, would keep a slow system busy for half a minute.
    options.requests = 8 if is_stream else 64 if scenario.callers > 64 else 0
    await run.once(warm, False)
    options.requests = 0
    record = await run.once(seconds, True)
    run.close()
    return record


def of_round(record: Slice) -> dict[str, float | None]:
    """The figures of one slice; None where there is none."""
    latency, delay = sorted(record.latency), sorted(record.delay)
    return {
        "rps": round(record.ok / record.seconds, 1),
        "p50_ms": round(percentile(latency, 0.5) / 1e6, 4) if latency else None,
        "p99_ms": round(percentile(latency, 0.99) / 1e6, 4) if latency else None,
        "cpu_ms_per_request": round(1000 * record.cpu / record.done, 5) if record.done else None,
        "cpu_us_per_chunk": round(1e6 * record.cpu / record.chunks, 3) if record.chunks else None,
        "chunk_delay_p50_ms": round(percentile(delay, 0.5) / 1e6, 4) if delay else None,
        "chunk_delay_p99_ms": round(percentile(delay, 0.99) / 1e6, 4) if delay else None,
        "memory_mib": round(record.memory_kib / 1024, 1) if record.memory_kib else None,
    }


def over_rounds(target: Target, figure: str) -> list[float]:
    """The figure in each round; a slice without it was a failure, and nothing can be said."""
    values = [of_round(record)[figure] for record in target.slices]
    found = [value for value in values if value is not None]
    if len(found) != len(values):
        errors = sum((record.errors for record in target.slices), start=Counter())
        raise SystemExit(f"{target.name}: a slice tells no {figure}: {dict(errors)}")
    return found


def report(target: Target) -> dict[str, Any]:
    """All slices together, and each round by itself."""
    slices = target.slices
    ok, done = sum(one.ok for one in slices), sum(one.done for one in slices)
    errors = sum((one.errors for one in slices), start=Counter())
    seconds, cpu, aux = (sum(getattr(one, name) for one in slices) for name in ("seconds", "cpu", "aux_cpu"))
    chunks = sum(one.chunks for one in slices)

    def gather(name: str) -> dict[str, float] | None:
        return summary([value for one in slices for value in getattr(one, name)])

    found: dict[str, Any] = {"answered": ok, "errors": dict(errors), "seconds": round(seconds, 2)}
    found |= {"rps": round(ok / seconds, 1), "latency": gather("latency")}
    if chunks:
        found |= {"chunks": chunks, "chunks_per_second": round(chunks / seconds), "ttft": gather("ttft")}
        found |= {f"chunk_{name}": gather(name) for name in ("gap", "delay", "jitter")}
    if target.processes.pids and done:
        found |= {"cpu_ms_per_request": round(1000 * cpu / done, 5), "cpu_cores": round(cpu / seconds, 3)}
        found |= {"rps_per_core": round(done / cpu, 1) if cpu else None}
        found |= {"rss_peak_mib": round(target.processes.peak_kib / 1024, 1)}
        found |= {"pss_mib": round(target.processes.pss_kib() / 1024, 1), "processes": len(target.processes.pids)}
        found |= {"cpu_us_per_chunk": round(1e6 * cpu / chunks, 2)} if chunks else {}
    if target.aux.pids and done:
        found["aux_cpu_ms_per_request"] = round(1000 * aux / done, 4)
    rounds = [of_round(one) for one in slices]
    names = [name for name in rounds[0] if all(one[name] is not None for one in rounds)]
    found["rounds"] = {name: [one[name] for one in rounds] for name in names}
    return found


def compare(base: Target, other: Target) -> dict[str, Spread]:
    """Ratios of the other to the base, for what both tell in every round."""
    ours, theirs = ([of_round(one) for one in target.slices] for target in (other, base))
    found = {}
    for name in FIGURES:
        pairs = [(our[name], their[name]) for our, their in zip(ours, theirs, strict=True)]
        if all(our is not None and their for our, their in pairs):
            found[name] = ratio([our or 0 for our, _ in pairs], [their or 1 for _, their in pairs])
    return found


def table(targets: dict[str, Target]) -> str:
    columns = ("rps", "p50_ms", "p99_ms", "cpu_ms_per_request", "cpu_us_per_chunk", "chunk_delay_p99_ms", "memory_mib")
    rows = [["target (medians of rounds)", "answered", "errors", *columns]]
    for name, target in targets.items():
        told = report(target)
        values = [told["rounds"].get(column) for column in columns]
        shown = [f"{Spread.of(one).median:.4g}" if one else "" for one in values]
        rows.append([name, str(told["answered"]), str(told["errors"] or ""), *shown])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    base, *others = targets.values()
    for other in others:
        ratios = ", ".join(f"{name} {fraction(spread.median)}" for name, spread in compare(base, other).items())
        lines.append(f"{other.name} to {base.name}: {ratios}")
    return "\n".join(lines)


def endpoint(text: str) -> Endpoint:
    name, *parts = text.split(",")
    values = dict(part.partition("=")[::2] for part in parts)
    headers = dict(header.partition(":")[::2] for header in values.pop("headers", "").split("|") if header)
    model = values.pop("model", "fake")
    return Endpoint(name, values.pop("url"), model=model, embedder=model, headers=headers, **values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--target", action="append", required=True, type=endpoint, help="the first is the reference")
    add("--mode", choices=("chat", "stream", "embeddings"), default="chat")
    add("--directive", default="", help="behaviour asked of the scripted provider, e.g. 'chunks=100 delay=10'")
    add("--prompt", type=int, default=400, help="characters of prompt")
    add("--inputs", type=int, default=1, help="texts in one embeddings request")
    add("--no-usage", action="store_true", help="do not ask for the usage chunk in a stream")
    add("--concurrency", type=int, default=32)
    add("--rate", type=float, default=0, help="open loop: requests per second")
    add("--seconds", type=float, default=3, help="length of one slice")
    add("--rounds", type=int, default=3)
    add("--timeout", type=float, default=60)
    add("--json", type=Path, help="write the full result here")
    given = parser.parse_args()
    kind = {name: getattr(given, name) for name in ("mode", "rate", "directive", "prompt", "inputs")}
    scenario = Scenario("load", callers=given.concurrency, usage=not given.no_usage, **kind)
    plan = [(scenario, given.target)]
    targets = uvloop.run(measure(plan, rounds=given.rounds, seconds=given.seconds, timeout=given.timeout))["load"]
    print(table(targets))
    if given.json:
        base, *others = targets.values()
        result: dict[str, Any] = {"targets": {name: report(target) for name, target in targets.items()}}
        result["to_" + base.name] = {
            other.name: {name: spread.as_dict() for name, spread in compare(base, other).items()} for other in others
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(not any(one.ok for one in target.slices) for target in targets.values()))


if __name__ == "__main__":
    sys.exit(main())
