"""Postgres or Valkey as a process of its own, that can be paused, killed and started again."""

import os
import signal
import time

from opengate.embedded import Server


class Dependency:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.start()

    def start(self) -> None:
        self.server.prepare()
        with open(self.server.log, "ab") as log:
            self.process = self.server.child.spawn(log)
        deadline = time.monotonic() + 30
        while not self.server.is_ready():
            assert time.monotonic() < deadline, self.server.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self.server.child.stop(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def pause(self) -> None:
        """It and its children keep their connections, and say nothing."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
