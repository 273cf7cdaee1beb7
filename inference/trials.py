"""A real, tiny call to a model, for an administrator who wants to see whether it answers, and how.

It goes the way of every call: leased, forwarded, measured, paid by whoever asked. But the limits of a role do not stand
before it, since who keeps a model in order need not be among those who use it.
"""

import asyncio
import io
import json
import wave
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final

from accounts import principals
from accounts.principals import Principal
from inference import gateway
from inference.audio import Transcription
from opengate.errors import APIError
from opengate.request_id import new_request_id
from routing import snapshot
from routing.errors import ModelNotFound, ProviderNotFound, RouterNotFound
from routing.models import ModelType
from routing.snapshot import Router
from usage import limits
from usage.accounting import Call
from usage.budgets import Need
from usage.models import Endpoint

KEY_NAME: Final = "console"  # in place of a key's, in the usage record
LONGEST_SECONDS: Final = 30
SHOWN_CHARACTERS: Final = 300
ANSWER_TOKENS: Final = 32
WORD: Final = "OpenGate"
NO_LIMITS: Final = limits.Limits(rpm=None, rpd=None, tpm=None, tpd=None)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it: the beginning of an answer, or a refusal; `grams` of CO2eq, `tries` at providers."""

    request_id: str
    is_recorded: bool  # a call that is refused before a provider has no usage
    status: int
    answer: str
    refusal: str
    provider: str | None
    tries: int
    latency_ms: int
    ttft_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    tokens_estimated: bool
    cost: Decimal
    grams: float


class TrialCall(Call):
    """A call that no limit of a role stands before; of the router's providers it may be for one alone."""

    def __init__(self, principal: Principal, endpoint: str, provider_id: int | None) -> None:
        super().__init__(principal, endpoint, new_request_id())
        self.provider_id = provider_id
        self.passed_over: frozenset[int] = frozenset()

    async def granted(self, router: Router) -> limits.Limits:
        return NO_LIMITS

    async def admit(self, router: Router, granted: limits.Limits, need: Need) -> bool:
        if self.provider_id is not None:
            self.passed_over = frozenset(one.id for one in router.providers) - {self.provider_id}
            if len(self.passed_over) == len(router.providers):
                raise ModelNotFound
            self.tried = self.passed_over
        return await super().admit(router, granted, need)

    @property
    def tries(self) -> int:
        failed = self.tried - self.passed_over
        return len(failed) + (self.provider is not None and self.provider.id not in failed)


class NoProvider(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("This router has no provider yet.")


Words = Callable[[str], None]


async def of_router(user_id: int, router_id: int, provider_id: int | None = None) -> Trial:
    """Call the router, or one provider of it, on the account of that user; refusals are part of the answer.

    Raises RouterNotFound, ProviderNotFound, NoProvider, or InvalidKey when the account is closed.
    """
    principal = await principals.of_user(user_id, KEY_NAME)
    routers = (await snapshot.latest()).routers
    router = next((router for router in routers if router.id == router_id), None)
    if router is None:
        raise RouterNotFound(router_id)
    if provider_id is not None and all(provider.id != provider_id for provider in router.providers):
        raise ProviderNotFound(provider_id)
    if not router.providers:
        raise NoProvider
    endpoint, attempt = _ATTEMPTS[ModelType(router.type)]
    call = TrialCall(principal, endpoint, provider_id)
    said: list[str] = []
    status, refusal = 200, ""
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            await attempt(call, router, said.append)
    except APIError as error:
        status, refusal = error.status, str(error.detail)
    except TimeoutError:
        status, refusal = 504, f"No answer within {LONGEST_SECONDS} seconds: the call was given up."
    footprint = call.footprint().as_impacts()
    return Trial(
        request_id=call.request_id,
        is_recorded=call.admission is not None,
        status=status,
        answer="".join(said)[:SHOWN_CHARACTERS],
        refusal=refusal,
        provider=None if call.provider is None else f"{call.provider.model_name} at {call.provider.url}",
        tries=call.tries,
        latency_ms=call.latency_ms(),
        ttft_ms=call.ttft_ms,
        prompt_tokens=call.tokens.prompt,
        completion_tokens=call.tokens.completion,
        tokens_estimated=call.tokens.estimated,
        cost=call.cost(),
        grams=footprint["kgCO2eq"] * 1000,
    )


async def _chat(call: Call, router: Router, say: Words) -> None:
    await _read_chat(call, router, "Say hello.", say)


async def _chat_about_a_picture(call: Call, router: Router, say: Words) -> None:
    picture = {"type": "image_url", "image_url": {"url": _picture()}}
    await _read_chat(call, router, [{"type": "text", "text": "What is written here?"}, picture], say)


async def _read_chat(call: Call, router: Router, content: Any, say: Words) -> None:
    messages = [{"role": "user", "content": content}]
    payload = {"model": router.name, "messages": messages, "max_tokens": ANSWER_TOKENS, "stream": True}
    async with aclosing(gateway.stream(call, payload)) as events:
        async for event in _read(events):
            if "detail" in event:
                raise LateTrouble(str(event["detail"]))
            for choice in event.get("choices") or ():
                delta = choice.get("delta") if isinstance(choice, dict) else None
                if isinstance(delta, dict):
                    say(str(delta.get("content") or delta.get("reasoning_content") or ""))


class LateTrouble(APIError):
    """The stream began and broke."""

    status = 502


async def _read(events: AsyncIterator[bytes]) -> AsyncIterator[Mapping[str, Any]]:
    async for data in events:
        for line in data.split(b"\n"):
            text = line.removeprefix(b"data: ")
            try:
                event = json.loads(text) if text.startswith(b"{") else None
            except ValueError:  # an upstream's own words, which are relayed as they are
                continue
            if isinstance(event, dict):
                yield event


async def _embed(call: Call, router: Router, say: Words) -> None:
    answer = await gateway.embed(call, {"model": router.name, "input": [WORD]})
    vector = answer["data"][0]["embedding"]
    say(f"{len(vector)} numbers: {', '.join(f'{number:.4f}' for number in vector[:5])} …")


async def _rerank(call: Call, router: Router, say: Words) -> None:
    documents = ["Paris is the capital of France.", "Bread is made of flour."]
    query = "What is the capital of France?"
    answer = await gateway.rerank(call, {"model": router.name, "query": query, "documents": documents})
    found = (f"{documents[row['index']]} {row['relevance_score']:.4f}" for row in answer["results"])
    say("\n".join(found))


async def _transcribe(call: Call, router: Router, say: Words) -> None:
    silence = Transcription(lambda: io.BytesIO(_silence()), "silence.wav", "audio/wav")
    answer = await gateway.transcribe(call, router.name, silence)
    say(str(answer.get("text", "")))


async def _read_picture(call: Call, router: Router, say: Words) -> None:
    document = {"type": "image_url", "image_url": _picture()}
    answer = await gateway.ocr(call, {"model": router.name, "document": document})
    say("\n".join(str(page.get("markdown", "")) for page in answer["pages"]))


@cache
def _silence() -> bytes:
    """A second of it, as WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(2 * 16_000))
    return file.getvalue()


@cache
def _picture() -> str:
    """A word, black on white, as a data URL."""
    from PIL import Image, ImageDraw  # for this alone: a web process has not loaded it

    picture = Image.new("L", (160, 48), 255)
    ImageDraw.Draw(picture).text((16, 12), WORD, fill=0, font_size=24)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


_ATTEMPTS: Mapping[ModelType, tuple[str, Callable[[Call, Router, Words], Awaitable[None]]]] = {
    ModelType.TEXT_GENERATION: (Endpoint.CHAT_COMPLETIONS, _chat),
    ModelType.IMAGE_TEXT_TO_TEXT: (Endpoint.CHAT_COMPLETIONS, _chat_about_a_picture),
    ModelType.TEXT_EMBEDDINGS_INFERENCE: (Endpoint.EMBEDDINGS, _embed),
    ModelType.TEXT_CLASSIFICATION: (Endpoint.RERANK, _rerank),
    ModelType.AUTOMATIC_SPEECH_RECOGNITION: (Endpoint.AUDIO_TRANSCRIPTIONS, _transcribe),
    ModelType.IMAGE_TO_TEXT: (Endpoint.OCR, _read_picture),
}
