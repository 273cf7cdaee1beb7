"""The parent of the web processes: it starts them, replaces what dies or hangs, and ends them in order.

A process is a run of our own command line with two descriptors more: the socket on which all listen, so that a
connection that waits is taken by whoever is there, and a pipe on which it says each second that it is well.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from opengate.supervisor import Child, kill_group

TICK_SECONDS = 0.1
START_SECONDS = 120.0
QUICK_DEATH_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
FIRST_STARTS = 3  # tries of a service that never was up
SETTLE_SECONDS = 25.0  # after the grace: what is cut settles, records are sent, connections closed
LAST_WORDS_SECONDS = 1.0  # for one that hangs to tell where

logger = getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How many processes, of which command, and their times in seconds."""

    command: Sequence[str]
    count: int
    stop_seconds: float  # from SIGTERM to the end of the last open call
    retire_seconds: float  # the same for a process that is replaced
    hang_seconds: float


@dataclass
class WebProcess:
    process: subprocess.Popen[bytes]
    heart: int
    started: float
    is_ready: bool = False
    silent: float = 0.0  # seconds without a beat, not counting those in which we did not run either
    retires: bool = False
    dies_at: float | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Processes:
    """SIGTERM and SIGINT drain all processes, a second one ends them at once; SIGHUP replaces one after another."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        self._plan = plan
        self._listener = listener
        self._all: list[WebProcess] = []
        self._hearts = selectors.DefaultSelector()
        self._last = time.monotonic()
        self._was_up = False
        self._quick_deaths = 0
        self._starts_at = 0.0  # not before that: back-off
        self._asked_to_stop = 0
        self._asked_to_replace = False
        self._former: list[WebProcess] = []  # still to be replaced
        self._successor: WebProcess | None = None

    def run(self) -> bool:
        """Until a signal says stop; false when the service never came up or its end was not an orderly one."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        while not self._asked_to_stop:
            self._start_missing()
            self._look()
            if not self._was_up and self._quick_deaths >= FIRST_STARTS:
                logger.error("No web process starts; the service ends.")
                self._stop()
                return False
            self._replace()
        return self._stop()

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._asked_to_replace = True
        else:
            self._asked_to_stop += 1

    def _start_missing(self) -> None:
        wanted = self._plan.count + (self._successor is not None)
        there = sum(not one.retires for one in self._all)
        if time.monotonic() >= self._starts_at:
            for _ in range(wanted - there):
                if self._spawn() is None:
                    return

    def _spawn(self) -> WebProcess | None:
        """None on a machine that has no room for one more at the moment."""
        try:
            return self._spawned()
        except OSError as error:
            logger.error("A web process cannot be started: %s.", error)
            self._put_off(True)
            return None

    def _spawned(self) -> WebProcess:
        heart, other_end = os.pipe()
        listener = self._listener.fileno()
        command = [*self._plan.command, "--listener", str(listener), "--heart", str(other_end)]
        child = Child("web", command, folder=Path.cwd())
        try:
            process = child.spawn(sys.stdout.fileno(), (listener, other_end), errors=sys.stderr.fileno())
        except OSError:
            os.close(heart)
            raise
        finally:
            os.close(other_end)
        os.set_blocking(heart, False)
        one = WebProcess(process, heart, time.monotonic())
        self._hearts.register(heart, selectors.EVENT_READ, one)
        self._all.append(one)
        return one

    def _look(self) -> None:
        """Hear who is well, bury who is dead, and end who is late or hangs."""
        for key, _ in self._hearts.select(TICK_SECONDS):
            self._hear(key.data)
        now = time.monotonic()
        passed, self._last = min(now - self._last, 1.0), now
        for one in list(self._all):
            one.silent += passed
            if one.process.poll() is not None:
                self._bury(one)
            elif one.dies_at is not None:
                if now > one.dies_at:
                    one.tell(signal.SIGKILL)
            elif not one.is_ready and now - one.started > START_SECONDS:
                self._give_up(one, f"was not ready after {START_SECONDS:g} s")
            elif one.is_ready and one.silent > self._patience:
                self._give_up(one, f"has hung for {one.silent:.0f} s")

    @property
    def _patience(self) -> float:
        """Seconds of silence that mean a process hangs; one that settles its last calls is silent."""
        return max(self._plan.hang_seconds, SETTLE_SECONDS) if self._asked_to_stop else self._plan.hang_seconds

    def _hear(self, one: WebProcess) -> None:
        beats = os.read(one.heart, 4096)
        if not beats:  # dead, or about to be: waited for in a moment
            self._hearts.unregister(one.heart)
            return
        one.silent = 0.0
        if not one.is_ready:
            one.is_ready = self._was_up = True
            logger.info("Web process %d is ready.", one.pid)

    def _give_up(self, one: WebProcess, why: str) -> None:
        logger.error("Web process %d %s and is killed.", one.pid, why)
        if one.is_ready:
            one.tell(signal.SIGUSR2)  # it writes where its threads are
        one.dies_at = time.monotonic() + LAST_WORDS_SECONDS

    def _bury(self, one: WebProcess) -> None:
        kill_group(one.process)  # with whatever it had started
        with suppress(KeyError):
            self._hearts.unregister(one.heart)
        os.close(one.heart)
        self._all.remove(one)
        code = one.process.returncode
        outcome = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        if one.retires or self._asked_to_stop:
            logger.info("Web process %d has ended (%s).", one.pid, outcome)
            return
        if one is self._successor:
            self._successor, self._former = None, []
            logger.error("Web process %d ended with %s before it was ready; the others stay.", one.pid, outcome)
            return
        self._put_off(not one.is_ready or time.monotonic() - one.started < QUICK_DEATH_SECONDS)
        pause = max(self._starts_at - time.monotonic(), 0)
        logger.error("Web process %d ended with %s; another starts in %.1f s.", one.pid, outcome, pause)

    def _put_off(self, was_quick: bool) -> None:
        """The first death is made good at once; those that follow soon, ever later."""
        self._quick_deaths = self._quick_deaths + 1 if was_quick else 0
        if self._quick_deaths > 1:
            delay = min(FIRST_DELAY_SECONDS * 2.0 ** (self._quick_deaths - 2), LONGEST_DELAY_SECONDS)
            self._starts_at = time.monotonic() + delay

    def _replace(self) -> None:
        """One at a time: a new one is ready, then an old one retires, and only when that has ended comes the next."""
        if self._asked_to_replace:
            self._asked_to_replace = False
            self._former = [one for one in self._all if not one.retires and one is not self._successor]
            logger.info("%d web processes are replaced.", len(self._former))
        self._former = [one for one in self._former if one in self._all]
        if self._successor is not None and self._successor.is_ready:
            self._successor = None
            if self._former:
                self._retire(self._former.pop(0))
        elif self._former and self._successor is None and not any(one.retires for one in self._all):
            self._successor = self._spawn()
            if self._successor is None:
                self._former = []

    def _retire(self, one: WebProcess) -> None:
        one.retires = True
        one.dies_at = time.monotonic() + self._plan.retire_seconds + SETTLE_SECONDS
        one.tell(signal.SIGHUP)

    def _stop(self) -> bool:
        logger.info("Stopping %d web processes.", len(self._all))
        self._listener.close()  # only who still answers listens
        for one in self._all:
            one.tell(signal.SIGTERM)
        is_hurried = False
        deadline = time.monotonic() + self._plan.stop_seconds + SETTLE_SECONDS
        while self._all:
            self._look()
            if self._asked_to_stop > 1 and not is_hurried:
                is_hurried, deadline = True, min(deadline, time.monotonic() + SETTLE_SECONDS)
                for one in self._all:
                    one.tell(signal.SIGQUIT)
            if time.monotonic() > deadline:
                for one in self._all:
                    logger.error("Web process %d does not end and is killed.", one.pid)
                    kill_group(one.process)
                return False
        return True
