"""vLLM: OpenAI's dialect."""

from collections.abc import Mapping, Sequence

from inference.audio import Transcription
from inference.upstream.openai import OpenAI


class VLLM(OpenAI):
    CONTEXT_LENGTH = "max_model_len"
    RERANK = "v2/rerank"

    def transcription_fields(self, request: Transcription) -> Mapping[str, Sequence[str]]:
        """It takes no speech without a language."""
        return {"language": ["en"], **super().transcription_fields(request)}
