"""A chat that looks into documents first."""

import json
import re
from typing import Any

import pytest

from tests.upstream import Reply

COMPLETIONS = "/v1/chat/completions"
NOON = "The canteen opens at noon."
QUESTION = "When does the canteen open?"


@pytest.fixture
def document(add):
    return add(f"Leave is asked for in writing.\n\n{NOON}", chunk_size="40", metadata='{"year": 2026}')


def ask(client: Any, question: Any = QUESTION, **fields: Any) -> Any:
    body = {"model": "model", "messages": [{"role": "user", "content": question}]}
    return client.post(COMPLETIONS, json=body | fields)


def sent(upstream: Any) -> dict[str, Any]:
    """What the chat model was asked last."""
    return next(request.json for request in reversed(upstream.received) if request.path == COMPLETIONS)


TOOL = {"tools": [{"type": "search", "limit": 1}]}


def test_the_model_answers_from_what_was_found(as_ada, router, document, upstream):
    answer = ask(as_ada, **TOOL).json()
    (result,) = answer["search_results"]
    assert (result["chunk"]["content"], result["chunk"]["document_id"]) == (NOON, document.pk)
    assert (result["method"], result["chunk"]["metadata"]) == ("semantic", {"year": 2026})
    prompt = sent(upstream)["messages"][-1]["content"]
    assert f"[1] {NOON}" in prompt
    assert QUESTION in prompt
    assert "tools" not in sent(upstream)


def test_a_stream_brings_the_results_in_its_last_chunk(as_ada, router, document):
    lines = ask(as_ada, stream=True, **TOOL).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[-1]["search_results"][0]["chunk"]["content"] == NOON
    assert chunks[-1]["usage"]["requests"] == 2
    assert not any("search_results" in chunk for chunk in chunks[:-1])


def test_the_older_form_does_the_same(as_ada, router, document, upstream, collection):
    answer = ask(as_ada, search=True, search_args={"collections": [collection.pk], "limit": 1}).json()
    assert answer["search_results"][0]["chunk"]["content"] == NOON
    assert {"search", "search_args"}.isdisjoint(sent(upstream))


def test_both_calls_are_counted(as_ada, router, document, records):
    before = len(records(1))
    usage = ask(as_ada, **TOOL).json()["usage"]
    rows = records(before + 2)[before:]
    assert {(row.endpoint, row.router_name) for row in rows} == {
        *(("/v1/search", "embeddings"), ("/v1/chat/completions", "model")),
    }
    assert usage["prompt_tokens"] == sum(row.prompt_tokens for row in rows)
    assert usage["requests"] == 2


def test_a_search_that_finds_nothing_is_counted_too(as_ada, router, document):
    answer = ask(as_ada, "Zebras?", tools=[{"type": "search", "score_threshold": 1}]).json()
    assert "search_results" not in answer
    assert answer["usage"]["requests"] == 2


def test_each_document_goes_on_to_a_mark_that_it_cannot_know(as_ada, router, document, upstream):
    marks = set()
    for _ in range(2):
        ask(as_ada, tools=[{"type": "search", "limit": 2}])
        prompt = sent(upstream)["messages"][-1]["content"]
        (first, mark), (second, same) = re.findall(r"^\(end of \[(\d)\], (\w{8})\)$", prompt, re.MULTILINE)
        assert (first, second, mark) == ("1", "2", same)
        assert f"its mark {mark}." in prompt
        marks.add(mark)
    assert len(marks) == 2


def test_without_another_tool_nothing_says_how_to_use_them(as_ada, router, document, upstream):
    ask(as_ada, tool_choice="auto", parallel_tool_calls=True, **TOOL)
    assert {"tools", "tool_choice", "parallel_tool_calls"}.isdisjoint(sent(upstream))


def test_a_question_longer_than_any_search_takes_is_answered(as_ada, router, document, upstream):
    assert ask(as_ada, "canteen " * 20_000, **TOOL).status_code == 200


def test_other_tools_stay(as_ada, router, document, upstream):
    other = {"type": "function", "function": {"name": "f", "parameters": {}}}
    ask(as_ada, tools=[other, {"type": "search"}, {"type": "search", "limit": 2}], tool_choice="auto")
    assert (sent(upstream)["tools"], sent(upstream)["tool_choice"]) == ([other], "auto")


@pytest.mark.parametrize("content", ["", "  ", None, [], [{"type": "image_url", "image_url": {"url": "data:x"}}]])
def test_a_message_that_asks_nothing_goes_as_it_is(as_ada, router, document, upstream, content):
    answer = ask(as_ada, content, **TOOL)
    assert answer.status_code == 200
    assert "search_results" not in answer.json()
    assert sent(upstream)["messages"] == [{"role": "user", "content": content}]


def test_nothing_found_changes_nothing(as_ada, router, document, upstream):
    answer = ask(as_ada, tools=[{"type": "search", "method": "lexical"}], stream=False, n=1).json()
    assert "search_results" in answer
    answer = ask(as_ada, "Zebras?", tools=[{"type": "search", "method": "lexical"}]).json()
    assert "search_results" not in answer
    assert sent(upstream)["messages"][-1]["content"] == "Zebras?"


def test_pictures_beside_the_question_stay(as_ada, router, document, upstream):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ask(as_ada, [{"type": "text", "text": QUESTION}, picture], **TOOL)
    text, kept = sent(upstream)["messages"][-1]["content"]
    assert NOON in text["text"]
    assert kept == picture


@pytest.mark.parametrize(
    ("tool", "status", "detail"),
    [
        ({"collection_ids": [10**9]}, 404, "Collection 1000000000 not found."),
        (
            {"method": "lexical", "score_threshold": 0.5},
            *(400, "Score threshold is only available for semantic search method"),
        ),
    ],
)
def test_the_search_refuses_as_ever(as_ada, router, document, upstream, tool, status, detail):
    for stream in (False, True):
        response = ask(as_ada, tools=[{"type": "search"} | tool], stream=stream)
        assert (response.status_code, response.json()["detail"]) == (status, detail)
    assert not any(request.path == COMPLETIONS for request in upstream.received)


def test_a_bad_tool_is_a_422_that_says_where(as_ada, router, document):
    response = ask(as_ada, tools=[{"type": "function"}, {"type": "search", "limit": 0}])
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "tools", 1, "limit"])
    response = ask(as_ada, search=True, search_args={"method": "magic"})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "search_args", "method"])


def test_a_refused_chat_shows_no_results(as_ada, router, document, upstream):
    upstream.route(COMPLETIONS, lambda request: Reply([b'{"error": {"message": "Too long."}}'], status=400))
    response = ask(as_ada, **TOOL)
    assert response.status_code == 400
    assert NOON not in response.text
