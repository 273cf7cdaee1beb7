"""The addresses of providers' names, each name looked up by itself: one whose DNS is silent holds up no other.

The event loop's own `getaddrinfo` shares a few threads, which two silent names take for as long as they last.
"""

import asyncio
import socket
from concurrent.futures import Future
from threading import Thread

from aiohttp.abc import AbstractResolver, ResolveResult


class Names(AbstractResolver):
    """What aiohttp asks; for each name once at a time, and again when the answer is ten seconds old."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found: Future[list[ResolveResult]] = Future()
        found.set_running_or_notify_cancel()  # a lookup cannot be broken off
        # Not one of a pool: the process's end does not wait for it.
        Thread(target=_look_up, args=(found, host, port, family), daemon=True).start()
        return await asyncio.wrap_future(found)

    async def close(self) -> None:
        """Nothing stays open."""


def _look_up(found: Future[list[ResolveResult]], host: str, port: int, family: socket.AddressFamily) -> None:
    try:
        found.set_result(_addresses(host, port, family))
    except Exception as error:  # whatever it is, who waits must hear it
        found.set_exception(error)


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(hostname=host, host=str(to[0]), port=int(to[1]), family=kind, proto=protocol, flags=numeric)
        for kind, _, protocol, _, to in infos
    ]
