"""Something that listens, in an event loop and a thread of its own."""

import asyncio
import threading
from abc import ABC, abstractmethod


class Listener(ABC):
    """Listens from its making until it is closed; what it needs for that is set before `super().__init__()`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(5), f"{type(self).__name__} does not listen."

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @abstractmethod
    async def _listen(self) -> asyncio.Server:
        """The server, whose connections come to `_serve`."""

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._listen())
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()
