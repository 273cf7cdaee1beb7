"""The application as a server sees it: hot calls first, Django behind, and an orderly start and end."""

import asyncio
import gc
import logging
import os
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")
django_application = get_asgi_application()

from django.db import DatabaseError  # noqa: E402  the apps must be loaded first
from psycopg_pool import PoolTimeout  # noqa: E402

from inference import endpoints  # noqa: E402
from opengate import bodies, draining, loops, metrics, sentry, traces, work  # noqa: E402
from opengate.admission import admit  # noqa: E402
from opengate.bodies import Receive, Send  # noqa: E402
from opengate.errors import DatabaseAway  # noqa: E402
from opengate.patience import PatientConnection  # noqa: E402
from opengate.playground.consumers import PlaygroundChat  # noqa: E402
from opengate.protection import protected  # noqa: E402
from opengate.proxies import behind_proxies  # noqa: E402
from opengate.watched import watched  # noqa: E402
from routing import snapshot  # noqa: E402
from usage import limits  # noqa: E402

# Paths answered without Django's middleware; the test of all routes walks this table too.
CONSUMERS = {
    "/v1/chat/completions": endpoints.ChatCompletions,
    "/v1/embeddings": endpoints.Embeddings,
    "/v1/rerank": endpoints.Rerank,
    "/v1/ocr": endpoints.OCR,
    "/v1/models": endpoints.ListModels,
    "/v1/models/<path:model>": endpoints.GetModel,
    "/playground/chat": PlaygroundChat,
}
_ONE_MODEL = "/v1/models/<path:model>"

GARBAGE = 10_000  # objects until the collector looks at the youngest; at 700 it takes a twentieth of a call
CUT_SECONDS = 2.0  # for a view to hear that its caller is gone

logger = logging.getLogger(__name__)


@behind_proxies
async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await _answered(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _live(receive, send)
    else:  # a WebSocket, which daphne and granian offer: we have none
        await receive()
        await send({"type": "websocket.close"})


@watched
@protected
def _answered(scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
    path: str = scope["path"]
    route = _ONE_MODEL if path.startswith(endpoints.GetModel.prefix) else path
    consumer = CONSUMERS.get(route)
    if draining.refuses(path):
        return bodies.refuse(draining.Stopping(), send)
    if consumer is not None:
        work.current().hot_path = route
        return consumer()(scope, receive, send)
    return _django(scope, receive, send)


async def _django(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Django's answer; a server that ends cancels us, and then the caller is refused.

    Django would not tell that to its view, but it does tell that the caller is gone: which he is, once he is answered.
    """
    answer = asyncio.ensure_future(bodies.bounded(django_application, scope, receive, send, admit))
    try:
        await asyncio.shield(answer)
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # an answer that has begun can only be cut
            await bodies.refuse(draining.Stopping(), send)
        await asyncio.wait((answer,), timeout=CUT_SECONDS)
        answer.cancel()


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await _warm_up()
            metrics.begin()
            await send({"type": "lifespan.startup.complete"})
        else:
            await loops.wind_down()
            metrics.write()
            await asyncio.gather(asyncio.to_thread(traces.close), asyncio.to_thread(sentry.close))
            await send({"type": "lifespan.shutdown.complete"})
            return


PatientConnection.seconds = settings.DATABASE_PATIENCE_SECONDS


async def _warm_up() -> None:
    """Read what every call needs, so that the first one does not wait.

    Without Postgres, or before its tables are there, the process still starts: it is ready later.
    """
    traces.start()
    try:
        await snapshot.latest()
        await limits.grants()
    except (DatabaseAway, DatabaseError, PoolTimeout) as error:
        logger.warning("The process starts without its database: %s", error.__cause__ or error)
    # What is loaded now stays: the collector need not walk it again and again, each time tens of milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)
