"""Metrics of prometheus_client, which the processes of a machine keep together for `/metrics`.

In a folder (`PROMETHEUS_MULTIPROC_DIR`) each process counts in files of its own, and any of them reads them all: that
is the library's multi-process mode. Only, files belong to a seat here and not to a process id. A process takes the
first seat that is free and goes on where the last one in it ended, so a restart is no reset, and there are no more
files than there ever were processes at a time. Without a folder a process keeps its metrics
in memory and tells of itself.
"""

import asyncio
import atexit
import fcntl
import logging
import os
import shutil
import struct
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, disable_created_metrics, values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector

logger = logging.getLogger(__name__)

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
BEAT_SECONDS: Final = 1.0
ALONE: Final = "0"  # the name of a process that keeps its metrics in memory
_LIVE: Final = "livesum"  # a gauge shows while its process lives
_KINDS: Final = ("counter", "summary", "histogram", f"gauge_{_LIVE}")
_STEP_BYTES: Final = 1 << 16  # a file's first size, and by how much it gets room
_ENTRY_BYTES: Final = 1 << 12  # no entry is longer
_MOST_BYTES: Final = 1 << 26  # of a file that a process goes on with: it may have names of routers that are long gone
_UNREADABLE: Final = (OSError, RuntimeError, struct.error, ValueError)  # gone, or spoilt

registry = CollectorRegistry()  # of all that is counted here
disable_created_metrics()  # when a series was begun says nothing of several processes


# Seats

_folder: Path | None = None  # of the machine's processes; None: in memory
_seat = ""
_lock: int | None = None  # it ends with its process, however that ends
_is_seated = False
_room: dict[Path, int] = {}


def _own_seat() -> str:
    """Where this process counts; raises OSError where that cannot be told.

    With a full disk one that was forked goes on in its parent's seat: what it has begun to count must not fail.
    """
    global _is_seated
    if not _is_seated and _folder is not None:
        try:
            _sit_down(_folder)
        except OSError as error:
            _stand_up()
            if not _seat:
                raise
            logger.warning("This process counts where its parent does: %s.", error)
        _is_seated = True
    return _seat


def _sit_down(folder: Path) -> None:
    global _seat, _lock
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in count():
        lock = os.open(folder / f"{number}.seat", os.O_RDWR | os.O_CREAT, 0o600)
        if _is_locked_now(lock):
            break
        os.close(lock)
    _lock = lock
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    mark_process_dead(number, folder)  # the last one in this seat
    for file in folder.glob(f"*_{number}.db"):
        if file.stat().st_size > _MOST_BYTES or not _is_readable(file):
            file.unlink()
    for kind in _KINDS:
        _make_room(folder / f"{kind}_{number}.db")
    _seat = str(number)


def _stand_up() -> None:
    """A child of a fork must not hold its parent's seat."""
    global _lock, _is_seated
    if _lock is not None:
        os.close(_lock)
    _lock, _is_seated = None, False


os.register_at_fork(after_in_child=_stand_up)


def _make_room(file: Path) -> None:
    """Have the disk give what the next entry takes: to write to mapped memory that it cannot hold ends a process."""
    with file.open("ab+") as opened:
        used = int.from_bytes(os.pread(opened.fileno(), 4, 0), sys.byteorder)
        if used + _ENTRY_BYTES > _room.get(file, 0):
            room = used + _ENTRY_BYTES + _STEP_BYTES - (used + _ENTRY_BYTES) % _STEP_BYTES
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, room)
            _room[file] = room


def _is_locked_now(descriptor: int) -> bool:
    """Whether we hold the lock from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _vacant(seat: Path) -> Iterator[bool]:
    """Whether nobody sits there, nor can meanwhile."""
    try:
        descriptor = os.open(seat, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _is_locked_now(descriptor)
    finally:
        os.close(descriptor)


def _is_readable(file: str | Path) -> bool:
    try:
        MultiProcessCollector.merge([file])
    except _UNREADABLE:
        return False
    return True


# How the library keeps a number


@cache
def _shared() -> Callable[..., Any]:
    """The library's class of numbers in files, for this process and those forked from it."""
    return values.MultiProcessValue(_own_seat)


def _kept(folder: Path, kind: str, *about: Any, **mode: Any) -> Any:
    """A number in a file, or in memory alone, since a full disk must not fail a call."""
    file = f"gauge_{mode['multiprocess_mode']}" if kind == "gauge" else kind
    try:
        _make_room(folder / f"{file}_{_own_seat()}.db")
        kept = _shared()(kind, *about, **mode)
        return kept if kind == "gauge" else _Gathering(kept)
    except OSError as error:
        logger.warning("The metric %s is kept in memory: %s.", about[0], error)
        return values.MutexValue(kind, *about, **mode)


class _Gathering:
    """A number in a file, to which a web process adds once a second: to write there takes longer than to count."""

    __slots__ = ("kept", "more")

    def __init__(self, kept: Any) -> None:
        self.kept = kept
        self.more = 0.0

    def inc(self, amount: float) -> None:
        if _beating is None:
            self.kept.inc(amount)
            return
        if not self.more:
            _gathered.append(self)
        self.more += amount

    def get(self) -> float:
        return float(self.kept.get()) + self.more


class Observed:
    """A series of a histogram, or of a summary without buckets, past the library's checks, most of the work."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, series: Histogram | Summary) -> None:
        self._bounds: list[float] = getattr(series, "_upper_bounds", [])
        self._counts = series._buckets if isinstance(series, Histogram) else [series._count]
        self._sum = series._sum

    def observe(self, amount: float) -> None:
        self._sum.inc(amount)
        self._counts[bisect_left(self._bounds, amount)].inc(1)


def adder(series: Counter) -> Callable[[float], None]:
    """What adds to a counter, past the same checks."""
    add: Callable[[float], None] = series._value.inc
    return add


_gathered: list[_Gathering] = []  # those with more than is written


def write() -> None:
    """Write what was counted since the last time."""
    global _gathered
    numbers, _gathered = _gathered, []
    for number in numbers:
        more, number.more = number.more, 0.0
        number.kept.inc(more)


class _Late:
    """A number that is kept from its first use on: a command that counts nothing takes no seat."""

    def __init__(self, *about: Any, **mode: Any) -> None:
        self._make = partial(_kept, *about, **mode)
        _late.append(self)

    @cached_property
    def value(self) -> Any:
        return self._make()

    def inc(self, amount: float) -> None:
        self.value.inc(amount)


_late: list[_Late] = []


def _number(folder: Path, kind: str, name: str, full_name: str, labels: Any, of: Any, *about: Any, **mode: Any) -> Any:
    """Metrics without labels have theirs as soon as they are imported."""
    is_at_import = not set(labels) - {"le"}
    return (_Late if is_at_import else _kept)(folder, kind, name, full_name, labels, of, *about, **mode)


values.ValueClass = values.MutexValue
if settings.METRICS and settings.METRICS_FOLDER is not None:  # the library asks when a metric is made: at import
    _folder = settings.METRICS_FOLDER
    os.environ[FOLDER_VARIABLE] = str(_folder)  # where the library looks
    values.ValueClass = partial(_number, _folder)


def prepare() -> None:
    """Before processes are spawned that count together: a folder for them, without what others left in it."""
    if not settings.METRICS:
        return
    try:
        folder: Path = settings.METRICS_FOLDER or _temporary_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in folder.glob("*.db"):
            with _vacant(_seat_of(file)) as is_vacant:
                if is_vacant:
                    file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("Each process keeps metrics of its own: %s.", error)
        return
    os.environ[FOLDER_VARIABLE] = str(folder)


def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="opengate-metrics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _seat_of(file: Path) -> Path:
    return file.with_name(f"{file.stem.rpartition('_')[2]}.seat")


# What each process tells of itself

LAG = Histogram(
    "ogl_event_loop_lag_seconds",
    "How late the event loop was with a timer, looked at once a second in each process.",
    ("process",),
    registry=registry,
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
_watched: list[tuple[Gauge, Callable[[], float | None]]] = []
_beating: asyncio.AbstractEventLoop | None = None


def watch(name: str, documentation: str, value: Callable[[], float | None]) -> None:
    """Ask each web process once a second for a value, on its event loop; None says that there is none."""
    _watched.append((Gauge(name, documentation, ("process",), registry=registry, multiprocess_mode=_LIVE), value))


watch("ogl_asyncio_tasks", "Tasks of the event loop that are not done.", lambda: len(asyncio.all_tasks()))


def begin() -> None:
    """Have the running event loop look at this process once a second."""
    global _beating
    loop = asyncio.get_running_loop()
    if _beating is not loop and settings.METRICS:
        for number in _late:
            number.inc(0)  # there before anything has happened
        _beating = loop
        atexit.register(write)
        loop.call_later(BEAT_SECONDS, _beat, loop, loop.time() + BEAT_SECONDS)


def _beat(loop: asyncio.AbstractEventLoop, due: float) -> None:
    late = max(loop.time() - due, 0.0)
    write()
    loop.call_later(BEAT_SECONDS, _beat, loop, loop.time() + BEAT_SECONDS)
    process = _seat or ALONE
    LAG.labels(process).observe(late)
    for gauge, value in _watched:
        found = value()
        if found is not None:
            gauge.labels(process).set(found)


# Reading


def read() -> list[Metric]:
    """What all processes have counted until a second ago, and this one until now, and how those are that live."""
    write()
    if _folder is not None:
        return of(_folder)
    return [*registry.collect(), *_processes({ALONE: str(os.getpid())})]


def of(folder: Path) -> list[Metric]:
    living = living_seats(folder)
    return [*_counted([str(path) for path in folder.glob("*.db")]), *_processes(living)]


def living_seats(folder: Path) -> dict[str, str]:
    """Seats with the ids of the processes that hold them; what others told of themselves is swept out."""
    living = {}
    for path in sorted(folder.glob("*.seat")):
        with _vacant(path) as is_vacant:
            if is_vacant:
                mark_process_dead(path.stem, folder)
            else:
                living[path.stem] = path.read_text()
    return living


def _counted(files: list[str]) -> list[Metric]:
    try:
        return list(MultiProcessCollector.merge(files))
    except _UNREADABLE as error:
        logger.warning("Some metrics cannot be read: %r.", error)
        return list(MultiProcessCollector.merge([file for file in files if _is_readable(file)]))


def _processes(living: Mapping[str, str]) -> list[Metric]:
    """Memory, time and files of processes, where the system tells (Linux)."""
    found: dict[str, Metric] = {}
    for seat, pid in living.items():
        if not pid.isdigit():
            continue
        for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            family = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"process": seat}, sample.value)
    return list(found.values())
