"""The Albert API: OpenAI's dialect, with models that also answer to aliases."""

from collections.abc import Mapping, Sequence
from typing import Any

from inference.audio import PLAIN_FORMATS, Transcription
from inference.upstream.openai import OpenAI


class Albert(OpenAI):
    def is_named(self, entry: dict[str, Any]) -> bool:
        aliases = entry.get("aliases")
        return super().is_named(entry) or (isinstance(aliases, list) and self.provider.model_name in aliases)

    def transcription_fields(self, request: Transcription) -> Mapping[str, Sequence[str]]:
        """For the words alone it is asked for JSON, whose text the caller gets."""
        fields = super().transcription_fields(request)
        return {**fields, "response_format": ["json"]} if request.response_format in PLAIN_FORMATS else fields
