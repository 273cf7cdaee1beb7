"""Request bodies are counted as they arrive, before any framework keeps them."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.conf import settings
from pydantic_core import to_json

from opengate import work
from opengate.errors import APIError, BodyTooLarge, openai_error
from opengate.request_id import HEADER, new_request_id

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def too_large() -> BodyTooLarge:
    return BodyTooLarge(f"Request size limit exceeded (max: {settings.MAX_BODY_BYTES} bytes).")


async def bounded(application: Application, scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Run the application; a body over the limit is answered 413 as soon as that is known."""
    length = 0

    async def counted() -> Mapping[str, Any]:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        if length > settings.MAX_BODY_BYTES:
            raise too_large()
        return message

    try:
        if _announced(scope) > settings.MAX_BODY_BYTES:
            raise too_large()
        await application(scope, counted, send)
    except BodyTooLarge as error:  # nothing was answered yet: the body comes before the answer
        await refuse(error, send)


def _announced(scope: Mapping[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def refuse(error: APIError, send: Send) -> None:
    """Answer with the error, the last of its connection, before any framework has a say."""
    body = to_json({"detail": error.detail, "error": openai_error(error.status, error.detail)})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
        (HEADER.encode(), (work.current().request_id or new_request_id()).encode()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
