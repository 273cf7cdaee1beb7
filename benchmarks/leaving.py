#!/usr/bin/env python
"""Readers who leave in the middle: do their streams end at the provider, too, and what do they leave behind?

    python benchmarks/leaving.py [--readers N] [--json FILE]

Opens streams through OpenGate in waves and leaves each at a random moment, before its first byte, too: streams that
flow, begin late, stall, or are never answered; by users with and without a budget; half of the connections closed, half
reset. Then waits until the provider answers nobody any more, and until no place at a provider and no reservation is
held. Ends with 1 when something is left after a minute.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import redis
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import document
from benchmarks.client import Endpoint, Scenario, Target
from benchmarks.processes import end_with_our_own
from benchmarks.systems import OpenGate, Stage, stage

WAVE = 50
LEAVE_WITHIN_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
QUIET_SECONDS = 2.0  # in which nothing may appear any more: a call may still be on its way to the provider
# How the provider behaves, and how many of a hundred readers meet it.
KINDS = {
    "flowing": ("chunks=400 delay=10", 60),
    "begins late": ("chunks=100 delay=10 ttft=3000", 15),
    "stalls": ("chunks=400 delay=10 stall=5", 20),
    "never answered": ("hang=1", 5),
}


async def read_and_leave(target: Target, seconds: float, *, abruptly: bool) -> str:
    """What had come when the reader left: nothing, or the status of an answer; "ended" when nobody had to leave."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    head = b""
    try:
        writer.write(target.request)
        async with asyncio.timeout(seconds):
            while data := await reader.read(65_536):
                head = head or data[:12]
        return "ended"
    except TimeoutError:
        return head.decode() or "nothing yet"
    finally:
        if abruptly:
            writer.transport.abort()
        else:
            writer.close()


async def leave(endpoints: list[Endpoint], readers: int, seed: int = 9) -> dict[str, Any]:
    chance = random.Random(seed)
    weights = [share for _, share in KINDS.values()]
    targets = {
        kind: [Target(endpoint, Scenario(kind, "stream", directive=directive)) for endpoint in endpoints]
        for kind, (directive, _) in KINDS.items()
    }
    kinds, answers = Counter[str](), Counter[str]()
    for first in range(0, readers, WAVE):
        wave = chance.choices(list(KINDS), weights, k=min(WAVE, readers - first))
        leaving = [
            read_and_leave(
                chance.choice(targets[kind]), chance.uniform(0, LEAVE_WITHIN_SECONDS), abruptly=chance.random() < 0.5
            )
            for kind in wave
        ]
        kinds.update(wave)
        answers.update(await asyncio.gather(*leaving))
    return {"readers": readers, "streams": dict(kinds), "had_when_they_left": dict(answers)}


def left_behind(stage: Stage) -> dict[str, int]:
    """What is held at this moment."""
    with psycopg.connect(stage.database_url) as database, redis.Redis.from_url(stage.redis_url) as memory:
        (reservations,) = database.execute("SELECT count(*) FROM usage_reservation").fetchone() or (0,)
        places = sum(int(memory.zcount(key, time.time(), "inf")) for key in memory.scan_iter("opengate:inflight:*"))
    return {
        "upstream_streams_left_open": stage.counted()["open"],
        "places_at_providers": places,
        "reservations": int(reservations),
    }


def until_nothing_is_left(stage: Stage) -> dict[str, Any]:
    began = quiet_since = time.monotonic()
    while (now := time.monotonic()) < began + PATIENCE_SECONDS:
        left = left_behind(stage)
        if any(left.values()):
            quiet_since = time.monotonic()
        elif now > quiet_since + QUIET_SECONDS:
            break
        time.sleep(0.1)
    return left | {"seconds_until_then": round(quiet_since - began, 1)}


def measured(stage: Stage, system: OpenGate, endpoint: Endpoint, readers: int) -> dict[str, Any]:
    before = stage.counted()
    with_budget = replace(endpoint, key=system.key_with_budget)
    found = uvloop.run(leave([endpoint, with_budget], readers))
    found |= until_nothing_is_left(stage)
    after = stage.counted()
    reached = {name: after[name] - before[name] for name in ("requests", "aborted_by_client")}
    return found | {"reached_the_provider": reached["requests"], "closed_there": reached["aborted_by_client"]}


def is_clean(found: dict[str, Any]) -> bool:
    return not any(found[name] for name in ("upstream_streams_left_open", "places_at_providers", "reservations"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    given = parser.parse_args()
    end_with_our_own()
    figures: dict[str, Any] = {"machine": document.machine()}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengate-bench-")))
        where = stack.enter_context(stage(home))
        system = OpenGate()
        endpoint = system.start(where, stack)
        figures |= measured(where, system, endpoint, given.readers)
        figures["log"] = (home / "web.log").read_text().splitlines()[:20]
    for name, value in figures.items():
        print(f"{name}: {value}")
    if given.json:
        document.keep(given.json, figures)
    return int(not is_clean(figures))


if __name__ == "__main__":
    sys.exit(main())
