"""Clients of providers: one class a wire dialect, over one pooled HTTP client."""

from inference.upstream.http import close
from inference.upstream.openai import OpenAI
from routing.snapshot import Provider

__all__ = ["DIALECTS", "OpenAI", "client", "close"]

DIALECTS: dict[str, type[OpenAI]] = {
    "albert": OpenAI,
    "mistral": OpenAI,
    "openai": OpenAI,
    "vllm": OpenAI,
}


def client(provider: Provider) -> OpenAI:
    """The client that speaks the provider's dialect."""
    return DIALECTS[provider.type](provider)
