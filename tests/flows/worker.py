"""The Celery worker as a process of its own, with beat, on the database and Redis of the tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.server import ROOT, environment


class Worker:
    """One worker and its children: a process group, so that a kill takes them all, as the end of a machine would."""

    children = 1
    prefix: Sequence[str] = ()  # of its command: where it runs

    def __init__(self, folder: Path, **extra: str) -> None:
        self.folder, self.extra = folder, extra
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Worker":
        command = [sys.executable, "-m", "celery", "-A", "opengate", "worker", "-B", "-c", str(self.children)]
        command = [*self.prefix, *command, "--schedule", str(self.folder / "schedule"), "--loglevel", "WARNING"]
        with open(self.folder / "worker.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(**{"OPENGATE_DATABASE_POOL": "10", "OPENGATE_LOG_LEVEL": "WARNING"} | self.extra),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def revive(self) -> None:
        """What a service manager does: a worker that died is started again. Losing Redis may end one."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.kill()  # what is left of its group
            self.start()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return (self.folder / "worker.log").read_text()

    def stop(self) -> None:
        """An orderly end, then whatever is left: a worker that is told to end while it starts forgets its beat."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nobody is left of the group
        self.process.wait(5)
