"""The Mistral API: OpenAI's dialect for chats, less what it refuses to know; audio goes through a chat."""

from base64 import b64encode
from typing import Any

from inference.audio import PLAIN_FORMATS, Transcription
from inference.errors import FormatUnavailable, UnreadableAnswer
from inference.upstream.openai import OpenAI

CHAT_FIELDS = frozenset(
    {
        *("model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed"),
        *("response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n"),
        *("prediction", "parallel_tool_calls", "prompt_mode", "safe_prompt"),
    }
)


class Mistral(OpenAI):
    def chat_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The fields that it knows, `seed` and `max_completion_tokens` by the names it has for them."""
        renamed = {"seed": "random_seed", "max_completion_tokens": "max_tokens"}
        given = payload | {
            theirs: payload[ours]
            for ours, theirs in renamed.items()
            if payload.get(ours) is not None and payload.get(theirs) is None
        }
        return {name: value for name, value in super().chat_payload(given).items() if name in CHAT_FIELDS}

    def stream_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        """It sends usage unasked."""
        return self.chat_payload(payload)

    async def transcribe(self, request: Transcription) -> dict[str, Any]:
        """The model hears the file in a chat, and answers with what was said."""
        if request.response_format not in PLAIN_FORMATS:
            raise FormatUnavailable(request.response_format)
        language = f" in the language {request.language}" if request.language else ""
        audio = {"type": "input_audio", "input_audio": b64encode(request.read()).decode()}
        text = {"type": "text", "text": request.prompt or f"Write down what is said{language}, and nothing else."}
        payload: dict[str, Any] = {"messages": [{"role": "user", "content": [audio, text]}]}
        if request.temperature is not None:
            payload["temperature"] = request.temperature
        answer = await self.chat(payload)
        return {name: answer[name] for name in ("id", "usage") if name in answer} | {"text": _said(answer)}


def _said(answer: dict[str, Any]) -> str:
    """The text of a chat's first choice, which may come in parts."""
    try:
        content = answer["choices"][0]["message"]["content"]
        parts = [part["text"] for part in content if part["type"] == "text"] if isinstance(content, list) else [content]
        return "".join(parts).strip()
    except (IndexError, KeyError, TypeError):
        raise UnreadableAnswer from None
