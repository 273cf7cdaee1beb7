"""A cable between the gateway and Postgres or Redis that a test can cut, or hold still."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path


class Proxy:
    """Listens on a unix socket and passes bytes on to another, until told otherwise."""

    def __init__(self, listen: Path, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listen, started), daemon=True)
        self._thread.start()
        started.wait(5)

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
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _do(self, what: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: [what(), done.set()])  # type: ignore[func-returns-value]
        done.wait(5)

    def _cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def _run(self, listen: Path, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, str(listen)))
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

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
