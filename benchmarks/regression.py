#!/usr/bin/env python
"""This checkout against the last release, in one run: fails when a call costs 15 % more CPU.

    python benchmarks/regression.py [--against REVISION] [--rounds N] [--stability TIMES] [--json FILE]

Without a release tag (v…) it compares with the commit before. The other revision is checked out into a folder of its
own; each has its own Postgres and Redis, since migrations differ, and both run with the packages installed here. They
take turns, in slices, over several rounds. Ends with 1 when the median of any figure is beyond the limit,
with 2 when the other revision cannot be started.

`--stability 5` compares the revision of this checkout with itself, five times, each time with fresh processes, and
writes the spread of the verdicts into docs/performance.md: how much of a difference is noise.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import document, load
from benchmarks.client import Scenario
from benchmarks.load import over_rounds
from benchmarks.processes import ROOT, end_with_our_own
from benchmarks.ratios import Spread, ratio
from benchmarks.systems import OpenGate, stage

LIMIT = 1.15
ROUNDS, SECONDS = 15, 0.7  # many short ones: the nearer in time, the less a neighbour comes between them
FIGURES = {
    "CPU a call, 1 caller": (Scenario("1 caller", callers=1), "cpu_ms_per_request"),
    "CPU a call, 32 callers": (Scenario("32 callers", callers=32), "cpu_ms_per_request"),
    "CPU a chunk, 64 streams": (Scenario("streams", "stream", 64, directive="chunks=100 delay=10"), "cpu_us_per_chunk"),
}


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def last_release() -> str:
    """The newest tag of a version that this checkout descends from; without one, the commit before."""
    try:
        return git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD")
    except subprocess.CalledProcessError:
        return "HEAD~1"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of that revision, in a folder until the end of the block; this checkout stays as it is."""
    with tempfile.TemporaryDirectory(prefix="opengate-revision-") as home:
        folder = Path(home) / "checkout"
        git("worktree", "add", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def compare(revision: str, rounds: int, seconds: float) -> dict[str, Spread]:
    """Of each figure, this checkout over that revision."""
    with ExitStack() as stack:
        roots = {"before": stack.enter_context(checked_out(revision)), "now": ROOT}
        endpoints = []
        for name, root in roots.items():
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengate-bench-")))
            where = stack.enter_context(stage(home))
            endpoints.append(OpenGate(name, root).start(where, stack))
        plan = [(scenario, endpoints) for scenario, _ in FIGURES.values()]
        measured = uvloop.run(load.measure(plan, rounds=rounds, seconds=seconds))
    found = {}
    for title, (scenario, figure) in FIGURES.items():
        targets = measured[scenario.name]
        found[title] = ratio(over_rounds(targets["now"], figure), over_rounds(targets["before"], figure))
        for target in targets.values():
            errors = sum(record.errors.total() for record in target.slices)
            if errors:
                print(f"{title}, {target.name}: {errors} calls failed.", file=sys.stderr)
    return found


def is_worse(found: dict[str, Spread]) -> bool:
    return any(spread.median > LIMIT for spread in found.values())


def told(found: dict[str, Spread]) -> str:
    return "\n".join(
        f"{title}: {100 * (spread.median - 1):+.1f} % ({100 * (spread.min - 1):+.1f} to {100 * (spread.max - 1):+.1f})"
        + (f", beyond +{100 * (LIMIT - 1):.0f} %" if spread.median > LIMIT else "")
        for title, spread in found.items()
    )


def section(figures: dict[str, Any]) -> str:
    """How far the verdicts of one revision against itself were from nothing."""
    runs = figures["runs"]
    body = []
    for title in FIGURES:
        medians = [100 * (run[title]["median"] - 1) for run in runs]
        rounds = [100 * (run[title][end] - 1) for run in runs for end in ("min", "max")]
        verdicts = f"{min(medians):+.1f} to {max(medians):+.1f} %"
        body.append([title, verdicts, f"{min(rounds):+.1f} to {max(rounds):+.1f} %"])
    wrong = sum(any(run[title]["median"] > LIMIT for title in FIGURES) for run in runs)
    head = [
        f"one revision against itself, {len(runs)} times, {figures['rounds']} rounds",
        "medians, by which it is judged",
        "single rounds",
    ]
    tail = f"{len(runs)} times {figures['rounds']} rounds; judged worse although nothing had changed: {wrong} times."
    return f"{document.machine_sentence(figures['machine'])}\n\n{document.rows(head, body)}\n\n{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="default: the last release, or the commit before")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a slice")
    parser.add_argument("--stability", type=int, metavar="TIMES", help="this revision against itself")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    given = parser.parse_args()
    end_with_our_own()
    figures: dict[str, Any] = {"machine": document.machine()}
    if given.stability:
        figures |= {"rounds": given.rounds, "runs": []}
        for _ in range(given.stability):
            found = compare("HEAD", given.rounds, given.seconds)
            print(told(found), flush=True)
            figures["runs"].append({title: spread.as_dict() for title, spread in found.items()})
        document.keep(given.json or document.RESULTS / "guard.json", figures)
        document.write("guard", section(figures))
        return 0
    revision = given.against or last_release()
    try:
        found = compare(revision, given.rounds, given.seconds)
    except subprocess.CalledProcessError as error:
        print(f"{revision} cannot be compared: {error}\n{error.stderr or ''}", file=sys.stderr)
        return 2
    print(f"Against {revision}, {given.rounds} rounds; the median, and the lowest and highest:\n{told(found)}")
    if given.json:
        figures |= {"against": revision} | {title: spread.as_dict() for title, spread in found.items()}
        document.keep(given.json, figures)
    return int(is_worse(found))


if __name__ == "__main__":
    sys.exit(main())
