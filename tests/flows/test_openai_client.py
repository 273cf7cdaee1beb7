"""The official OpenAI client against the gateway: what its users see, and what it raises."""

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from routing.models import Router
from tests.upstream import WORDS, completion
from tests.usage.records import fund
from usage.models import Limit

MESSAGES: list[Any] = [{"role": "user", "content": "Say hello."}]
HELLO: dict[str, Any] = {"model": "model", "messages": MESSAGES}


@pytest.fixture
def connect(gateway):
    """Clients that do not try again behind our back: `connect(key)`."""
    opened = []

    def _connect(key):
        opened.append(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0))
        return opened[-1]

    yield _connect
    for client in opened:
        client.close()


@pytest.fixture
def client(connect, ada, key_of):
    return connect(key_of(ada))


def kind(error: openai.APIStatusError) -> str:
    """The type in the `error` object of the body."""
    assert isinstance(error.body, dict)
    return str(error.body["type"])


def limit(router: Router, type: str, value: int) -> None:
    row = Limit.objects.get(router=router, type=type)
    row.value = value
    row.save()


def test_a_completion_is_an_object_of_the_client(client, router):
    answer = client.chat.completions.create(**HELLO)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "model"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 12, 21)
    assert re.fullmatch(r"[0-9a-f]{32}", answer._request_id)


def test_a_stream_is_read_to_its_end_with_one_usage_chunk(client, router):
    chunks = list(client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True}))
    told = [chunk for chunk in chunks if chunk.usage]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert len(told) == 1
    assert told[0].choices == []
    assert (told[0].usage.prompt_tokens, told[0].usage.completion_tokens, told[0].usage.total_tokens) == (9, 12, 21)


def test_the_async_client_gets_the_same(gateway, router, ada, key_of):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key_of_ada, max_retries=0) as client:
            whole = await client.chat.completions.create(**HELLO)
            stream = await client.chat.completions.create(**HELLO, stream=True)
            return whole, [chunk async for chunk in stream]

    key_of_ada = key_of(ada)
    whole, chunks = asyncio.run(ask())
    assert whole.choices[0].message.content == "Hello there."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "".join(WORDS)


def test_a_tool_is_called_and_its_result_goes_up(client, router, upstream):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    upstream.reply(completion(choices=[{"index": 0, "finish_reason": "tool_calls", "message": message}]))
    first = client.chat.completions.create(**HELLO, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls"
    assert json.loads(first.message.tool_calls[0].function.arguments) == {"a": 1, "b": 2}

    result = {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": "3"}
    client.chat.completions.create(model="model", messages=[*MESSAGES, first.message, result], tools=tools)
    asked = upstream.received[1].json
    assert asked["messages"][1]["tool_calls"] == [call]
    assert asked["messages"][2] == result
    assert asked["tools"] == tools


def test_models_are_listed_and_found_by_names_with_slashes(client, router):
    router.names.create(value="name/with/slash")
    listed = client.models.list().data
    assert [(model.id, model.object, model.owned_by) for model in listed] == [("model", "model", "OpenGate")]
    assert client.models.retrieve("model").id == "model"
    assert client.models.retrieve("name/with/slash").id == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("name/with")


def test_an_unknown_key_is_an_authentication_error(connect, router):
    with pytest.raises(openai.AuthenticationError) as raised:
        connect("sk-" + "a" * 43).chat.completions.create(**HELLO)
    assert "Invalid API key." in raised.value.message
    assert kind(raised.value) == "authentication_error"
    assert raised.value.response.headers["www-authenticate"] == "Bearer"


def test_a_missing_key_is_an_authentication_error(connect, router):
    with pytest.raises(openai.AuthenticationError, match="Not authenticated"):
        connect("sk-unsent").chat.completions.create(**HELLO, extra_headers={"Authorization": openai.Omit()})


def test_a_reached_limit_is_a_rate_limit_error_that_says_when_to_return(client, router):
    limit(router, "rpm", 1)
    client.chat.completions.create(**HELLO)
    with pytest.raises(openai.RateLimitError, match=r"1 requests per minute exceeded \(remaining: 0\)") as raised:
        client.chat.completions.create(**HELLO)
    headers = raised.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert re.fullmatch(r"1m0s|[1-5]?[0-9]s", headers["x-ratelimit-reset-requests"])
    assert kind(raised.value) == "rate_limit_error"


def test_an_answer_tells_what_is_left(client, router):
    limit(router, "rpm", 5)
    limit(router, "tpd", 1000)
    headers = client.chat.completions.with_raw_response.create(**HELLO).headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 1000


def test_an_unknown_model_is_not_found(client, router):
    with pytest.raises(openai.NotFoundError, match=r"Model not found\.") as raised:
        client.chat.completions.create(model="no/such", messages=MESSAGES)
    assert kind(raised.value) == "not_found_error"


def test_what_the_upstream_refuses_is_a_bad_request_in_its_own_words(client, router, upstream):
    refusal = {
        "message": "max_tokens is too large",
        "type": "invalid_request_error",
        "code": None,
        "param": "max_tokens",
    }
    upstream.reply({"error": refusal}, status=400)
    with pytest.raises(openai.BadRequestError, match="max_tokens is too large") as raised:
        client.chat.completions.create(**HELLO, max_tokens=10**9)
    assert raised.value.param == "max_tokens"


def test_a_used_up_budget_is_a_bad_request(client, router, ada):
    Router.objects.filter(id=router.id).update(cost_prompt_tokens=1)
    fund(ada, 0)
    with pytest.raises(openai.BadRequestError, match=r"Insufficient budget\."):
        client.chat.completions.create(**HELLO)


def test_a_closed_limit_is_permission_denied(client, router):
    limit(router, "tpm", 0)
    with pytest.raises(openai.PermissionDeniedError, match="Insufficient permissions to access the model") as raised:
        client.chat.completions.create(**HELLO)
    assert kind(raised.value) == "permission_error"


def test_a_body_that_does_not_validate_names_the_field(client, router):
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        client.chat.completions.create(model="model", messages="no list")
    assert raised.value.param == "messages"
    assert "list" in raised.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_is_away_is_an_internal_server_error(client, router, stream):
    provider = router.providers.get()
    provider.url = "http://127.0.0.1:9/"  # nobody listens there
    provider.save()
    with pytest.raises(openai.InternalServerError, match="Model is temporarily unavailable") as raised:
        client.chat.completions.create(**HELLO, stream=stream)
    assert raised.value.status_code == 503
    assert int(raised.value.response.headers["retry-after"]) > 0
