"""The OpenAI dialect, which most providers speak."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from pydantic_core import to_json

from inference.audio import TEXT_FORMATS, Transcription
from inference.errors import ModelUnknown, UnreadableAnswer, UpstreamFailed
from inference.streaming import DONE, Splitter
from inference.upstream import answers, http
from inference.upstream.forms import Form
from routing.snapshot import Provider

Payload = dict[str, Any]


class OpenAI:
    """Calls of one provider. What the caller sent goes on untouched, but for the model's name.

    Every method raises UpstreamRefused for an error status and UpstreamFailed for whatever is no answer. A dialect is a
    subclass: it names its paths, and overrides what it says otherwise.
    """

    CONTEXT_LENGTH: ClassVar[str] = "max_context_length"  # where it says how many tokens the model takes
    RERANK: ClassVar[str] = "v1/rerank"

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    # the model itself

    async def describe(self) -> Payload:
        """What the upstream says of the model; raises ModelUnknown when it has none of that name."""
        models = (await self._get("v1/models")).get("data")
        for entry in models if isinstance(models, list) else ():
            if isinstance(entry, dict) and self.is_named(entry):
                return entry
        raise ModelUnknown(self.provider.model_name)

    def is_named(self, entry: Payload) -> bool:
        """Whether an entry of the list of models is the provider's."""
        return entry.get("id") == self.provider.model_name

    # chat

    def chat_payload(self, payload: Payload) -> Payload:
        """The body of a chat, as the provider wants it."""
        return payload | {"model": self.provider.model_name}

    def stream_payload(self, payload: Payload) -> Payload:
        """The body of a streamed chat: the provider is asked to send usage at the end."""
        options = payload.get("stream_options")
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return self.chat_payload(payload) | {"stream_options": options}

    async def chat(self, payload: Payload) -> Payload:
        """The provider's `chat.completion` object."""
        answer = await self._post("v1/chat/completions", self.chat_payload(payload))
        if not isinstance(answer.get("choices"), list):
            raise UnreadableAnswer
        return answer

    async def chat_events(self, payload: Payload) -> AsyncGenerator[bytes]:
        """Data of the provider's events, one at a time, as bytes; each within the provider's timeout.

        Raises in the middle, too, when the stream breaks.
        """
        body = encoded(self.stream_payload(payload))
        splitter = Splitter()
        clock = asyncio.get_running_loop().time
        last = clock()
        async with aclosing(http.stream(self.provider, "v1/chat/completions", body)) as chunks:
            async for chunk in chunks:
                found = splitter.feed(chunk)
                for data in found:
                    yield data
                    if data == DONE:
                        return
                if found:
                    last = clock()
                elif clock() - last > self.provider.timeout:  # bytes drip, and make no event
                    raise UpstreamFailed("Model is too busy (TimeoutError), please try again later.")
        for data in splitter.end():
            yield data

    # embeddings and rerank

    async def embed(self, payload: Payload) -> Payload:
        """The answer with `data` in the order of the inputs, its vectors lists of finite numbers.

        They are of the size that the payload asks for, or that the provider's model has, where that is known.
        """
        answer = await self._post("v1/embeddings", payload | {"model": self.provider.model_name})
        size = payload.get("dimensions") or self.provider.vector_size
        return answer | {"data": answers.vectors(answer.get("data"), _count_of(payload["input"]), size)}

    async def rerank(self, payload: Payload) -> Payload:
        """The answer with `results`: each an `index` into the documents and a finite `relevance_score`."""
        answer = await self._post(self.RERANK, payload | {"model": self.provider.model_name})
        return answer | {"results": answers.ranks(answer.get("results"), len(payload["documents"]))}

    # audio and documents

    def transcription_fields(self, request: Transcription) -> Mapping[str, Sequence[str]]:
        """The form's fields but for the file, as the provider wants them; empty ones are left out."""
        return request.fields() | {"model": [self.provider.model_name]}

    async def transcribe(self, request: Transcription) -> Payload:
        """The answer with its `text`: what the upstream sent as JSON, or the whole of its text, SRT or VTT."""
        fields = self.transcription_fields(request)
        form = Form(fields, request.open, request.filename, request.content_type)
        raw = await http.post(self.provider, "v1/audio/transcriptions", form)
        if fields.get("response_format", ["json"])[0] in TEXT_FORMATS:
            return {"text": answers.text(raw)}
        answer = self._read(raw)
        if not isinstance(answer.get("text"), str):
            raise UnreadableAnswer
        return answer | ({"usage": _audio_usage(answer["usage"])} if "usage" in answer else {})

    async def ocr(self, payload: Payload) -> Payload:
        """The answer with its `pages`."""
        answer = await self._post("v1/ocr", payload | {"model": self.provider.model_name})
        return answer | {"pages": answers.objects(answer.get("pages"))}

    # the wire

    async def _get(self, path: str) -> Payload:
        return self._read(await http.get(self.provider, path))

    async def _post(self, path: str, payload: Payload) -> Payload:
        return self._read(await http.post(self.provider, path, encoded(payload)))

    def _read(self, raw: bytes) -> Payload:
        """The JSON object of an answer."""
        answer = answers.parsed(raw)
        if not isinstance(answer, dict):
            raise UnreadableAnswer
        return answer


def encoded(payload: Payload) -> bytes:
    """JSON for the provider; a number too large for a float (1e400) has no JSON form and becomes null."""
    return to_json(payload, inf_nan_mode="null")


def _count_of(inputs: Any) -> int:
    """How many vectors the `input` of an embedding asks for: one for a text or a list of tokens, else one each."""
    return len(inputs) if isinstance(inputs, list) and not isinstance(inputs[0], int) else 1


def _audio_usage(usage: Any) -> Any:
    """Usage of a transcription says input and output where a chat's says prompt and completion."""
    if not isinstance(usage, dict) or "input_tokens" not in usage:
        return usage
    return usage | {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage.get("output_tokens")}
