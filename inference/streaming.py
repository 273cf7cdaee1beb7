"""Server-sent events: bytes in, events out, and what an event tells without being parsed."""

import re
from collections.abc import AsyncGenerator
from typing import Any

from pydantic_core import from_json, to_json

from inference.errors import UnreadableAnswer, UpstreamFailed, UpstreamRefused
from opengate.errors import APIError, openai_error
from opengate.quick_settings import settings

DONE = b"[DONE]"
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_STRING = rb'\s*+:\s*+"((?:[^"\\]++|\\.)++)"'  # never a step back: it is asked of every event
_TEXT = re.compile(rb'"(?:content|reasoning_content|text|refusal|arguments)"' + _STRING)
_REASONING = re.compile(rb'"reasoning"' + _STRING)  # as some call it, and some beside the other name


class Splitter:
    """Cuts a stream of bytes into the data of its events, wherever the chunks begin and end.

    Comments and fields other than `data` are dropped; several data lines of an event are joined by a newline. Raises
    UnreadableAnswer for an event longer than UPSTREAM_MAX_EVENT_BYTES.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Data of the events that are complete now, in order."""
        if not self._rest and chunk.startswith(b"data: ") and chunk.endswith(b"\n\n"):
            data = chunk[6:-2]
            if b"\n" not in data and b"\r" not in data:  # the common case: one event, one line
                return [data]
        self._length += len(chunk)
        if self._length > settings.UPSTREAM_MAX_EVENT_BYTES:
            raise UnreadableAnswer
        self._rest.append(chunk)
        if b"\n" not in chunk and b"\r" not in chunk:
            return []  # joined once, when there may be something to cut
        *events, rest = _cut(b"".join(self._rest))
        self._rest, self._length = [rest] if rest else [], len(rest)
        return [data for event in events if (data := _data(event))]

    def end(self) -> list[bytes]:
        """Data of a last event that no blank line closed."""
        text = b"".join(self._rest)
        self._rest, self._length = [], 0
        return [data for event in _cut(text + b"\n\n") if (data := _data(event))]


def _cut(text: bytes) -> list[bytes]:
    """Events, and last what is left over; lines may end in CR, LF or both."""
    if b"\r" in text:
        held = b"\r" if text.endswith(b"\r") else b""  # its LF may come with the next chunk
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
    return text.split(b"\n\n")


def _data(event: bytes) -> bytes:
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines).strip()


class Reading:
    """What the relay learns from the events of one chat, parsing only those that may hold more than text."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.usage: Any = None
        self.trouble: APIError | None = None
        self._refused = False
        self._last = b""
        self._last_choice = b""

    def read(self, data: bytes) -> bool:
        """Take an event in; False when it carries nothing but usage, which the gateway sends itself."""
        texts = _TEXT.findall(data)
        if b'"reasoning"' in data and b'"reasoning_content"' not in data:
            texts += _REASONING.findall(data)
        for text in texts:
            self.text_bytes += len(text) if b"\\" not in text else len(_unescaped(text))
        if b'"choices"' not in data or _USAGE.search(data):
            return self._read_whole(data)
        self._last = self._last_choice = data
        return True

    def _read_whole(self, data: bytes) -> bool:
        event = _object(data)
        if "choices" not in event:
            self._refused = self._refused or "error" in event
            return True
        self._last = data
        if event["choices"]:
            self._last_choice = data
        if event.get("usage") is not None:
            self.usage = event["usage"] or self.usage
            return bool(event["choices"])
        return True

    def is_whole(self, done: bool) -> bool:
        """Whether the answer came to its end: without trouble, and with `[DONE]` or a reason to finish."""
        return self.trouble is None and not self._refused and self.has_finished(done)

    def has_finished(self, done: bool) -> bool:
        """Whether the model said that there is no more: before that, its figures are those of a part."""
        return done or _FINISHED.search(self._last_choice) is not None

    def closing(self, ours: dict[str, Any], *, request_id: str, done: bool) -> bytes:
        """What ends the stream to the caller: one chunk with our fields and, where the upstream sent it, `[DONE]`.

        The chunk is a copy of the last one without choices. After trouble it is the error instead, and no `[DONE]`.
        """
        if self.trouble is not None:
            detail = self.trouble.detail
            return encode(to_json({"detail": detail, "error": openai_error(self.trouble.status, detail)}))
        chunk = {"id": f"request-{request_id}", "object": "chat.completion.chunk"} | _object(self._last)
        last = encode(to_json(chunk | {"choices": []} | ours))
        return last + encode(DONE) if done else last


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object of an event; an empty one for anything else."""
    try:
        event = from_json(data, allow_inf_nan=False)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _unescaped(text: bytes) -> bytes:
    try:
        return str(from_json(b'"' + text + b'"')).encode("utf-8", "replace")
    except ValueError:
        return text


def encode(data: bytes) -> bytes:
    """An event of the stream to the caller. Data of several lines, which no JSON has, becomes several data lines."""
    if b"\n" in data:
        data = b"\ndata: ".join(data.split(b"\n"))
    return b"data: " + data + b"\n\n"


async def opened(events: AsyncGenerator[bytes]) -> tuple[bytes, AsyncGenerator[bytes]]:
    """The first event, and the others: it is waited for so that an early failure is still a status code."""
    first = await anext(events, DONE)
    if first == DONE:
        await events.aclose()
        raise UpstreamFailed("The model closed the stream without an answer.")
    if b'"choices"' not in first and "error" in (refusal := _object(first)):
        await events.aclose()
        raise UpstreamRefused(_status(refusal["error"]), refusal)
    return first, events


def _status(error: Any) -> int:
    """The status an upstream writes into an error it sends with status 200."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
