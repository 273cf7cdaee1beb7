"""What it costs to count a call, in microseconds of CPU: at its settlement, and at the HTTP edge."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

CALLS = 50_000
ROUNDS = 7
ENDPOINT = "/v1/chat/completions"
REQUEST_HEADERS = [
    (b"host", b"gateway"),
    (b"authorization", b"Bearer sk-0123"),
    (b"content-type", b"application/json"),
    (b"content-length", b"321"),
    (b"user-agent", b"bench"),
]
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"900"), (b"x-request-id", b"0")],
}
BODY = {"type": "http.response.body", "body": b"{}"}


def microseconds(run: Callable[[], object]) -> float:
    """CPU of one call, the median of the rounds."""
    found = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        run()
        found.append((time.process_time() - begun) / CALLS * 1e6)
    return median(found)


def main() -> None:
    from django.conf import settings

    from opengate import work
    from opengate.watched import watched
    from usage import measures

    def settle(ttft_ms: int | None) -> None:
        for _ in range(CALLS):
            measures.count(ENDPOINT, "model", 200, 412, ttft_ms, 12, 34)

    async def nothing(*message: Any) -> Any:
        pass

    @watched
    async def application(scope: Any, receive: Any, send: Any) -> None:
        work.current().hot_path = ENDPOINT
        await send(START)
        await send(BODY)

    async def answer(is_counted: bool) -> None:
        settings.METRICS = is_counted
        scope = {"type": "http", "method": "POST", "path": ENDPOINT, "headers": REQUEST_HEADERS}
        for _ in range(CALLS):
            await application(scope, nothing, nothing)

    def serve(is_counted: bool) -> None:
        asyncio.run(answer(is_counted))

    counted, not_counted = microseconds(partial(serve, True)), microseconds(partial(serve, False))
    print(f"HTTP edge: {counted - not_counted:.1f} µs")
    settings.METRICS = True  # and from now on the process gathers what it writes
    print(
        f"settlement: {microseconds(lambda: settle(None)):.1f} µs, of a stream {microseconds(lambda: settle(230)):.1f}"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")
    with tempfile.TemporaryDirectory(prefix="opengate-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        import django

        django.setup()
        main()
