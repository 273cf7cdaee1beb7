"""The OpenAI dialect, which most providers speak."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json, to_json

from inference.errors import UnreadableAnswer
from inference.streaming import DONE, Splitter
from inference.upstream import http
from routing.snapshot import Provider


class OpenAI:
    """Calls of one provider. What the caller sent goes on untouched, but for the model's name."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    async def chat(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The provider's `chat.completion` object; raises UpstreamRefused or UpstreamFailed."""
        body = _encoded(payload | {"model": self.provider.model_name})
        try:
            answer = from_json(await http.post(self.provider, "v1/chat/completions", body), allow_inf_nan=False)
        except ValueError as error:
            raise UnreadableAnswer from error
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise UnreadableAnswer
        return answer

    async def chat_events(self, payload: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Data of the provider's events, one at a time, as bytes; it is asked to send usage at the end.

        Raises UpstreamRefused or UpstreamFailed, also in the middle when the stream breaks.
        """
        options = payload.get("stream_options")
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        body = _encoded(payload | {"model": self.provider.model_name, "stream_options": options})
        splitter = Splitter()
        async with aclosing(http.stream(self.provider, "v1/chat/completions", body)) as chunks:
            async for chunk in chunks:
                for data in splitter.feed(chunk):
                    yield data
                    if data == DONE:
                        return
        for data in splitter.end():
            yield data


def _encoded(payload: dict[str, Any]) -> bytes:
    """JSON for the provider; a number too large for a float (1e400) has no JSON form and becomes null."""
    return to_json(payload, inf_nan_mode="null")
