"""What each event loop has of its own: connections, lines, hearts. They know their loop and may not outlive it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

END_SECONDS = 5.0  # for which the end of a loop waits, for each thing under way

T = TypeVar("T")

_kinds: "list[PerLoop[Any]]" = []


class PerLoop(Generic[T]):
    """One `T` for each event loop: called, it is the running loop's, made when first asked for.

    `end` finishes what it has under way, and lets go of the loop.
    """

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]] | None = None) -> None:
        self._make, self._end = make, end
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        self._last: tuple[Callable[[], object], T] | None = None  # the loop that asked last, and what it has
        _kinds.append(self)

    def __call__(self) -> T:
        loop = asyncio.get_running_loop()
        if self._last is not None and self._last[0]() is loop:
            return self._last[1]
        found = self._made.get(loop)
        if found is None:
            found = self._made[loop] = self._make()
        self._last = ref(loop), found
        return found

    def everywhere(self) -> list[T]:
        """Those of all loops."""
        return list(self._made.values())

    async def end(self) -> None:
        loop = asyncio.get_running_loop()
        found = self._made.get(loop)
        if found is not None and self._end is not None:
            await self._end(found)  # which may ask for itself
        self._made.pop(loop, None)
        self._last = None


async def wind_down() -> None:
    """Before the running event loop ends: finish, close and forget what it has.

    What was declared last ends first: it may lean upon what its module imported.
    """
    for kind in reversed(_kinds):
        await kind.end()


class Tasks:
    """Work of one event loop that its caller does not wait for."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def end(self) -> None:
        """Wait for all of it, though not for ever."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=END_SECONDS)


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """What async work answers, for a worker or command: in an event loop of its own that leaves nothing open."""

    async def run() -> T:
        try:
            return await work
        finally:
            await wind_down()

    return asyncio.run(run())
