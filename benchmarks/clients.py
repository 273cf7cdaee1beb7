#!/usr/bin/env python
"""What a call of a provider costs through our connections, and through the clients one would pick instead.

    python -m pip install --no-deps --target var/rivals pyreqwest==0.15.1 httpx-aiohttp==0.2.0
    python benchmarks/clients.py [--quick] [--json FILE]

Posts chats to the scripted provider (`upstream.py`), whole answers and streams, through each client that is
installed; one that is not is named and left out. They take turns in one process and one event loop, so that noise
meets all alike; what counts is the process's CPU over the answers that came whole, and the ratio to ours within a
round. The answers are not parsed: that is the same work for all.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "var" / "rivals"))

import uvloop  # noqa: E402

from tests.services import SECRETS  # noqa: E402

PORT = 9721
URL = f"http://127.0.0.1:{PORT}/"
PATH = "v1/chat/completions"
CHUNKS = 100
CORES = sorted(os.sched_getaffinity(0))
ASKS = "Say what the weather is. " * 20
OURS = "ours"

Post = Callable[[bytes], Awaitable[bytes]]
Stream = Callable[[bytes], AsyncIterator[bytes]]
Client = tuple[Post, Stream]


async def ours(stack: AsyncExitStack) -> Client:
    os.environ |= SECRETS | {"DATABASE_URL": "postgresql://nobody@localhost/nothing", "REDIS_URL": "redis://localhost"}
    os.environ["DJANGO_SETTINGS_MODULE"] = "opengate.settings"
    import django

    django.setup()
    from inference.upstream import http
    from opengate.loops import wind_down
    from routing.models import Provider
    from routing.snapshot import provider_of

    provider = provider_of(Provider(type="openai", url=URL, key="k" * 40, timeout=60, model_name="m"))
    stack.push_async_callback(wind_down)
    return (lambda body: http.post(provider, PATH, body)), (lambda body: http.stream(provider, PATH, body))


HEADERS = {"Authorization": f"Bearer {'k' * 40}", "Content-Type": "application/json"}


async def aiohttp(stack: AsyncExitStack) -> Client:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=HEADERS)
    )

    async def post(body: bytes) -> bytes:
        async with session.post(URL + PATH, data=body, allow_redirects=False) as response:
            return await response.read()

    async def stream(body: bytes) -> AsyncIterator[bytes]:
        async with session.post(URL + PATH, data=body, allow_redirects=False) as response:
            async for data in response.content.iter_any():
                yield data

    return post, stream


async def pyreqwest(stack: AsyncExitStack) -> Client:
    builder = import_module("pyreqwest.client").ClientBuilder()
    client = await stack.enter_async_context(builder.follow_redirects(False).build())

    async def post(body: bytes) -> bytes:
        response = await client.post(URL + PATH).headers(HEADERS).body_bytes(body).build().send()
        return bytes(await response.bytes())

    async def stream(body: bytes) -> AsyncIterator[bytes]:
        request = client.post(URL + PATH).headers(HEADERS).body_bytes(body)
        async with request.streamed_read_buffer_limit(0).build_streamed() as response:
            while data := await response.body_reader.read_chunk():
                yield bytes(data)

    return post, stream


async def httpx_over_aiohttp(stack: AsyncExitStack) -> Client:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    transport = import_module("httpx_aiohttp").AiohttpTransport(limits=limits)
    client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, headers=HEADERS, timeout=60))

    async def post(body: bytes) -> bytes:
        return (await client.post(URL + PATH, content=body)).content

    async def stream(body: bytes) -> AsyncIterator[bytes]:
        async with client.stream("POST", URL + PATH, content=body) as response:
            async for data in response.aiter_raw():
                yield data

    return post, stream


CLIENTS = {
    OURS: (ours, "httptools"),
    "aiohttp": (aiohttp, "aiohttp"),
    "pyreqwest": (pyreqwest, "pyreqwest"),
    "httpx over aiohttp": (httpx_over_aiohttp, "httpx_aiohttp"),
}


def asking(directive: str, *, stream: bool) -> bytes:
    says = f"[[bench {directive}]] {ASKS}"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": says}]
    return json.dumps({"model": "fake", "stream": stream, "messages": messages}).encode()


async def chats(client: Client, callers: int, seconds: float) -> float:
    """CPU microseconds of a call."""
    post, body, calls = client[0], asking("size=200", stream=False), 0
    end = time.monotonic() + seconds

    async def call() -> None:
        nonlocal calls
        while time.monotonic() < end:
            answer = await post(body)
            assert answer.endswith(b"}"), answer[-50:]
            calls += 1

    begun = time.process_time()
    await asyncio.gather(*(call() for _ in range(callers)))
    return (time.process_time() - begun) / calls * 1e6


async def streams(client: Client, callers: int, seconds: float) -> float:
    """CPU microseconds of a chunk, its share of the call in it."""
    read, body, answers = client[1], asking(f"chunks={CHUNKS} delay=5", stream=True), 0
    end = time.monotonic() + seconds

    async def call() -> None:
        nonlocal answers
        while time.monotonic() < end:
            last = b""
            async with aclosing(read(body)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    last = piece
            assert b"[DONE]" in last, last[-50:]
            answers += 1

    begun = time.process_time()
    await asyncio.gather(*(call() for _ in range(callers)))
    return (time.process_time() - begun) / (answers * CHUNKS) * 1e6


WORK = {
    "chat, 1 in flight": (chats, 1),
    "chat, 32 in flight": (chats, 32),
    "stream, 1 in flight": (streams, 1),
    "stream, 32 in flight": (streams, 32),
}


async def measure(seconds: float, rounds: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        clients = {name: await make(stack) for name, (make, module) in CLIENTS.items() if find_spec(module)}
        found: dict[str, Any] = {}
        for title, (work, callers) in WORK.items():
            figures: dict[str, list[float]] = {name: [] for name in clients}
            for number in range(-1, rounds):  # the first is to warm up
                names = list(clients)
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    spent = await work(clients[name], callers, seconds if number >= 0 else seconds / 5)
                    if number >= 0:
                        figures[name].append(spent)
            found[title] = {name: told(values, figures[OURS]) for name, values in figures.items()}
    return found


def told(values: list[float], of_ours: list[float]) -> dict[str, float]:
    ratios = [value / our for value, our in zip(values, of_ours, strict=True)]
    return {
        "cpu_us": round(statistics.median(values), 1),
        "over_ours": round(statistics.median(ratios), 2),
        "over_ours_min": round(min(ratios), 2),
        "over_ours_max": round(max(ratios), 2),
    }


def table(found: dict[str, Any]) -> str:
    lines = ["CPU in µs of a call (chat) or a chunk (stream); in brackets the ratio to ours, median, min to max"]
    for title, figures in found.items():
        lines.append(f"{title}:")
        for name, told in figures.items():
            spread = f"({told['over_ours']:.2f}; {told['over_ours_min']:.2f} to {told['over_ours_max']:.2f})"
            lines.append(f"  {name:20}{told['cpu_us']:8.1f}  {spread if name != OURS else ''}")
    missing = [name for name, (_, module) in CLIENTS.items() if not find_spec(module)]
    return "\n".join([*lines, *(f"not installed: {name}" for name in missing)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short slices, for a first look")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    command = [sys.executable, str(ROOT / "benchmarks" / "upstream.py"), "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as provider:
        try:
            os.sched_setaffinity(provider.pid, CORES[:1])
            os.sched_setaffinity(0, CORES[-1:])
            assert provider.stdout is not None
            provider.stdout.readline()  # it listens
            found = uvloop.run(measure(*((0.3, 3) if options.quick else (0.5, 15))))
        finally:
            provider.terminate()
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
