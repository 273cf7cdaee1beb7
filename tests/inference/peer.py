"""A provider that sends bytes as a test says, whatever they mean."""

import asyncio
import re
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Literal

from tests.listener import Listener


def answer(body: bytes = b"{}", *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(slots=True)
class Says:
    """Bytes to send once a request has come, or once its headers have; and what happens then."""

    data: bytes
    then: Literal["keep", "close", "stall"] = "keep"
    is_early: bool = False  # and the body is never read
    later: bytes = b""  # sent when the caller has had time to read the rest


class Peer(Listener):
    """Says what `says` holds, in order, and then `{}` to whatever comes."""

    def __init__(self, *says: Says, certificate: ssl.SSLContext | None = None, greeting: bytes | None = None) -> None:
        self.says = deque(says)
        self.asked: list[tuple[int, bytes]] = []  # the number of the connection, and the request
        self.connections = self.open = 0
        self.sent = 0  # bytes of the answer under way
        self._certificate = certificate
        self._greeting = greeting  # said unasked, and then no more
        super().__init__()

    @property
    def url(self) -> str:
        return f"http{'s' if self._certificate else ''}://127.0.0.1:{self.port}/"

    def hang_up(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._certificate)
        self.port: int = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            if self._greeting is not None:
                writer.write(self._greeting)
                return
            while await self._exchange(number, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _exchange(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        said = self.says.popleft() if self.says else Says(answer())
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = b"" if said.is_early or not length else await reader.readexactly(int(length[1]))
        self.asked.append((number, head + body))
        self.sent = 0
        for at in range(0, len(said.data), 65536):
            writer.write(said.data[at : at + 65536])
            await writer.drain()
            self.sent = at
        if said.later:
            await asyncio.sleep(0.02)
            writer.write(said.later)
        if said.is_early:
            await asyncio.sleep(3600)
        if said.then == "stall":
            await reader.read()
        return said.then == "keep"
