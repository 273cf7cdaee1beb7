"""The addresses of providers' names, each name looked up by itself: one whose DNS is silent holds up no other.

The event loop's own `getaddrinfo` shares a few threads, which two silent names take for as long as they last.
"""

import asyncio
import socket
from concurrent.futures import Future
from ipaddress import ip_address
from threading import Thread
from typing import Any

KEEP_SECONDS = 10.0

Address = tuple[Any, ...]  # as `getaddrinfo` tells it


class Names:
    """Each name is looked up once at a time, and again when the answer is ten seconds old."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, Future[list[Address]]]] = {}

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Raises OSError."""
        if _is_address(host):
            return _addresses(host, port, socket.AI_NUMERICHOST)
        now = asyncio.get_running_loop().time()
        self._known = {name: one for name, one in self._known.items() if _is_good(now, *one)}
        _, found = self._known.get((host, port), (now, None))
        if found is None:
            found = Future()
            found.set_running_or_notify_cancel()  # a lookup cannot be broken off
            self._known[host, port] = now, found
            # Not one of a pool: the process's end does not wait for it.
            Thread(target=_look_up, args=(found, host, port), daemon=True).start()
        return await asyncio.wrap_future(found)


def _is_good(now: float, since: float, found: Future[list[Address]]) -> bool:
    return not found.done() or (now - since <= KEEP_SECONDS and found.exception() is None)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(found: Future[list[Address]], host: str, port: int) -> None:
    try:
        found.set_result(_addresses(host, port, socket.AI_ADDRCONFIG))
    except Exception as error:  # whatever it is, who waits must hear it
        found.set_exception(error)


def _addresses(host: str, port: int, flags: int) -> list[Address]:
    return list(socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, flags=flags))
