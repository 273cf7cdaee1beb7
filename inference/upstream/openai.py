"""The OpenAI dialect, which most providers speak."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json, to_json

from inference.errors import ModelUnknown, UnreadableAnswer
from inference.streaming import DONE, Splitter
from inference.upstream import http
from routing.snapshot import Provider


class OpenAI:
    """Calls of one provider. What the caller sent goes on untouched, but for the model's name."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    CONTEXT_LENGTH = "max_context_length"  # where the upstream says how many tokens the model takes

    async def describe(self) -> dict[str, Any]:
        """What the upstream says of the model; raises ModelUnknown when it has none of that name, or as `chat` does."""
        models = (await self._get("v1/models")).get("data")
        for entry in models if isinstance(models, list) else ():
            if isinstance(entry, dict) and self.is_named(entry):
                return entry
        raise ModelUnknown(self.provider.model_name)

    def is_named(self, entry: dict[str, Any]) -> bool:
        """Whether an entry of the list of models is the provider's."""
        return entry.get("id") == self.provider.model_name

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in order; raises as `chat` does."""
        body = _encoded({"model": self.provider.model_name, "input": texts if len(texts) > 1 else texts[0]})
        answer = self._read(await http.post(self.provider, "v1/embeddings", body))
        rows = answer.get("data")
        found = [row.get("embedding") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        vectors = [vector for vector in found if isinstance(vector, list) and vector]
        if len(vectors) != len(texts):
            raise UnreadableAnswer
        return vectors

    async def chat(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The provider's `chat.completion` object; raises UpstreamRefused or UpstreamFailed."""
        body = _encoded(payload | {"model": self.provider.model_name})
        answer = self._read(await http.post(self.provider, "v1/chat/completions", body))
        if not isinstance(answer.get("choices"), list):
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

    async def _get(self, path: str) -> dict[str, Any]:
        return self._read(await http.get(self.provider, path))

    def _read(self, raw: bytes) -> dict[str, Any]:
        """The JSON object of an answer; raises UnreadableAnswer."""
        try:
            answer = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise UnreadableAnswer from error
        if not isinstance(answer, dict):
            raise UnreadableAnswer
        return answer


def _encoded(payload: dict[str, Any]) -> bytes:
    """JSON for the provider; a number too large for a float (1e400) has no JSON form and becomes null."""
    return to_json(payload, inf_nan_mode="null")
