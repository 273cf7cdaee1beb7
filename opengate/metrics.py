"""Counters and histograms that the processes of a machine keep together, for `/metrics`.

Each process adds to files of its own in one folder, and any of them reads them all; the files are those of
prometheus_client's multi-process mode, and its collector reads them. They are mapped into memory: to count is to add
to a number there, which costs a tenth of a microsecond, and what was counted outlives a process that is killed.

Files belong to a seat and not to a process id. A process takes the first seat that is free and goes on where the last
one in it ended, so there are no more files than there ever were processes at a time, however often they are restarted.
Without a folder nothing is kept: nobody could read it.
"""

import asyncio
import atexit
import fcntl
import logging
import mmap
import os
import shutil
import struct
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from math import inf
from pathlib import Path
from threading import Lock
from typing import ClassVar, Final, cast

from django.conf import settings
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

logger = logging.getLogger(__name__)

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
BEAT_SECONDS: Final = 1.0
_FIRST_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 26  # of a file that a process goes on with
_UNREADABLE: Final = (OSError, RuntimeError, struct.error, ValueError)  # gone, or spoilt
_HEAD: Final = 8  # how many bytes are used, and padding

Numbers = MutableSequence[float]  # of a file that is mapped, or of none


class _File:
    """Numbers by their keys, mapped: entries of a length, a key, a number and a time, as prometheus_client has them."""

    def __init__(self, path: Path) -> None:
        try:
            if path.stat().st_size > _MOST_BYTES:  # names of routers that are long gone
                raise OSError
            self._places = {key: at // 8 for key, _, _, at in MmapedDict.read_all_values_from_file(path)}
        except _UNREADABLE:  # there is none, or a spoilt one
            self._places = {}
            fresh = path.with_suffix(".new")
            fresh.write_bytes(bytes(_FIRST_BYTES))
            fresh.replace(path)  # who reads the folder sees a whole file
        self._descriptor = os.open(path, os.O_RDWR)
        self._map(os.fstat(self._descriptor).st_size)
        self._used = max(struct.unpack_from("i", self._bytes)[0], _HEAD)

    def _map(self, size: int) -> None:
        """Who still holds an earlier mapping writes to the same file."""
        if hasattr(os, "posix_fallocate"):  # or a full disk ends the process when the numbers are written
            os.posix_fallocate(self._descriptor, 0, size)
        else:
            os.truncate(self._descriptor, size)
        self._bytes = mmap.mmap(self._descriptor, size)
        self.numbers = cast(Numbers, memoryview(self._bytes).cast("d"))

    def place(self, key: str) -> int:
        """Where the number of that key is among `numbers`, 0 at first."""
        if key not in self._places:
            text = key.encode()
            padded = text + b" " * (8 - (len(text) + 4) % 8)
            entry = struct.pack(f"i{len(padded)}sdd", len(text), padded, 0.0, 0.0)
            end = self._used + len(entry)
            if end > len(self._bytes):
                self._map(2 * len(self._bytes))
            self._bytes[self._used : end] = entry
            self._bytes[:4] = struct.pack("i", end)  # from now on it is read
            self._used = end
            self._places[key] = end // 8 - 2
        return self._places[key]

    def close(self) -> None:
        os.close(self._descriptor)


class _Seat:
    """A place in the folder: held by a lock, which ends with its process however that ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for number in count():
            self.name = f"s{number}"
            self._lock = os.open(_lock_of(folder, self.name), os.O_RDWR | os.O_CREAT, 0o600)
            if _is_locked_now(self._lock):
                break
            os.close(self._lock)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())
        mark_process_dead(self.name, folder)  # the last one in this seat
        self._files: dict[str, _File] = {}

    def file(self, kind: str) -> _File:
        if kind not in self._files:
            self._files[kind] = _File(self._folder / f"{kind}_{self.name}.db")
        return self._files[kind]

    def leave(self) -> None:
        for file in self._files.values():
            file.close()
        os.close(self._lock)


class Series:
    """The numbers of one set of labels: at `places` among `numbers`."""

    __slots__ = ("numbers", "places")

    def __init__(self, numbers: Numbers, places: Sequence[int]) -> None:
        self.numbers, self.places = numbers, places


class Count(Series):
    __slots__ = ()

    def add(self, amount: float = 1) -> None:
        self.numbers[self.places[0]] += amount


class Value(Series):
    __slots__ = ()

    def set(self, value: float) -> None:
        self.numbers[self.places[0]] = value


class Sum(Series):
    __slots__ = ()

    def observe(self, value: float) -> None:
        numbers, places = self.numbers, self.places
        numbers[places[0]] += 1
        numbers[places[1]] += value


class Distribution(Series):
    """The first places are of the buckets, which are not cumulative here, and the last is of the sum."""

    __slots__ = ("bounds",)
    bounds: Sequence[float]

    def observe(self, value: float) -> None:
        numbers, places = self.numbers, self.places
        numbers[places[bisect_left(self.bounds, value)]] += 1
        numbers[places[-1]] += value


class Family:
    """A metric with all its sets of labels. Counted on the event loop: two threads at a time could lose one."""

    kind: ClassVar[str]
    suffixes: ClassVar[Sequence[str]]
    series: ClassVar[type[Series]]

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self.name, self.documentation, self.labels = name, documentation, tuple(labels)
        self.known: dict[tuple[str, ...], Series] = {}
        _families[name] = self

    def keys(self, values: Sequence[str]) -> list[str]:
        """Of the numbers that a set of labels has, as prometheus_client names them."""
        return [
            mmap_key(self.name, self.name + suffix, list(self.labels), list(values), self.documentation)
            for suffix in self.suffixes
        ]

    def touch(self) -> None:
        """Have a metric without labels be there before it has counted anything."""
        self._of(())

    def _of(self, values: tuple[str, ...]) -> Series:
        found = self.known.get(values)
        if found is None:
            with _lock:
                keys = self.keys(values)
                try:
                    found = self._kept(keys)
                except OSError as error:  # a full disk must not fail a call
                    logger.warning("The metric %s is not kept: %s.", self.name, error)
                    found = None
                self.known[values] = found = found or self.series([0.0] * len(keys), range(len(keys)))
        return found

    def _kept(self, keys: Sequence[str]) -> Series | None:
        seat = _taken()
        if seat is None:
            return None
        file = seat.file(self.kind)
        places = [file.place(key) for key in keys]
        return self.series(file.numbers, places)


class Counter(Family):
    """Named without `_total`, which the text has."""

    kind, suffixes, series = "counter", ("_total",), Count

    def of(self, *values: str) -> Count:
        found = self._of(values)
        assert isinstance(found, Count)
        return found


class Summary(Family):
    kind, suffixes, series = "summary", ("_count", "_sum"), Sum

    def of(self, *values: str) -> Sum:
        found = self._of(values)
        assert isinstance(found, Sum)
        return found


class Histogram(Family):
    kind, series = "histogram", Distribution

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        super().__init__(name, documentation, labels)
        self.bounds = (*bounds, inf)

    def keys(self, values: Sequence[str]) -> list[str]:
        names = [*self.labels, "le"]
        buckets = [
            mmap_key(self.name, f"{self.name}_bucket", names, [*values, floatToGoString(bound)], self.documentation)
            for bound in self.bounds
        ]
        total = mmap_key(self.name, f"{self.name}_sum", list(self.labels), list(values), self.documentation)
        return [*buckets, total]

    def of(self, *values: str) -> Distribution:
        found = self._of(values)
        assert isinstance(found, Distribution)
        found.bounds = self.bounds
        return found


class Gauge(Family):
    """A value of each process, under its seat, for as long as the process lives."""

    kind, suffixes, series = "gauge_livesum", ("",), Value

    def __init__(self, name: str, documentation: str) -> None:
        super().__init__(name, documentation, ("process",))

    def set(self, seat: str, value: float) -> None:
        found = self._of((seat,))
        assert isinstance(found, Value)
        found.set(value)


_lock = Lock()
_families: dict[str, Family] = {}
_seat: _Seat | None = None
_own_folder: Path | None = None
_owner = 0
_watched: list[tuple[Gauge, Callable[[], float | None]]] = []
_beating: asyncio.AbstractEventLoop | None = None


def families() -> Sequence[Family]:
    """Of all that is counted in files."""
    return list(_families.values())


# The folder


def prepare() -> None:
    """Before processes are spawned that count together: a folder for them, without what others left in it."""
    if not settings.METRICS:
        return
    try:
        folder = _folder() or _make_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        living = _living_seats(folder)
        for path in folder.glob("*.db"):
            if path.stem.rpartition("_")[2] not in living:
                path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("No metrics are kept: %s.", error)
        return
    os.environ[FOLDER_VARIABLE] = str(folder)


def keep() -> None:
    """For a web process: count, if it was not spawned by one that has prepared a folder, in one of its own."""
    if settings.METRICS and _folder() is None:
        try:
            _make_folder()
        except OSError as error:
            logger.warning("No metrics are kept: %s.", error)


def _folder() -> Path | None:
    given: Path | None = settings.METRICS_FOLDER
    return given or _own_folder


def _make_folder() -> Path:
    global _own_folder, _owner
    _own_folder, _owner = Path(tempfile.mkdtemp(prefix="opengate-metrics-")), os.getpid()
    atexit.register(leave)
    return _own_folder


def leave() -> None:
    """Before a process ends: remove the folder that it made. A server that ends by a signal runs no exit handlers."""
    if _own_folder is not None and os.getpid() == _owner:
        shutil.rmtree(_own_folder, ignore_errors=True)


def _taken() -> _Seat | None:
    """This process's seat; None where nothing is kept."""
    global _seat
    if _seat is None and settings.METRICS:
        folder = _folder()
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _seat = _Seat(folder)
    return _seat


def _lock_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.seat"


def _is_locked_now(descriptor: int) -> bool:
    """Whether we hold the lock from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _living_seats(folder: Path) -> dict[str, str]:
    """Seats with the ids of the processes that hold them; what others told of themselves is swept out."""
    living = {}
    for path in sorted(folder.glob("*.seat")):
        with _opened(path) as descriptor:
            if _is_locked_now(descriptor):  # so nobody takes it meanwhile
                mark_process_dead(path.stem, folder)
            else:
                living[path.stem] = path.read_text()
    return living


def _forked() -> None:
    """A child counts in a seat of its own, and must not hold its parent's."""
    global _seat, _beating
    if _seat is not None:
        _seat.leave()
    _seat = _beating = None
    for family in _families.values():
        family.known.clear()


os.register_at_fork(after_in_child=_forked)


# What each process tells of itself


def watch(name: str, documentation: str, value: Callable[[], float | None]) -> None:
    """Ask each web process once a second for a value, on its event loop; None says that there is none."""
    _watched.append((Gauge(name, documentation), value))


LAG = Histogram(
    "ogl_event_loop_lag_seconds",
    "How late the event loop was with a timer, looked at once a second in each process.",
    ("process",),
    bounds=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


def begin() -> None:
    """Have the running event loop look at this process once a second."""
    global _beating
    loop = asyncio.get_running_loop()
    if _beating is not loop and settings.METRICS:
        _beating = loop
        for family in families():
            if not family.labels:
                family.touch()
        loop.call_later(BEAT_SECONDS, _beat, loop, loop.time() + BEAT_SECONDS)


def _beat(loop: asyncio.AbstractEventLoop, due: float) -> None:
    late = max(loop.time() - due, 0.0)
    loop.call_later(BEAT_SECONDS, _beat, loop, loop.time() + BEAT_SECONDS)
    if _seat is not None:  # taken by what was counted before
        seat = _seat.name[1:]
        LAG.of(seat).observe(late)
        for gauge, value in _watched:
            found = value()
            if found is not None:
                gauge.set(seat, found)


# Reading


def read() -> list[Metric]:
    """What all processes have counted, and how those are that live."""
    folder = _folder()
    if folder is None:
        return []
    living = _living_seats(folder)
    return [*_counted([str(path) for path in folder.glob("*.db")]), *_processes(living)]


def _counted(files: list[str]) -> list[Metric]:
    try:
        return list(MultiProcessCollector.merge(files))
    except _UNREADABLE as error:
        logger.warning("Some metrics cannot be read: %r.", error)
        return list(MultiProcessCollector.merge([file for file in files if _is_readable(file)]))


def _is_readable(file: str) -> bool:
    try:
        MultiProcessCollector.merge([file])
    except _UNREADABLE:
        return False
    return True


def _processes(living: Mapping[str, str]) -> list[Metric]:
    """Memory, time and files of processes, where the system tells (Linux)."""
    found: dict[str, Metric] = {}
    for seat, pid in living.items():
        if not pid.isdigit():
            continue
        for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            family = found.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"process": seat[1:]}, sample.value)
    return list(found.values())
