"""Hugging Face Text Embeddings Inference: one model a server, which tells about itself at /info."""

from typing import Any

from inference.errors import ModelUnknown
from inference.upstream.openai import OpenAI


class TEI(OpenAI):
    CONTEXT_LENGTH = "max_input_length"

    async def describe(self) -> dict[str, Any]:
        info = await self._get("info")
        if info.get("model_id") != self.provider.model_name:
            raise ModelUnknown(self.provider.model_name)
        return info
