"""Async code of ours, run by a plain test."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from opengate import redis as opengate_redis
from routing import places

T = TypeVar("T")


def in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in an event loop of its own that leaves no connection to Redis behind."""

    async def run() -> T:
        try:
            return await coroutine
        finally:
            await places.all_left(5)
            await opengate_redis.close()

    return asyncio.run(run())
