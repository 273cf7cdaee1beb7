"""Clients of providers: one class a wire dialect, over one pooled HTTP client."""

from inference.upstream.albert import Albert
from inference.upstream.mistral import Mistral
from inference.upstream.openai import OpenAI
from inference.upstream.tei import TEI
from inference.upstream.vllm import VLLM
from routing.snapshot import Provider

__all__ = ["DIALECTS", "OpenAI", "client"]

DIALECTS: dict[str, type[OpenAI]] = {
    "albert": Albert,
    "mistral": Mistral,
    "openai": OpenAI,
    "tei": TEI,
    "vllm": VLLM,
}


def client(provider: Provider) -> OpenAI:
    """The client that speaks the provider's dialect."""
    return DIALECTS[provider.type](provider)
