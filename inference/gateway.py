"""The only road to a model: resolve, admit, lease, forward, relay, settle. Nothing that passes here goes unmeasured."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from accounts import principals
from inference import local, streaming, upstream
from inference.audio import Transcription
from inference.errors import UpstreamTrouble
from inference.streaming import DONE, Reading
from inference.upstream import answers
from opengate import epoch
from opengate.errors import APIError
from opengate.quick_settings import settings
from routing import snapshot
from routing.errors import ProvidersAway
from routing.models import CHAT_TYPES, ModelType
from routing.snapshot import require_type
from usage import tokens
from usage.accounting import MAX_TOKENS, Call
from usage.budgets import Need
from usage.models import Outcome

T = TypeVar("T")
Payload = dict[str, Any]


def complete(call: Call, payload: Payload) -> Awaitable[Payload]:
    """A chat completion, settled. Raises what stands in its way, with nothing sent to the caller yet."""
    return _answer(
        call,
        payload["model"],
        CHAT_TYPES,
        lambda client: client.chat(payload),
        need=_chat_need(payload),
        completion_tokens=lambda answer: tokens.of_choices(answer["choices"]),
    )


async def stream(call: Call, payload: Payload, *, beside: Payload | None = None) -> AsyncGenerator[bytes]:
    """A chat completion as server-sent events, settled before its last one; `beside` goes with our usage in that.

    Until the first event, what stands in its way is raised; later trouble is a last event without `[DONE]`.
    """
    async with call:
        need = _chat_need(payload)
        prompt_tokens = need.prompt
        await enter(call, payload["model"], CHAT_TYPES, need)
        first, rest = await _first(call, prompt_tokens, lambda client: streaming.opened(client.chat_events(payload)))
        reading = Reading()
        data = first

        def is_relayed(event: bytes) -> bool:
            relayed = reading.read(event)
            call.answering = True
            if call.ttft_ms is None and reading.text_bytes:
                call.first_token()
            return relayed

        async with aclosing(rest) as events:
            try:
                if is_relayed(first):
                    yield streaming.encode(first)
                async for data in events:
                    if data == DONE:
                        break
                    if is_relayed(data):
                        yield streaming.encode(data)
            except UpstreamTrouble as error:
                call.troubled(error)
                reading.trouble = error
            finally:  # also when the caller leaves: what went out is counted
                done = data == DONE
                call.count(
                    reading.usage,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=tokens.of_bytes(reading.text_bytes),
                    is_final=reading.has_finished(done),
                )
            ours = {"model": payload["model"], "usage": call.usage(reading.usage), **(beside or {})}
            closing = reading.closing(ours, request_id=call.request_id, done=done)
            await call.settle(200, Outcome.FINISHED if reading.is_whole(done) else Outcome.UPSTREAM_FAILED)
            yield closing


async def embed(call: Call, payload: Payload) -> Payload:
    """Embeddings, one row for each input, in order; with `encoding_format` base64 as little-endian 32-bit floats."""
    wants_base64 = payload.get("encoding_format") == "base64"
    # Upstreams are asked for numbers, which can be checked.
    sent = {name: value for name, value in payload.items() if name != "encoding_format" or not wants_base64}

    async def attempt(client: upstream.OpenAI) -> Payload:
        answer = await client.embed(sent)
        vectors = [row["embedding"] for row in answer["data"]]
        rows = [
            {"object": "embedding", "index": index, "embedding": answers.packed(vector) if wants_base64 else vector}
            for index, vector in enumerate(vectors)
        ]
        return answer | {"object": "list", "data": rows}

    need = Need(tokens.of_input(payload["input"]), overhead=partial(tokens.of_items, payload["input"]), completion=0)
    return await _answer(call, payload["model"], {ModelType.TEXT_EMBEDDINGS_INFERENCE}, attempt, need=need)


async def rerank(call: Call, payload: Payload) -> Payload:
    """The documents' relevance to the query, by their index."""
    answer = await _answer(
        call,
        payload["model"],
        {ModelType.TEXT_CLASSIFICATION},
        lambda client: client.rerank(payload),
        need=Need(
            tokens.of_texts([payload["query"], *payload["documents"]]),
            overhead=partial(tokens.of_pairs, payload["query"], payload["documents"]),
            completion=0,
        ),
    )
    return {"object": "list"} | answer


async def transcribe(call: Call, model: str, request: Transcription) -> Payload:
    """What is said in a file: `text`, in the format that was asked for, and what else the provider tells."""
    types = {ModelType.AUTOMATIC_SPEECH_RECOGNITION}
    return await _answer(call, model, types, lambda client: client.transcribe(request), need=_file_need())


async def ocr(call: Call, payload: Payload) -> Payload:
    """The pages of a document as Markdown, by a model."""
    types = {ModelType.IMAGE_TO_TEXT}
    return await _answer(call, payload["model"], types, lambda client: client.ocr(payload), need=_file_need())


async def read_pages(call: Call, document: bytes, **options: Any) -> tuple[Sequence[Payload], Payload]:
    """The pages of a document by the local engine, and the call's usage; metered like any other call, and free."""
    async with call:
        call.admit_unrouted(local.NAME)
        pages = await local.pages(document, call.principal.user_id, **options)
        usage = call.usage()
        await call.settle(200, Outcome.FINISHED)
    return pages, usage


async def _answer(
    call: Call,
    model: str,
    types: Collection[str],
    attempt: Callable[[upstream.OpenAI], Awaitable[Payload]],
    *,
    need: Need,
    completion_tokens: Callable[[Payload], int] = lambda answer: 0,
) -> Payload:
    """A whole answer, settled: the provider's, with our id, the caller's name for the model, and our usage."""
    async with call:
        await enter(call, model, types, need)
        answer = await _first(call, need.prompt, attempt)
        used = answer.get("usage")
        call.count(used, prompt_tokens=need.prompt, completion_tokens=completion_tokens(answer))
        usage = call.usage(used)
        await call.settle(200, Outcome.FINISHED)
    return answer | {"id": answer.get("id") or f"request-{call.request_id}", "model": model, "usage": usage}


def _chat_need(payload: Payload) -> Need:
    """The most that the caller allows an answer to have, by either of its names; the longer where it uses both.

    A limit that is no number of tokens says nothing: who knows what the provider makes of it.
    """
    given = [payload[name] for name in ("max_tokens", "max_completion_tokens") if payload.get(name) is not None]
    is_limited = bool(given) and all(type(value) is int and value > 0 for value in given)
    answers = max(payload.get("n") or 1, 1)
    return Need(
        tokens.of_messages(payload["messages"]),
        overhead=partial(tokens.beside_text, payload),
        completion=min(max(given) * answers, MAX_TOKENS) if is_limited else None,
        answers=min(answers, MAX_TOKENS),
        unknown_completion=settings.UNKNOWN_ANSWER_TOKENS,
    )


def _file_need() -> Need:
    """Nobody knows how many tokens a file has before it is read."""
    unknown = settings.UNKNOWN_ANSWER_TOKENS
    return Need(unknown_prompt=unknown, unknown_completion=unknown)


async def enter(call: Call, name: str, types: Collection[str], need: Need) -> None:
    """Resolve a name and admit the call, both as of the epoch in force.

    What is refused from memory is looked at again when the memory is old; what is admitted was fresh, since the
    admission compares epochs.
    """
    while True:
        try:
            router = (await snapshot.current()).find(name)
            granted = await call.granted(router)
            require_type(router, types)
        except APIError:
            seen = epoch.known()
            await epoch.refresh()
            if epoch.known() == seen:
                raise
            call.principal = await principals.again(call.principal)
            continue
        if await call.admit(router, granted, need):
            return


async def _first(call: Call, prompt_tokens: int, attempt: Callable[[upstream.OpenAI], Awaitable[T]]) -> T:
    """What the first provider answers that answers at all; the last one's trouble when none does.

    A fault of the request itself is not tried elsewhere.
    """
    trouble: UpstreamTrouble | None = None
    while True:
        try:
            provider = await call.next_provider(prompt_tokens)
        except ProvidersAway:
            if trouble is not None:
                raise trouble from None
            raise
        try:
            answer = await attempt(upstream.client(provider))
        except UpstreamTrouble as error:
            call.failed_at_provider(error)
            if not error.is_worth_another_try:
                raise
            trouble = error
        else:
            call.answered()
            return answer
