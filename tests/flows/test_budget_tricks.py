"""Callers who try to have more than their budget: bodies that cost more than they seem to, and callers who leave."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from django.db import transaction

from routing.models import Provider, Router
from tests.conftest import CHAT
from tests.upstream import Reply, chunk, completion, event, finish, usage_chunk
from tests.usage.records import fund, left
from usage import auditing
from usage.models import Account, Limit, Reservation

BUDGET, CALLERS = 1000, 12
CHAT_PATH = "/v1/chat/completions"
WORDS = "word " * 720
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.fixture
def priced(router):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1_000_000, cost_completion_tokens=1_000_000)
    return router


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "model", "max_tokens": 1, "messages": [{"role": "user", "content": content}]} | fields


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "Go on."}]


def used(request: Any) -> tuple[int, int]:
    """Tokens as an upstream would count them: of everything it gets, and up to `max_tokens`, or 900, in the answer."""
    body = request.json
    images = json.dumps(body).count("image_url") // 2
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    answer = int(limit) if limit is not None and int(limit) > 0 else 900
    return len(json.dumps(body.get("messages", "")) + json.dumps(body.get("tools", ""))) // 4 + 1000 * images, answer


def parallel(gateway: Any, key: str, path: str, body: dict[str, Any]) -> Counter[int]:
    together = threading.Barrier(CALLERS)

    def call(_: int) -> int:
        with gateway.client(key) as client:
            together.wait(30)
            return int(client.post(path, json=body).status_code)

    with ThreadPoolExecutor(CALLERS) as pool:
        return Counter(pool.map(call, range(CALLERS)))


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("openai", asked("Hi.", max_tokens=-1, max_completion_tokens=1)),
        ("mistral", asked("Hi.", max_tokens=None, max_completion_tokens=900)),
        ("mistral", asked("Hi.", max_tokens=900.0, max_completion_tokens=1)),
        ("mistral", asked("Hi.", max_tokens="900", max_completion_tokens=1)),
        ("openai", asked("Hi.", tools=[{"type": "function", "function": {"name": "f", "description": WORDS}}])),
        ("openai", asked("", messages=called(WORDS))),
        ("openai", asked([IMAGE])),
        ("openai", asked([IMAGE], max_tokens=None)),
    ],
    ids=["negative", "null", "float", "text", "tools", "tool calls", "images", "images, no limit"],
)
def test_a_chat_that_costs_more_than_it_seems_is_one_at_a_time(gateway, priced, ada, key_of, upstream, type, body):
    Provider.objects.update(type=type)

    def reply(request: Any) -> Reply:
        prompt, answer = used(request)
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return Reply([json.dumps(completion(usage=usage)).encode()], wait=0.5)

    upstream.route(CHAT_PATH, reply)
    fund(ada, BUDGET)
    statuses = parallel(gateway, key_of(ada), CHAT_PATH, body)
    one_call = sum(used(upstream.received[0]))
    assert set(statuses) <= {200, 400}
    assert Account.objects.get(user=ada).spent <= BUDGET + one_call
    assert auditing.audit().is_clean


@pytest.mark.parametrize(
    ("kind", "provider", "path", "upstream_path", "body", "tokens"),
    [
        (
            "text-classification",
            "vllm",
            "/v1/rerank",
            "/v2/rerank",
            {"query": "word " * 8, "documents": ["a"] * 100},
            1300,
        ),
        ("text-embeddings-inference", "openai", "/v1/embeddings", "/v1/embeddings", {"input": ["a"] * 300}, 900),
    ],
    ids=["rerank", "embeddings"],
)
def test_many_small_texts_cost_more_than_their_letters(
    gateway, ada, key_of, upstream, role, kind, provider, path, upstream_path, body, tokens
):
    router = Router.objects.create(name="small", type=kind, cost_prompt_tokens=1_000_000)
    Provider.objects.create(router=router, type=provider, url=upstream.url, model_name="m", timeout=5)
    Limit.objects.open_router(role, router)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    results = [{"index": index, "relevance_score": 0.5} for index in range(100)]
    data = [{"index": index, "embedding": [0.5]} for index in range(300)]
    upstream.route(upstream_path, {"usage": usage, "results": results, "data": data}, wait=0.5)
    fund(ada, BUDGET)
    statuses = parallel(gateway, key_of(ada), path, {"model": "small"} | body)
    assert set(statuses) <= {200, 400}
    assert Account.objects.get(user=ada).spent <= BUDGET + tokens


def leave_after(client: httpx.Client, upstream: Any, frames: list[bytes]) -> None:
    upstream.reply(chunks=frames, gap=0.01, then="stall")
    seen = b""
    with client.stream("POST", CHAT_PATH, json=CHAT | {"stream": True}) as answer:
        for data in answer.iter_raw():
            seen += data
            if seen.count(b"\n\n") >= len(frames):
                break


def delta(**fields: Any) -> bytes:
    return event(chunk(choices=[{"index": 0, "delta": fields, "finish_reason": None}]))


LINE = "word " * 20  # 25 tokens
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": LINE}]}
BEGUN = {"usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}


@pytest.mark.parametrize(
    "frames",
    [
        [delta(reasoning=LINE)] * 20,
        [delta(reasoning=LINE, reasoning_content=LINE)] * 20,
        [delta(content=[THINKING])] * 20,
        [event(chunk("x", **BEGUN)), *[event(chunk(LINE))] * 20],
    ],
    ids=["reasoning", "by both names", "thinking", "figures of the beginning"],
)
def test_who_leaves_pays_for_what_was_thought(as_ada, ada, priced, upstream, records, frames):
    fund(ada, 10_000)
    leave_after(as_ada, upstream, frames)
    (record,) = records()
    assert (record.outcome, record.tokens_estimated) == ("client_left", True)
    assert 500 <= record.completion_tokens <= 510
    assert record.cost == record.prompt_tokens + record.completion_tokens


def test_figures_are_not_taken_back_by_empty_ones(as_ada, priced, upstream, records):
    upstream.reply(
        chunks=[event(chunk("Hi")), event(finish()), event(usage_chunk(9, 700)), event(chunk(choices=[], usage={}))]
    )
    as_ada.post(CHAT_PATH, json=CHAT | {"stream": True})
    (record,) = records()
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (9, 700, False)


@pytest.mark.parametrize("stream", [False, True])
def test_absurd_figures_are_not_billed(as_ada, ada, priced, upstream, records, stream):
    fund(ada, 100)
    usage = {"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1, "total_tokens": 2**32 - 2}
    if stream:
        upstream.reply(chunks=[event(chunk("Hi")), event(finish()), event(chunk(choices=[], usage=usage))])
    else:
        upstream.reply(completion(usage=usage))
    assert as_ada.post(CHAT_PATH, json=CHAT | {"stream": stream}).status_code == 200
    (record,) = records()
    assert record.tokens_estimated
    assert record.total_tokens < 30
    assert auditing.audit().is_clean


def test_a_body_of_half_a_million_odd_parts_is_refused_for_its_price(as_ada, ada, priced):
    fund(ada, 10)
    parts = b",".join([b'{"type":0}'] * 490_000)
    body = (
        b'{"model": "model", "messages": [{"role": "user", "content": ['
        + parts
        + b"]}, "
        + b'{"role": "user", "content": "'
        + b"x" * 100
        + b'"}]}'
    )
    answer = as_ada.post(CHAT_PATH, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (400, "Insufficient budget.")


def test_who_leaves_while_money_is_waited_for_has_taken_nothing(as_ada, ada, role, priced, chat, redis_client):
    fund(ada, BUDGET)
    Limit.objects.filter(role=role, type="rpm").update(value=4)
    assert chat(as_ada).status_code == 200
    (counter,) = redis_client.keys("opengate:limit:rpm:*")
    with transaction.atomic():
        Account.objects.select_for_update().get(user=ada)
        for _ in range(2):
            with pytest.raises(httpx.TimeoutException):
                as_ada.post(CHAT_PATH, json=CHAT, timeout=0.3)
    deadline = time.monotonic() + 5
    while (Reservation.objects.exists() or int(redis_client.get(counter)) > 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [chat(as_ada).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_an_account_that_somebody_holds_holds_up_nobody_else(gateway, priced, ada, ben, key_of, upstream):
    fund(ada, BUDGET)
    fund(ben, BUDGET)
    upstream.route(CHAT_PATH, completion(), wait=0.3)
    key_of_ada, key_of_ben = key_of(ada), key_of(ben)

    def call(key: str) -> float:
        begun = time.monotonic()
        with gateway.client(key) as client:
            assert client.post(CHAT_PATH, json=CHAT | {"max_tokens": 5}).status_code == 200
        return time.monotonic() - begun

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(call, key_of_ada)
        while not Reservation.objects.exists():
            time.sleep(0.01)
        with transaction.atomic():
            Account.objects.select_for_update().get(user=ada)
            slowest = max(call(key_of_ben) for _ in range(3))
            assert not held.done()
        held.result()
    assert slowest < 3  # and not the five seconds that Postgres is given
    assert (left(ada), left(ben)) == (BUDGET - 21, BUDGET - 3 * 21)
