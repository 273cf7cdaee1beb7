"""The kit of benchmarks: the arithmetic of its ratios, what it writes, and that it sees a stream left open."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import document, leaving
from benchmarks.client import Endpoint, Scenario, Target
from benchmarks.processes import CORES, process, wait_for
from benchmarks.ratios import Spread, added_ratio, fraction, ratio
from benchmarks.standard import verdict
from benchmarks.systems import Stage
from tests.server import free_port


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """With a provider only."""
    port = free_port()
    command = [sys.executable, "benchmarks/upstream.py", "--port", str(port)]
    with process(command, dict(os.environ), CORES):
        wait_for(f"http://127.0.0.1:{port}/stats")
        yield Stage(Path(), port, "", "")


def test_a_ratio_is_taken_within_a_round() -> None:
    # The second round was slow for both; medians over all rounds would tell another story.
    assert ratio([1, 4, 1], [10, 20, 5]) == Spread(0.2, 0.1, 0.2)


def test_what_is_added_is_told_against_the_provider_of_the_same_round() -> None:
    assert added_ratio([2, 3], [5, 10], [1, 2]) == Spread(0.1875, 0.125, 0.25)


def test_a_figure_reads_as_it_is_compared_and_is_judged_by_its_median() -> None:
    assert [fraction(value) for value in (1 / 38, 0.4, 1.3)] == ["1/38", "1/2.5", "1.30 ×"]
    assert [verdict(value, 1 / 30, 1 / 100) for value in (1 / 120, 1 / 40, 1 / 20)] == ["goal met", "met", "**missed**"]


def test_a_run_replaces_only_its_own_part_of_the_document() -> None:
    text = "above\n<!-- measured: a -->\nold\n<!-- end of a -->\nbelow\n"
    assert document.between_markers(text, "a", "new") == text.replace("old", "\nnew\n")
    with pytest.raises(SystemExit, match="no place"):
        document.between_markers(text, "b", "new")


def until_open(stage: Stage, count: int) -> bool:
    deadline = time.monotonic() + 10
    while not (is_so := stage.counted()["open"] == count) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_so


def test_the_provider_counts_a_stream_that_is_left_open_until_it_ends(stage: Stage) -> None:
    target = Target(Endpoint("direct", f"{stage.provider}/v1"), Scenario("stalls", "stream", directive="stall=1"))

    async def stay() -> bool:
        _, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(target.request)
        is_seen = await asyncio.to_thread(until_open, stage, 1)
        writer.close()
        return is_seen

    assert asyncio.run(stay())
    assert until_open(stage, 0)


def test_readers_leave_at_any_moment_and_the_provider_sees_it(stage: Stage) -> None:
    found = asyncio.run(leaving.leave([Endpoint("direct", f"{stage.provider}/v1")], 30))
    assert set(found["had_when_they_left"]) <= {"nothing yet", "HTTP/1.1 200"}
    assert until_open(stage, 0)
    assert stage.counted()["aborted_by_client"] > 20
