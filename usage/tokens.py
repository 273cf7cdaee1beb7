"""How many tokens a text has, where nobody tells: before a call, and after one whose upstream gave no figures.

The estimate is a quarter of the text's length in UTF-8 bytes, rounded up. It costs a hundredth of a tokenizer, needs
no vocabulary of the model's, and stays near the common tokenizers: about 4 letters of English, 2 accented letters, a
Chinese character and a third, or an emoji a token. The provider's own count replaces it wherever there is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json

BYTES_A_TOKEN = 4
# Parts of a message that are no text, and fields of a chat that no model reads.
MEDIA = frozenset(
    {
        *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url"),
        *("file", "input_file", "document_url"),
    }
)
UNREAD = frozenset({"messages", "model", "stop", "logit_bias", "metadata", "stream_options", "user"})


def of_bytes(length: int) -> int:
    return -(-length // BYTES_A_TOKEN)


def of_messages(messages: Sequence[Any]) -> int:
    """Tokens of the text in a chat's messages; of a list of content parts, the text parts."""
    length = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            length += sum(_length(part.get("text")) for part in content if isinstance(part, dict))
        else:
            length += _length(content)
    return of_bytes(length)


def beside_text(payload: Mapping[str, Any]) -> int:
    """Tokens of a chat beside the text of its messages. They count in what it is expected to cost, not in limits.

    About four a message, three to open the answer, a thousand a picture or file; and, as JSON, whatever else a model
    may be given to read: tools and calls of tools, formats, fields that we do not know.
    Sources: OpenAI Cookbook, "How to count tokens with tiktoken"; OpenAI's guide to images (765 to 1,105 for most).
    """
    media = 0
    read: list[Any] = [value for name, value in payload.items() if name not in UNREAD and _is_text(value)]
    for message in payload["messages"]:
        for name, value in message.items() if isinstance(message, Mapping) else ():
            if name == "content" and isinstance(value, list):
                for part in value:
                    kind = part.get("type") if isinstance(part, Mapping) else None
                    if isinstance(kind, str) and kind in MEDIA:
                        media += 1
                    elif kind != "text":
                        read.append(part)
            elif _is_text(value) and not (name == "content" and isinstance(value, str)):
                read.append(value)
    written = of_bytes(len(to_json(read, inf_nan_mode="null"))) if read else 0
    return 4 * len(payload["messages"]) + 3 + 1000 * media + written


def of_items(given: Any) -> int:
    """Tokens around the texts of an embedding's `input`: about three each, for its beginning, its end and its rest."""
    return 3 * len(given) if isinstance(given, list) else 3


def of_pairs(query: str, documents: Sequence[str]) -> int:
    """Tokens of a rerank beside its texts: the query is read with each document, and four more join the two."""
    return (len(documents) - 1) * of_texts([query]) + 4 * len(documents)


def of_input(given: Any) -> int:
    """Tokens of the `input` of an embedding: texts are estimated, lists of tokens counted."""
    items = given if isinstance(given, list) else [given]
    counted = sum(len(item) if isinstance(item, list) else 1 for item in items if not isinstance(item, str))
    return counted + of_texts([item for item in items if isinstance(item, str)])


def of_texts(texts: Sequence[str]) -> int:
    return of_bytes(sum(_length(text) for text in texts))


def of_choices(choices: Any) -> int:
    """Tokens of what a chat answered: content, reasoning and tool calls of every choice."""
    length = 0
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            continue
        length += _length(message.get("content")) + _length(message.get("reasoning_content"))
        tool_calls = message.get("tool_calls")
        for tool_call in tool_calls if isinstance(tool_calls, list) else ():
            function = tool_call.get("function") if isinstance(tool_call, dict) else None
            length += _length(function.get("arguments")) if isinstance(function, dict) else 0
    return of_bytes(length)


def _is_text(value: object) -> bool:
    return isinstance(value, str | list | Mapping)


def _length(text: object) -> int:
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
