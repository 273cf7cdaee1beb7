"""One process that keeps others alive: spawn, read their logs, restart, and stop them in order.

Linux kills our children with us (PDEATHSIG); a lock they inherit tells the next start when the last of them has gone.
"""

import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

QUICK_DEATH_SECONDS = 10.0
QUICK_DEATHS_ALLOWED = 5
FIRST_DELAY_SECONDS = 0.5
POLL_SECONDS = 0.05
ORPHANS_MAY_STAY_SECONDS = 15.0
COLOURS = (36, 33, 35, 32, 34, 31)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class SupervisorError(Exception):
    """What keeps us from running, in a sentence for the operator."""


class Stopped(Exception):
    """A signal asked us to end."""


@dataclass(frozen=True)
class Child:
    """A process to run. `death_signal` is what the kernel sends it should we die; `user` is whom root becomes for it.

    One that is not `vital` may fail for good without ending the rest.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path | None = None
    user: pwd.struct_passwd | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    vital: bool = True

    def spawn(
        self, output: int | IO[bytes], inherited: Sequence[int] = (), errors: int = subprocess.STDOUT
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, so that Ctrl-C reaches only us.

        Call it from the main thread: the kernel takes the death of the thread that forked for ours.
        """
        account = self.user
        return subprocess.Popen(
            [str(word) for word in self.command],
            env=dict(self.environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=tuple(inherited),
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
            preexec_fn=self._die_with_parent(),  # one system call, no lock taken
        )

    def _die_with_parent(self) -> Callable[[], None] | None:
        if not hasattr(_libc, "prctl") or threading.current_thread() is not threading.main_thread():
            return None
        parent, death_signal = os.getpid(), int(self.death_signal)

        def before_exec() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(1)

        return before_exec

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask, wait for `stop_seconds`, then kill; whatever it started and left behind goes too."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.send_signal(self.stop_signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.stop_seconds)
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def sole_owner(lock: Path, busy: str) -> Iterator[int]:
    """Hold `lock`; yields a descriptor to hand to every child, so that a killed owner's children are noticed.

    Raises SupervisorError with `busy` while another process holds it. What a dead owner left running gets a while to
    end and is then killed.
    """
    with _opened(lock) as mine, _opened(lock.with_suffix(".children")) as children:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SupervisorError(busy) from None
        _wait_for_orphans(children.fileno())
        yield children.fileno()


def _opened(lock: Path) -> IO[str]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return open(lock, "a")
    except OSError as error:
        raise SupervisorError(f"{lock} cannot be written: {error.strerror}.") from error


def _wait_for_orphans(descriptor: int) -> None:
    deadline = time.monotonic() + ORPHANS_MAY_STAY_SECONDS
    killed = False
    while True:
        with suppress(OSError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() > deadline:
            holders = _holders(descriptor)
            if killed or not holders:
                raise SupervisorError("Processes of an earlier run are still there; end them and start again.")
            for pid in holders:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            deadline, killed = time.monotonic() + 5, True
        time.sleep(POLL_SECONDS)


def _holders(descriptor: int) -> set[int]:
    """Other processes that have the same file open; none where there is no /proc."""
    wanted = os.fstat(descriptor)
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.path.samestat(entry.stat(), wanted):
                found.add(int(entry.parts[2]))
    return found - {os.getpid()}


class _Running:
    """A child with its process and its last lines."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.start_again_at = 0.0
        self.quick_deaths = 0
        self.gave_up = False
        self.tail: deque[str] = deque(maxlen=40)


class Supervisor:
    """Use as a context manager: on leaving, the children are stopped, last started first.

    While `quiet` the children's lines are only kept, and shown when one of them gives up.
    """

    def __init__(self, inherited: Sequence[int] = (), output: IO[str] | None = None, quiet: bool = False) -> None:
        self.quiet = quiet
        self._inherited = tuple(inherited)
        self._output = output or sys.stdout
        self._colour = self._output.isatty()
        self._writing = threading.Lock()
        self._children: list[_Running] = []
        self._asked_to_stop = False
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored by nohup, on purpose
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked_to_stop = True

    def start(self, child: Child) -> None:
        running = _Running(child)
        self._children.append(running)
        self._spawn(running)

    def tick(self) -> None:
        """Look once at every child; raises Stopped, or SupervisorError when a vital one dies again and again."""
        if self._asked_to_stop:
            raise Stopped
        for running in self._children:
            if running.process is not None and running.process.poll() is not None:
                self._bury(running)
            elif running.process is None and not running.gave_up and time.monotonic() >= running.start_again_at:
                self._spawn(running)

    def gave_up(self, name: str) -> bool:
        """Whether this child, not a vital one, died too often to be started again."""
        return any(running.gave_up for running in self._children if running.child.name == name)

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Tick until `ready()`, which must not block for long; raises SupervisorError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.tick()
            if time.monotonic() > deadline:
                self._show_tails()
                raise SupervisorError(f"{what} was not ready after {seconds:.0f} s.")
            time.sleep(POLL_SECONDS)

    def run(self, child: Child) -> str:
        """Run it to its end and return its standard output; raises SupervisorError with its words when it fails."""
        process = child.spawn(subprocess.PIPE, self._inherited, errors=subprocess.PIPE)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=POLL_SECONDS)
                    break
                self.tick()
        finally:
            kill_group(process)
        if process.returncode:
            said = (output + errors).decode(errors="replace").strip()
            raise SupervisorError(f"{child.name} failed with exit code {process.returncode}:\n{said}")
        return output.decode()

    def supervise(self) -> None:
        """Keep the children alive until a signal comes."""
        with suppress(Stopped):
            while True:
                self.tick()
                time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        while self._children:
            running = self._children.pop()
            if running.process is not None:
                running.child.stop(running.process)

    def say(self, line: str) -> None:
        # Whoever read our lines may be gone (`quickstart | head`); the children still need theirs read.
        with self._writing, suppress(OSError, ValueError):
            print(line, file=self._output, flush=True)

    def _spawn(self, running: _Running) -> None:
        try:
            running.process = running.child.spawn(subprocess.PIPE, self._inherited)
        except OSError as error:
            raise SupervisorError(f"{running.child.name} could not be started: {error}.") from error
        running.started = time.monotonic()
        threading.Thread(target=self._pump, args=(running, running.process), daemon=True).start()

    def _bury(self, running: _Running) -> None:
        process, name = running.process, running.child.name
        assert process is not None
        kill_group(process)
        running.process = None
        quick = time.monotonic() - running.started < QUICK_DEATH_SECONDS
        running.quick_deaths = running.quick_deaths + 1 if quick else 1
        if running.quick_deaths >= QUICK_DEATHS_ALLOWED:
            running.gave_up = True
            self._log(running, f"ended with {_outcome(process.returncode)}, not started again")
            if not running.child.vital:
                return
            self._show_tails()
            raise SupervisorError(f"{name} ended {running.quick_deaths} times in a row right after its start.")
        delay = FIRST_DELAY_SECONDS * 2 ** (running.quick_deaths - 1)
        running.start_again_at = time.monotonic() + delay
        self._log(running, f"ended with {_outcome(process.returncode)}, starting again in {delay:g} s")

    def _pump(self, running: _Running, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._log(running, line.decode(errors="replace").rstrip())

    def _log(self, running: _Running, line: str) -> None:
        running.tail.append(line)
        if not self.quiet:
            self.say(self._prefixed(running, line))

    def _prefixed(self, running: _Running, line: str) -> str:
        name = f"{running.child.name:<10} |"
        if self._colour and running in self._children:
            name = f"\033[{COLOURS[self._children.index(running) % len(COLOURS)]}m{name}\033[0m"
        return f"{name} {line}"

    def _show_tails(self) -> None:
        """What was kept back: the last lines of every child."""
        if self.quiet:
            for running in self._children:
                for line in list(running.tail):
                    self.say(self._prefixed(running, line))


def _outcome(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
