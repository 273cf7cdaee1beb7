"""Bytes on a socket, as no client library would send them."""

import json
import re
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.server import Server

MAX_BODY = 4 * 1024 * 1024


class Target(Server):
    """The web process that is attacked."""

    def memory(self) -> int:
        """Bytes of it in memory."""
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(kilobytes) * 1024

    def connections(self) -> int:
        """Sockets that it has open."""
        folder = Path(f"/proc/{self.pid}/fd")
        return sum(str(link.readlink()).startswith("socket:") for link in folder.iterdir())

    def said(self) -> str:
        assert self.log is not None
        return Path(self.log.name).read_text(errors="replace")

    def connect(self) -> socket.socket:
        found = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def send(self, raw: bytes, *, end: bool = False, seconds: float = 10, quiet: float = 0.3) -> "Answers":
        """What comes back: until the server closes, or says nothing for `quiet` seconds once it has answered.

        With `end` the caller closes its side first.
        """
        with closing(self.connect()) as wire:
            try:
                wire.sendall(raw)
                if end:
                    wire.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # it has read enough
            return answers(wire, seconds, quiet)


@dataclass(frozen=True)
class Answers:
    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.raw)]

    @property
    def content(self) -> Any:
        """The JSON of a single answer."""
        return json.loads(self.raw.partition(b"\r\n\r\n")[2])


def answers(wire: socket.socket, seconds: float = 10, quiet: float = 0.3) -> Answers:
    raw, deadline = b"", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        wire.settimeout(min(quiet, left) if raw else left)
        try:
            part = wire.recv(1 << 16)
        except TimeoutError:
            return Answers(raw, closed=False)
        except ConnectionError:
            return Answers(raw, closed=True)
        if not part:
            return Answers(raw, closed=True)
        raw += part
    return Answers(raw, closed=False)


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """A request as it should be, with the length of its body."""
    given = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
