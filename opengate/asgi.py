"""The application as a server sees it: hot calls first, Django behind, and an orderly start and end."""

import gc
import os
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")
django_application = get_asgi_application()

from inference import gateway  # noqa: E402  the apps must be loaded first
from inference.consumers import ChatCompletions  # noqa: E402
from opengate import bodies  # noqa: E402
from opengate.bodies import Receive, Send  # noqa: E402
from opengate.errors import DatabaseAway  # noqa: E402
from opengate.patience import PatientConnection  # noqa: E402
from opengate.playground.consumers import PlaygroundChat  # noqa: E402
from opengate.protection import protected  # noqa: E402
from routing import snapshot  # noqa: E402
from usage import limits  # noqa: E402

# Paths answered without Django's middleware; the test of all routes walks this table too.
CONSUMERS = {"/v1/chat/completions": ChatCompletions, "/playground/chat": PlaygroundChat}
_hot = {path: consumer.as_asgi() for path, consumer in CONSUMERS.items()}


@protected
async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        hot = _hot.get(scope["path"])
        if hot is not None:
            await hot(scope, receive, send)
        else:
            await bodies.bounded(django_application, scope, receive, send)
    elif scope["type"] == "lifespan":
        await _live(receive, send)
    else:
        await django_application(scope, receive, send)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await _warm_up()
            await send({"type": "lifespan.startup.complete"})
        else:
            await gateway.wind_down()
            await send({"type": "lifespan.shutdown.complete"})
            return


PatientConnection.seconds = settings.DATABASE_PATIENCE_SECONDS


async def _warm_up() -> None:
    """Read what every call needs, so that the first one does not wait; without Postgres the process still starts."""
    try:
        await snapshot.latest()
        await limits.grants()
    except DatabaseAway:
        pass
    # What is loaded now stays: the collector need not walk it again and again, each time tens of milliseconds.
    gc.collect()
    gc.freeze()
