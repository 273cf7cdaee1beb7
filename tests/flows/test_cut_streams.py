"""A stream that is cut at any of its frames, at either end: one record, exact or marked, and nothing left behind."""

from decimal import Decimal

import pytest

from routing.models import Router
from tests.conftest import CHAT
from tests.upstream import chunk, event, finish, usage_chunk
from tests.usage.records import fund, left
from usage import auditing, tokens
from usage.models import Account, Reservation

WORDS = [f"word {n:02} " for n in range(27)]
FRAMES = [*(event(chunk(word)) for word in WORDS), event(finish()), event(usage_chunk(7, 54)), event("[DONE]")]
BUDGET = Decimal(1_000_000)


@pytest.fixture
def priced(router, ada):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    fund(ada, BUDGET)
    return router


def is_right(record, frames_seen: int | None = None) -> bool:
    """Exact, or marked and what the frames had that came through."""
    if not record.tokens_estimated:
        return (record.prompt_tokens, record.completion_tokens) in ((7, 54), (0, 0))
    texts = [tokens.of_bytes(sum(map(len, WORDS[:seen]))) for seen in range(len(WORDS) + 1)]
    if frames_seen is not None and record.completion_tokens != texts[min(frames_seen, len(WORDS))]:
        return False
    return record.prompt_tokens == 3 and record.completion_tokens in texts


def nothing_is_left(ada, router, inflight, found) -> None:
    assert inflight(router) == 0
    assert not Reservation.objects.exists()
    assert Account.objects.get(user=ada).reserved == 0
    assert left(ada) == BUDGET - sum(record.cost for record in found)
    assert auditing.audit().is_clean


def test_the_upstream_cuts_at_every_frame(as_ada, ada, priced, upstream, records, inflight):
    for sent in range(len(FRAMES)):
        priced.providers.get().save()  # closes its circuit
        upstream.reply(chunks=FRAMES[:sent], then="cut")
        answer = as_ada.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert answer.status_code == (200 if sent else 503), answer.text
    found = records(len(FRAMES))
    assert len(found) == len(FRAMES)
    for sent, record in enumerate(found):
        assert is_right(record, sent), (sent, record.prompt_tokens, record.completion_tokens)
        assert record.outcome == "upstream_failed"
        assert record.tokens_estimated == (0 < sent < 29)  # the 29th frame has the provider's figures
    told = sum(record.tokens_estimated for record in found)
    print(f"\nupstream: {len(found)} records, {len(found) - told} exact, {told} marked as estimated")
    nothing_is_left(ada, priced, inflight, found)


def test_the_caller_leaves_at_every_frame(as_ada, ada, priced, upstream, records, inflight):
    for wanted in range(len(FRAMES)):
        upstream.reply(chunks=FRAMES, gap=0.005)
        with as_ada.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            assert answer.status_code == 200
            if wanted:
                seen = b""
                for data in answer.iter_raw():
                    seen += data
                    if seen.count(b"\n\n") >= wanted:
                        break
    found = records(len(FRAMES))
    assert len(found) == len(FRAMES)
    for record in found:
        assert is_right(record), (record.prompt_tokens, record.completion_tokens, record.outcome)
        assert record.outcome in ("client_left", "finished")
        assert record.tokens_estimated or (record.prompt_tokens, record.completion_tokens) == (7, 54)
    gone = [record for record in found if record.outcome == "client_left"]
    assert len(gone) >= 25
    told = sum(record.tokens_estimated for record in found)
    print(f"\ncaller: {len(found)} records, {len(found) - told} exact, {told} marked as estimated, {len(gone)} left")
    nothing_is_left(ada, priced, inflight, found)
