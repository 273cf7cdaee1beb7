"""Callers at the same time, each in a thread of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from tests.server import Server

SECONDS = 120


class Callers:
    """Runs `call(client, caller)` for each caller again and again, until `enough()`; what it answers is kept.

    A call that raises ends the caller, and `join` raises it.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        keys: list[str],
        call: Callable[[httpx.Client, int], Any],
        enough: Callable[["Callers"], bool],
    ) -> None:
        self.answers: list[Any] = []
        self._changed = threading.Condition()
        self._enough, self._call = enough, call
        self._errors: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(servers[number % len(servers)], key, number), daemon=True)
            for number, key in enumerate(keys)
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.answers) >= count or self._errors, SECONDS)

    def join(self) -> list[Any]:
        deadline = time.monotonic() + SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]
        return self.answers

    def _run(self, server: Server, key: str, number: int) -> None:
        try:
            with server.client(key) as client:
                while not self._errors and not self._enough(self):
                    answer = self._call(client, number)
                    with self._changed:
                        self.answers.append(answer)
                        self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()
