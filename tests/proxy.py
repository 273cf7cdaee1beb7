"""A cable between the gateway and Postgres or Redis that a test can cut, or hold still."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from tests.listener import Listener


class Proxy(Listener):
    """Listens on a unix socket and passes bytes on to another, until told otherwise."""

    def __init__(self, listen: Path, target: str) -> None:
        self._listen_at, self._target = listen, target
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        super().__init__()

    def cut(self) -> None:
        """Close all connections, and each new one at once."""
        self._do(self._cut)

    def freeze(self) -> None:
        """Pass nothing on; connections stay open."""
        self._do(self._flowing.clear)

    def mend(self) -> None:
        self._is_cut = False
        self._do(self._flowing.set)

    def close(self) -> None:
        self._do(self._cut)
        super().close()

    def _do(self, what: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: [what(), done.set()])  # type: ignore[func-returns-value]
        done.wait(5)

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, str(self._listen_at))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        back_reader, back_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, back_writer}
        await asyncio.gather(self._pass(reader, back_writer), self._pass(back_reader, writer), return_exceptions=True)
        self._writers -= {writer, back_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
