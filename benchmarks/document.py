"""What a run writes down: the machine that it ran on, and its part of docs/performance.md, between two markers."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import CORES, ROOT

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def revision(root: Path = ROOT) -> str:
    """Of the checkout; with a plus when files of it were changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":!benchmarks/results", ":!docs/performance.md")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """To be asked before the load of the run itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": revision(),
        "cores": len(CORES),
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "python": platform.python_version(),
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def machine_sentence(found: dict[str, Any]) -> str:
    load = " / ".join(f"{value:g}" for value in found["load_average_before"])
    return (
        f"Measured {found['date']}, revision `{found['revision']}`: {found['cores']} cores of {found['processor']}, "
        f"CPython {found['python']}, load average before (1 / 5 / 15 minutes) {load}."
    )


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def readable(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def between_markers(document: str, name: str, text: str) -> str:
    """The document with its part `name` replaced; it must have the two markers, in order."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of {name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"docs/performance.md has no place for {begin}.")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def write(name: str, text: str) -> None:
    DOCUMENT.write_text(between_markers(DOCUMENT.read_text(), name, text))
    print(f"Written into {DOCUMENT.relative_to(ROOT)}.", file=sys.stderr)


def keep(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
