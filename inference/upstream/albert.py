"""The Albert API: OpenAI's dialect, with models that also answer to aliases."""

from typing import Any

from inference.upstream.openai import OpenAI


class Albert(OpenAI):
    def is_named(self, entry: dict[str, Any]) -> bool:
        aliases = entry.get("aliases")
        return super().is_named(entry) or (isinstance(aliases, list) and self.provider.model_name in aliases)
