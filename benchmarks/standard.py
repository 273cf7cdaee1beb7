#!/usr/bin/env python
"""The standard set: what a call through OpenGate costs, beside LiteLLM, the provider itself, and the least proxy.

    python benchmarks/standard.py [--quick] [--without-litellm] [--json FILE]

Starts everything itself: PostgreSQL, Valkey, a cheap scripted provider, one web process of OpenGate with every feature
on, its worker, and LiteLLM (installed at the first time; without it the run goes on and says so). All systems take
turns in one run, in short slices over several rounds; the figures to trust are CPU a call and ratios. Afterwards 1,000
readers leave in the middle, and every answered call must have its usage record. Writes its figures into
benchmarks/results/standard.json and docs/performance.md; `--quick` only prints them.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import document, leaving, load
from benchmarks.client import Endpoint, Scenario
from benchmarks.load import Measured, over_rounds
from benchmarks.processes import end_with_our_own
from benchmarks.ratios import Spread, added_ratio, fraction, ratio
from benchmarks.systems import Direct, Floor, LiteLLM, OpenGate, Unavailable, stage

STREAM = Scenario("streams", "stream", 64, directive="chunks=100 delay=10")
ALONE = replace(STREAM, name="streams, LiteLLM not running")
CHATS = {
    1: Scenario("chat, 1 caller", callers=1),
    32: Scenario("chat, 32 callers", callers=32),
    256: Scenario("chat, 256 callers", callers=256),
}
EMBEDDINGS = Scenario("embeddings of 16 texts, 32 callers", "embeddings", 32, inputs=16)
SLOW = Scenario("chat, 40 a second", rate=40)  # what LiteLLM can keep up with
FAST = Scenario("chat, 400 a second, LiteLLM not running", rate=400)


@dataclass(frozen=True)
class Size:
    """Of a run: rounds, seconds of a slice, readers who leave."""

    rounds: int
    seconds: float
    readers: int


FULL, QUICK = Size(5, 2, 1000), Size(2, 0.5, 100)


@dataclass(frozen=True)
class Goal:
    """A figure that is promised: at most `must`, better `goal`."""

    name: str
    must: float
    goal: float
    spread: Callable[[Measured], Spread]
    needs_litellm: bool = True


def to_litellm(scenario: Scenario, figure: str) -> Callable[[Measured], Spread]:
    def spread(measured: Measured) -> Spread:
        targets = measured[scenario.name]
        return ratio(over_rounds(targets["opengate"], figure), over_rounds(targets["litellm"], figure))

    return spread


def added_latency(measured: Measured) -> Spread:
    ours, theirs, direct = (
        over_rounds(measured[CHATS[1].name][name], "p50_ms") for name in ("opengate", "litellm", "direct")
    )
    return added_ratio(ours, theirs, direct)


def delay_to_direct(scenario: Scenario) -> Callable[[Measured], Spread]:
    def spread(measured: Measured) -> Spread:
        ours, direct = (
            over_rounds(measured[scenario.name][name], "chunk_delay_p99_ms") for name in ("opengate", "direct")
        )
        return ratio(ours, direct)

    return spread


def growth(measured: Measured) -> Spread:
    many, some = (over_rounds(measured[CHATS[n].name]["opengate"], "cpu_ms_per_request") for n in (256, 32))
    return ratio(many, some)


GOALS = (
    Goal("CPU a chat call, 32 callers, to LiteLLM's", 1 / 30, 1 / 100, to_litellm(CHATS[32], "cpu_ms_per_request")),
    Goal("CPU a chat call, 1 caller, to LiteLLM's", 1 / 15, 1 / 40, to_litellm(CHATS[1], "cpu_ms_per_request")),
    Goal("p50 added to a chat call, 1 caller, to LiteLLM's", 1 / 15, 1 / 30, added_latency),
    Goal("CPU a streamed chunk, 64 streams, to LiteLLM's", 1 / 15, 1 / 30, to_litellm(STREAM, "cpu_us_per_chunk")),
    Goal("p99 of a chunk's delay, to direct's; LiteLLM not running", 10, 3, delay_to_direct(ALONE), False),
    Goal("the same beside LiteLLM, which waits meanwhile", 10, 3, delay_to_direct(STREAM)),
    Goal("growth of CPU a call from 32 to 256 callers", 2, 1.3, growth, False),
    Goal("memory of a web process, to LiteLLM's", 1 / 3, 1 / 5, to_litellm(CHATS[256], "memory_mib")),
)


def verdict(value: float, must: float, goal: float) -> str:
    """Of the median."""
    return "goal met" if value <= goal else "met" if value <= must else "**missed**"


def judged(measured: Measured, left: dict[str, Any], why_not: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for goal in GOALS:
        row: dict[str, Any] = {"figure": goal.name, "must": goal.must, "goal": goal.goal}
        if goal.needs_litellm and why_not:
            row["verdict"] = "not measured"
        else:
            spread = goal.spread(measured)
            row |= spread.as_dict() | {"verdict": verdict(spread.median, goal.must, goal.goal)}
        found.append(row)
    still_open = left["upstream_streams_left_open"]
    name = f"upstream streams left open by {left['readers']:,} readers who left"
    row = {"figure": name, "must": 0, "goal": 0, "median": still_open, "min": still_open, "max": still_open}
    return [*found, row | {"verdict": verdict(still_open, 0, 0)}]


def measure(size: Size, with_litellm: bool) -> dict[str, Any]:
    machine = document.machine()
    began = time.monotonic()
    why_not = "" if with_litellm else "LiteLLM was left out."
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengate-bench-")))
        where = stack.enter_context(stage(home))
        ours = OpenGate()
        opengate = ours.start(where, stack)
        bare = [system.start(where, stack) for system in (Direct(), Floor())]
        gc.freeze()
        said("Streams and an open loop, before LiteLLM runs ...")
        measured = run([(ALONE, [*bare, opengate]), (FAST, [*bare, opengate])], size)
        said(f"{size.readers} readers leave ...")
        left = leaving.measured(where, ours, opengate, size.readers)
        everyone = [*bare, opengate]
        if with_litellm:
            try:
                everyone.append(LiteLLM().start(where, stack))
            except Unavailable as error:
                why_not = str(error)
                said(why_not)
        # The same process; this user has a budget, reserved and settled in Postgres.
        with_budget = replace(opengate, name="budget", key=ours.key_with_budget)
        said("All systems in turns ...")
        plan = [(CHATS[callers], [*everyone, *([with_budget] if callers < 256 else [])]) for callers in CHATS]
        measured |= run([*plan, (STREAM, everyone), (EMBEDDINGS, everyone), (SLOW, everyone)], size)
        answered = sum(
            record.ok
            for targets in measured.values()
            for name in ("opengate", "budget")
            if name in targets
            for record in targets[name].slices
        )
        records = ours.usage_records()
        log = (home / "web.log").read_text().splitlines()
    if records < answered:
        raise SystemExit(f"{answered} calls were answered and measured, but only {records} usage records exist.")
    return {
        "machine": machine | {"minutes": round((time.monotonic() - began) / 60, 1)},
        "rounds": size.rounds,
        "seconds_a_slice": size.seconds,
        "litellm": why_not or LiteLLM.VERSION,
        "targets": judged(measured, left, why_not),
        "scenarios": {
            name: {target.name: load.report(target) for target in targets.values()}
            for name, targets in measured.items()
        },
        "readers_who_left": left,
        "calls_measured": answered,
        "usage_records_with_warm_up": records,
        "warnings_of_the_web_process": log[:20],
    }


def run(plan: list[tuple[Scenario, list[Endpoint]]], size: Size) -> Measured:
    return uvloop.run(load.measure(plan, rounds=size.rounds, seconds=size.seconds))


def said(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# What the document shows


def promised(figures: dict[str, Any]) -> str:
    body = []
    for row in figures["targets"]:
        if "median" in row:
            numbers = [row["must"], row["goal"], row["median"], row["min"], row["max"]]
        else:
            numbers = [row["must"], row["goal"]]
        shown = [fraction(number) if row["must"] else f"{number:g}" for number in numbers]
        shown = [f"≤ {number}" if row["must"] else number for number in shown[:2]] + shown[2:]
        body.append([row["figure"], *shown, *[""] * (5 - len(shown)), row["verdict"]])
    return document.rows(["figure", "must", "goal", "median", "min", "max", ""], body)


def shown(told: dict[str, Any], figure: str) -> str:
    """Median of the rounds, and the lowest and highest."""
    values = told["rounds"].get(figure)
    if not values:
        return ""
    spread = Spread.of(values)
    return "{} ({} to {})".format(*map(document.readable, (spread.median, spread.min, spread.max)))


COLUMNS = {
    "CPU a call, ms": "cpu_ms_per_request",
    "CPU a chunk, µs": "cpu_us_per_chunk",
    "p50, ms": "p50_ms",
    "p99, ms": "p99_ms",
    "chunk's delay p50, ms": "chunk_delay_p50_ms",
    "… p99, ms": "chunk_delay_p99_ms",
    "calls a second": "rps",
    "memory, MiB": "memory_mib",
}


def section(figures: dict[str, Any]) -> str:
    left = figures["readers_who_left"]
    machine = figures["machine"]
    why_not = "" if figures["litellm"] == LiteLLM.VERSION else f" LiteLLM was not measured: {figures['litellm']}"
    parts = [
        f"{document.machine_sentence(machine)} {figures['rounds']} rounds, slices of {figures['seconds_a_slice']:g} s, "
        f"{machine['minutes']:g} minutes.{why_not}",
        promised(figures),
        "Medians of the rounds, and in brackets the lowest and highest. *budget* is OpenGate, its user with a budget.",
    ]
    for name, targets in figures["scenarios"].items():
        streams = any("cpu_us_per_chunk" in told["rounds"] for told in targets.values())
        hidden = ("cpu_ms_per_request", "rps") if streams else ("cpu_us_per_chunk",)
        columns = {
            title: figure
            for title, figure in COLUMNS.items()
            if figure not in hidden and any(figure in told["rounds"] for told in targets.values())
        }
        body = [[who, *(shown(told, figure) for figure in columns.values())] for who, told in targets.items()]
        errors = {who: told["errors"] for who, told in targets.items() if told["errors"]}
        parts += [document.rows([name, *columns], body), *([f"Errors: {errors}."] if errors else [])]
    parts.append(
        f"{left['readers']:,} readers left within {leaving.LEAVE_WITHIN_SECONDS:g} s, "
        f"{left['had_when_they_left'].get('nothing yet', 0):,} of them before the first byte; "
        f"{left['reached_the_provider']:,} of their calls had reached the provider. "
        f"{left['seconds_until_then']:g} s after the last of them: "
        f"{left['upstream_streams_left_open']} streams open there, "
        f"{left['places_at_providers']} places held, {left['reservations']} reservations. "
        f"{figures['usage_records_with_warm_up']:,} usage records for {figures['calls_measured']:,} measured calls, "
        "their warm-up, and those who left."
    )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short slices, for a first look; nothing is written")
    parser.add_argument("--without-litellm", action="store_true")
    parser.add_argument("--json", type=Path, help="where the figures go; by default only those of a full run")
    given = parser.parse_args()
    end_with_our_own()
    figures = measure(QUICK if given.quick else FULL, not given.without_litellm)
    print(section(figures))
    if path := given.json or (None if given.quick else document.RESULTS / "standard.json"):
        document.keep(path, figures)
    if not given.quick:
        document.write("standard", section(figures))


if __name__ == "__main__":
    main()
