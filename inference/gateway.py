"""The only road to a model: resolve, admit, lease, forward, relay, settle. Nothing that passes here goes unmeasured."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, TypeVar

from accounts import principals
from inference import streaming, upstream
from inference.errors import UpstreamFailed, UpstreamTrouble
from inference.streaming import DONE, Reading
from opengate import epoch
from opengate.errors import APIError
from routing import balancing, snapshot
from routing.models import CHAT_TYPES
from routing.snapshot import Router, require_type
from usage import limits, tokens
from usage.accounting import Call
from usage.models import Outcome

T = TypeVar("T")
Payload = dict[str, Any]


async def complete(call: Call, payload: Payload) -> Payload:
    """A chat completion, settled. Raises what stands in its way, with nothing sent to the caller yet."""
    async with call:
        prompt_tokens = tokens.of_messages(payload["messages"])
        router = await enter(call, payload["model"], CHAT_TYPES, prompt_tokens)
        answer = await _first(call, router, prompt_tokens, lambda client: client.chat(payload))
        call.count(
            answer.get("usage"), prompt_tokens=prompt_tokens, completion_tokens=tokens.of_choices(answer["choices"])
        )
        usage = call.usage(answer.get("usage"))
        await call.settle(200, Outcome.FINISHED)
    return answer | {
        "id": answer.get("id") or f"request-{call.request_id}",
        "model": payload["model"],
        "usage": usage,
    }


async def stream(call: Call, payload: Payload) -> AsyncGenerator[bytes]:
    """A chat completion as server-sent events, settled before its last one.

    Until the first event, what stands in its way is raised; later trouble is a last event without `[DONE]`.
    """
    async with call:
        prompt_tokens = tokens.of_messages(payload["messages"])
        router = await enter(call, payload["model"], CHAT_TYPES, prompt_tokens)
        opening = await _first(
            call, router, prompt_tokens, lambda client: streaming.opened(client.chat_events(payload))
        )
        reading = Reading()
        data = b""
        async with aclosing(opening) as events:
            try:
                async for data in events:
                    if data == DONE:
                        break
                    relayed = reading.read(data)
                    call.answering = True
                    if call.ttft_ms is None and reading.text_bytes:
                        call.first_token()
                    if relayed:
                        yield streaming.encode(data)
            except UpstreamTrouble as error:
                reading.trouble = error
            finally:  # also when the caller leaves: what went out is counted
                call.count(
                    reading.usage, prompt_tokens=prompt_tokens, completion_tokens=tokens.of_bytes(reading.text_bytes)
                )
            done = data == DONE
            closing = reading.closing(
                call.usage(reading.usage), model=payload["model"], request_id=call.request_id, done=done
            )
            await call.settle(200, Outcome.FINISHED if reading.is_whole(done) else Outcome.UPSTREAM_FAILED)
            yield closing


async def enter(call: Call, name: str, types: Collection[str], prompt_tokens: int) -> Router:
    """Resolve a name and admit the call, both as of the epoch in force.

    What is refused from memory is looked at again when the memory is old; what is admitted was fresh, since the
    admission compares epochs.
    """
    while True:
        try:
            router = (await snapshot.current()).find(name)
            granted = (await limits.grants()).of(call.principal.role_id, router)
            require_type(router, types)
        except APIError:
            seen = epoch.known()
            await epoch.refresh()
            if epoch.known() == seen:
                raise
            call.principal = await principals.again(call.principal)
            continue
        if await call.admit(router, granted, prompt_tokens):
            return router


async def _first(
    call: Call, router: Router, prompt_tokens: int, attempt: Callable[[upstream.OpenAI], Awaitable[T]]
) -> T:
    """What the first provider answers that answers at all; the last one's trouble when none does.

    A fault of the request itself is not tried elsewhere.
    """
    trouble: UpstreamTrouble = UpstreamFailed("Model is temporarily unavailable, please try again later.")
    for provider in balancing.candidates(router):
        await call.go_to(provider, prompt_tokens)
        try:
            return await attempt(upstream.client(provider))
        except UpstreamTrouble as error:
            call.failed_at_provider()
            trouble = error
            if not error.is_worth_another_try:
                break
    raise trouble
