"""vLLM: OpenAI's dialect."""

from inference.upstream.openai import OpenAI


class VLLM(OpenAI):
    CONTEXT_LENGTH = "max_model_len"
