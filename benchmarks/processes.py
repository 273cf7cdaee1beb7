"""Processes of a benchmark: starting them, each on its core, and what they cost. CPU and memory are read from /proc."""

import glob
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
# With two cores or more, what is measured has one to itself: systems take turns, so one is enough for all of them.
MEASURED, OTHERS = CORES[-1:], CORES[:1]


def pin(cores: list[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, cores)


@contextmanager
def process(
    command: list[str], environment: dict[str, str], cores: list[int], *, root: Path = ROOT, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the block, in the folder `root`; what it says goes to `log`, else warnings to ours."""
    with open(log or os.devnull, "wb") as out:
        child = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            preexec_fn=pin(cores),
            stdout=out,
            stderr=subprocess.STDOUT if log else None,
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def python(code: str, environment: dict[str, str], *arguments: str, root: Path = ROOT) -> str:
    """Run code with Django set up, of the checkout at `root`; answers the last line it prints."""
    command = [sys.executable, "-c", "import django; django.setup()\n" + code, *arguments]
    done = subprocess.run(command, cwd=root, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.splitlines()[-1]


def wait_for(url: str, seconds: float = 30, child: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (child is None or child.poll() is None):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer.")


def end_with_our_own(number: int = signal.SIGTERM) -> None:
    """Leave by an exception when we are told to stop, so that every process we started is stopped, too."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(number, leave)


# What processes cost


def listener_pids(port: int) -> list[int]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            part = row.split()
            if part[3] == "0A" and int(part[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{part[9]}]")
    found = set()
    for descriptor in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) in inodes:
                found.add(int(descriptor.split("/")[2]))
        except OSError:
            pass
    return sorted(found)


def stat_fields(pid: int) -> list[str] | None:
    """Of /proc/PID/stat, from the state on; None for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def with_descendants(roots: Iterable[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        pid = int(path.split("/")[2])
        if fields := stat_fields(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    seen: list[int] = []
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in seen and os.path.exists(f"/proc/{pid}"):
            seen.append(pid)
            todo += children.get(pid, [])
    return seen


def cpu_seconds(pid: int) -> float:
    """Of a process by its own clock, which knows nanoseconds; of its children which have ended, in ticks of 10 ms."""
    fields = stat_fields(pid)
    if fields is None:
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2) + sum(map(int, fields[13:15])) / TICK  # clock_getcpuclockid(3)
    except OSError:
        return sum(map(int, fields[11:15])) / TICK


def _kib(path: str, name: str) -> int:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


class Processes:
    """CPU seconds and memory of process trees: process numbers joined by "+", or port:N, whoever listens there."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.peak_kib = 0
        self.refresh()

    def refresh(self) -> None:
        roots: list[int] = []
        for part in filter(None, self.spec.split("+")):
            roots += listener_pids(int(part[5:])) if part.startswith("port:") else [int(part)]
        self.pids = with_descendants(roots)

    def cpu(self) -> float:
        """User and system time, and that of children which have ended."""
        return sum(map(cpu_seconds, self.pids))

    def rss_kib(self) -> int:
        total = sum(_kib(f"/proc/{pid}/status", "VmRSS") for pid in self.pids)
        self.peak_kib = max(self.peak_kib, total)
        return total

    def largest_kib(self) -> int:
        """Memory of the largest of them: the one that serves, beside its parent."""
        return max((_kib(f"/proc/{pid}/status", "VmRSS") for pid in self.pids), default=0)

    def pss_kib(self) -> int:
        return sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in self.pids)
