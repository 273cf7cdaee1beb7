"""A chat completion over HTTP: what goes up, what comes back, what is written down."""

import json
from decimal import Decimal

import pytest

from routing.models import Router
from tests.upstream import WORDS, chunk, completion, event, finish, story, usage_chunk
from tests.usage.records import fund, left


def test_a_completion_comes_back_with_the_callers_model_name_and_our_usage(as_ada, router, chat, upstream):
    upstream.reply(completion(system_fingerprint="fp", extra={"deep": [1]}))
    response = chat(as_ada)
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == "model"
    assert body["id"] == "chatcmpl-1"
    assert body["choices"][0]["message"]["content"] == "Hello there."
    assert body["extra"] == {"deep": [1]}
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 12,
        "total_tokens": 21,
        "cost": 0.0,
        "carbon": {"kWh": {"min": 0.0, "max": 0.0}, "kgCO2eq": {"min": 0.0, "max": 0.0}},
        "impacts": {"kWh": 0.0, "kgCO2eq": 0.0},
        "requests": 1,
    }


def test_the_upstream_gets_what_the_caller_sent_and_nothing_else(as_ada, router, chat, upstream):
    fields = {
        "max_tokens": 5,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "n": 2,
    }
    chat(as_ada, search=False, **fields)
    request = upstream.received[0]
    messages = [{"role": "user", "content": "Say hello."}]
    assert request.json == {"model": "upstream-name", "messages": messages, **fields}
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer upstream-secret"
    assert "user-agent" not in request.headers


def test_images_go_up_untouched(as_ada, router, chat, upstream):
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iV"}}]
    messages = [{"role": "user", "content": parts}]
    assert chat(as_ada, messages=messages).status_code == 200
    assert upstream.received[0].json["messages"] == messages


def test_tool_calls_and_reasoning_come_back_untouched(as_ada, router, chat, upstream):
    message = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    choices = [{"index": 0, "finish_reason": "tool_calls", "message": message, "logprobs": {"content": []}}]
    upstream.reply(completion(choices=choices))
    assert chat(as_ada).json()["choices"] == choices


def test_an_alias_is_a_name_and_comes_back_as_the_caller_said_it(as_ada, router, chat):
    router.names.create(value="an/alias")
    assert chat(as_ada, model="an/alias").json()["model"] == "an/alias"


def test_a_call_leaves_one_usage_record(as_ada, router, ada, chat, records, inflight):
    router.cost_prompt_tokens, router.cost_completion_tokens = Decimal(100), Decimal(200)
    router.save()
    provider = router.providers.get()
    provider.model_active_params = provider.model_total_params = 8
    provider.save()
    response = chat(as_ada)
    (record,) = records()
    assert record.request_id == response.headers["x-request-id"]
    assert (record.user_id, record.user_email, record.key_name) == (ada.id, "ada@example.org", "test")
    assert (record.organization_id, record.router_id, record.router_name) == (ada.organization_id, router.id, "model")
    assert (record.provider_id, record.provider_model_name) == (provider.id, "upstream-name")
    assert (record.endpoint, record.method) == ("/v1/chat/completions", "POST")
    assert (record.status, record.outcome) == (200, "finished")
    assert (record.prompt_tokens, record.completion_tokens, record.total_tokens) == (9, 12, 21)
    assert not record.tokens_estimated
    assert record.cost == Decimal("0.0033")
    assert (record.cost_prompt_tokens, record.cost_completion_tokens) == (Decimal(100), Decimal(200))
    assert response.json()["usage"]["cost"] == 0.0033
    assert record.kgco2eq_min == response.json()["usage"]["impacts"]["kgCO2eq"] > 0
    assert record.ttft_ms is None
    assert inflight(router) == 0


def events_of(response) -> list:
    """The data of each event, parsed but for [DONE]."""
    texts = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def test_a_stream_is_relayed_word_for_word_with_one_usage_chunk_before_its_end(as_ada, router, chat, records, inflight):
    response = chat(as_ada, stream=True)
    events = events_of(response)
    assert response.headers["content-type"] == "text/event-stream"
    assert [e["choices"][0]["delta"].get("content", "") for e in events[:5]] == [*WORDS, ""]
    assert events[0]["model"] == "upstream-name"
    assert events[5]["choices"] == []
    assert events[5]["model"] == "model"
    assert events[5]["id"] == "chatcmpl-1"
    assert events[5]["usage"]["total_tokens"] == 21
    assert events[6:] == ["[DONE]"]
    (record,) = records()
    assert (record.status, record.outcome, record.total_tokens) == (200, "finished", 21)
    assert record.ttft_ms is not None
    assert inflight(router) == 0


def test_the_upstream_is_asked_for_usage_and_keeps_the_callers_other_stream_options(as_ada, router, chat, upstream):
    chat(as_ada, stream=True, stream_options={"include_usage": False, "other": 1})
    assert upstream.received[0].json["stream_options"] == {"include_usage": True, "other": 1}


def test_each_chunk_is_passed_on_when_it_comes(as_ada, router, upstream):
    upstream.reply(chunks=story()[:2], then="stall")
    with as_ada.stream("POST", "/v1/chat/completions", json={"model": "model", "messages": [], "stream": True}) as r:
        lines = r.iter_lines()
        assert "Hello" in next(lines)
        assert next(lines) == ""
        assert "there" in next(lines)


def test_a_stream_cut_into_single_bytes_is_put_together_again(as_ada, router, chat, upstream):
    sent = b"".join([event(chunk("é中😀")), event(finish()), event(usage_chunk()), event("[DONE]")])
    upstream.reply(chunks=[bytes([byte]) for byte in sent], gap=0)
    events = events_of(chat(as_ada, stream=True))
    assert events[0]["choices"][0]["delta"]["content"] == "é中😀"
    assert events[2]["usage"]["total_tokens"] == 21
    assert events[-1] == "[DONE]"


def test_carriage_returns_comments_and_missing_spaces_do_not_disturb(as_ada, router, chat, upstream):
    first = b": keep-alive\r\n\r\ndata:" + json.dumps(chunk("Hi")).encode() + b"\r\n\r"
    upstream.reply(chunks=[first, b"\nevent: x\r\n" + event(finish()), event("[DONE]")])
    events = events_of(chat(as_ada, stream=True))
    assert events[0]["choices"][0]["delta"]["content"] == "Hi"
    assert len(events) == 4
    assert "keep-alive" not in str(events)


def test_usage_in_each_frame_is_counted_once(as_ada, router, chat, upstream, records):
    running = [event(chunk(w, usage={"prompt_tokens": 9, "completion_tokens": n})) for n, w in enumerate(WORDS, 1)]
    upstream.reply(chunks=[*running, event(finish()), event("[DONE]")])
    events = events_of(chat(as_ada, stream=True))
    assert events[0]["usage"] == {"prompt_tokens": 9, "completion_tokens": 1}
    assert events[-2]["usage"]["completion_tokens"] == 4
    (record,) = records()
    assert (record.total_tokens, record.tokens_estimated) == (13, False)


def test_a_stream_without_usage_is_estimated_and_marked(as_ada, router, chat, upstream, records):
    upstream.reply(chunks=story(usage=False))
    events = events_of(chat(as_ada, stream=True))
    (record,) = records()
    assert (record.prompt_tokens, record.completion_tokens) == (3, 5)  # bytes / 4 of "Say hello." and of the words
    assert record.tokens_estimated
    assert events[-2]["usage"]["total_tokens"] == 8


def test_a_completion_with_absurd_usage_is_estimated_and_marked(as_ada, router, chat, upstream, records):
    upstream.reply(completion("12345678", usage={"prompt_tokens": -1, "completion_tokens": 2**40}))
    assert chat(as_ada).json()["usage"]["total_tokens"] == 5
    (record,) = records()
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == (3, 2, True)


def test_a_stream_that_never_says_done_gets_no_invented_done(as_ada, router, chat, upstream, records):
    upstream.reply(chunks=story(done=False))
    events = events_of(chat(as_ada, stream=True))
    assert events[-1]["usage"]["total_tokens"] == 21
    (record,) = records()
    assert record.outcome == "finished"  # it gave its reason to finish


def test_a_stream_that_just_stops_is_no_finished_answer(as_ada, router, chat, upstream, records):
    upstream.reply(chunks=story(usage=False, done=False)[:2])
    events = events_of(chat(as_ada, stream=True))
    assert events[-1]["usage"]["completion_tokens"] == 3
    (record,) = records()
    assert (record.status, record.outcome, record.tokens_estimated) == (200, "upstream_failed", True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_budget_is_lowered_by_the_cost_at_once(as_ada, router, ada, chat, records, stream):
    Router.objects.filter(id=router.id).update(cost_completion_tokens=1_000_000)
    fund(ada, 20)
    assert chat(as_ada, stream=stream).status_code == 200
    assert left(ada) == 8
    assert chat(as_ada, stream=stream).status_code == 200
    assert left(ada) == 0
    refused = chat(as_ada, stream=stream)
    assert (refused.status_code, refused.json()["detail"]) == (400, "Insufficient budget.")
    assert len(records(2)) == 2
