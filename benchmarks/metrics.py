"""What it costs to count a call, in microseconds of CPU: at its settlement, and at the HTTP edge."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

CALLS = 200_000
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
    from opengate import http_metrics
    from opengate.request_id import ROUTE
    from usage import measures

    def settle(ttft_ms: int | None) -> None:
        for _ in range(CALLS):
            measures.count(ENDPOINT, "model", 200, 412, ttft_ms, 12, 34)

    async def send(message: Any) -> None:
        pass

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope[ROUTE] = ENDPOINT
        await send(START)
        await send(BODY)

    async def answer(is_measured: bool) -> None:
        for _ in range(CALLS):
            scope = {"type": "http", "method": "POST", "path": ENDPOINT, "headers": REQUEST_HEADERS}
            if is_measured:
                await http_metrics.measured(application, scope, send, send)  # type: ignore[arg-type]
            else:
                await application(scope, send, send)

    print(
        f"settlement: {microseconds(lambda: settle(None)):.1f} µs, of a stream {microseconds(lambda: settle(230)):.1f}"
    )
    bare, counted = (microseconds(lambda is_it=is_it: asyncio.run(answer(is_it))) for is_it in (False, True))  # type: ignore[misc]
    print(f"HTTP edge: {counted - bare:.1f} µs")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")
    with tempfile.TemporaryDirectory(prefix="opengate-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        import django

        django.setup()
        main()
