"""The test button of the console: a real call through the gateway, on the administrator's account."""

import re
from html import unescape

import pytest

from inference import trials
from routing import circuit
from routing.models import Provider, Router
from tests.flows.test_changes_in_force import Console, Form
from tests.routing.providers import count_outage
from tests.upstream import chunk, event
from tests.usage.records import fund
from usage.models import Limit


@pytest.fixture
def console(gateway, admin):
    with gateway.client() as client:
        client.headers["Origin"] = gateway.url
        yield Console(client, admin.email)


def page_after(console: Console, kind: str, id: int, **fields: str) -> str:
    """What the page says after a press of the button."""
    token = Form(console.page(f"/admin/routing/{kind}/{id}/change/"), "trial-form").fields
    answer = console.client.post(f"/admin/routing/{kind}/{id}/test/", data=token | fields).raise_for_status()
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_a_model_that_no_role_may_use_answers_its_administrator(console, router, admin, upstream, records):
    assert not Limit.objects.filter(role=admin.role).exists()
    router.cost_completion_tokens = 1_000_000
    router.save()
    page = page_after(console, "router", router.id)
    assert "Hello there, friend." in page
    assert "upstream-name at" in page
    assert "first token after" in page
    assert "9 in, 12 out" in page
    assert "Cost 12 " in page
    record = records()[0]
    assert (record.key_name, record.user_id, record.status) == ("console", admin.id, 200)
    assert record.request_id in page
    assert upstream.received[-1].json["max_tokens"] == trials.ANSWER_TOKENS


def test_what_a_script_asks_for_is_a_part_of_the_page(console, router):
    token = Form(console.page(f"/admin/routing/router/{router.id}/change/"), "trial-form").fields
    part = console.client.post(f"/admin/routing/router/{router.id}/test/", data=token | {"part": "1"}).text
    assert part.startswith("<section")
    assert "<html" not in part


def test_one_provider_is_tested_alone(console, router, upstream):
    other = Provider.objects.create(
        router=router, type="openai", url=f"{upstream.url}second/", model_name="second", timeout=5
    )
    for provider in (other, router.providers.first(), other, router.providers.first()):
        upstream.received.clear()
        assert "Hello there" in page_after(console, "provider", provider.id) or provider == other
        assert {call.path.startswith("/second/") for call in upstream.received} == {provider == other}


def test_a_provider_that_fails_is_told_and_no_other_asked(console, router, upstream, records):
    broken = Provider.objects.create(router=router, type="openai", url="http://127.0.0.1:9/", model_name="broken")
    page = page_after(console, "provider", broken.id)
    assert " 503 " in page
    assert upstream.received == []
    assert records()[0].outcome == "upstream_failed"


def test_an_open_circuit_refuses_a_test_too(console, router, redis_client, upstream):
    provider = router.providers.get()
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)
    assert "Model is temporarily unavailable" in page_after(console, "provider", provider.id)
    assert upstream.received == []


def test_a_budget_that_is_spent_refuses_a_test(console, admin, upstream):
    router = Router.objects.create(name="priced", type="text-generation", cost_prompt_tokens=10)
    Provider.objects.create(router=router, type="openai", url=upstream.url, model_name="upstream-name", timeout=5)
    fund(admin, 0)
    page = page_after(console, "router", router.id)
    assert "Insufficient budget" in page
    assert "refused before it was metered" in page


def test_a_router_without_providers_is_told(console):
    router = Router.objects.create(name="empty", type="text-generation")
    assert "This router has no provider yet." in page_after(console, "router", router.id)


@pytest.mark.parametrize(
    ("type", "provider_type", "path", "answer", "said"),
    [
        (
            "text-embeddings-inference",
            "openai",
            "/v1/embeddings",
            {"data": [{"index": 0, "embedding": [0.5, 0.25]}]},
            "2 numbers: 0.5000, 0.2500",
        ),
        (
            "text-classification",
            "vllm",
            "/v2/rerank",
            {"results": [{"index": 0, "relevance_score": 0.75}, {"index": 1, "relevance_score": 0.5}]},
            "Paris is the capital of France. 0.7500",
        ),
        ("automatic-speech-recognition", "openai", "/v1/audio/transcriptions", {"text": "Nothing."}, "Nothing."),
        ("image-to-text", "mistral", "/v1/ocr", {"pages": [{"index": 0, "markdown": "# OpenGate"}]}, "# OpenGate"),
    ],
)
def test_each_type_of_model_has_its_tiny_call(console, upstream, type, provider_type, path, answer, said):
    upstream.route(path, answer)
    router = Router.objects.create(name="tried", type=type)
    Provider.objects.create(router=router, type=provider_type, url=upstream.url, model_name="m", timeout=5)
    assert said in page_after(console, "router", router.id)


def test_a_model_that_sees_is_shown_a_picture(console, upstream):
    router = Router.objects.create(name="seeing", type="image-text-to-text")
    Provider.objects.create(router=router, type="openai", url=upstream.url, model_name="m", timeout=5)
    assert "Hello there" in page_after(console, "router", router.id)
    picture = upstream.received[-1].json["messages"][0]["content"][1]["image_url"]["url"]
    assert picture.startswith("data:image/png;base64,")


def test_an_answer_is_text_and_never_markup(console, router, upstream):
    upstream.reply(chunks=[event(chunk("<script>alert(1)</script>")), event("[DONE]")])
    token = Form(console.page(f"/admin/routing/router/{router.id}/change/"), "trial-form").fields
    page = console.client.post(f"/admin/routing/router/{router.id}/test/", data=token).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_test_is_posted_with_a_token_by_who_may_change_the_model(console, gateway, router, ada, upstream):
    path = f"/admin/routing/router/{router.id}/test/"
    assert console.client.get(path).status_code == 405
    assert console.client.post(path).status_code == 403
    with gateway.client() as stranger:
        assert "/admin/login/" in stranger.get(path).headers["location"]
    assert upstream.received == []


def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_said(console, router, upstream, inflight):
    upstream.reply(chunks=[], wait=3, then="stall")
    Provider.objects.update(timeout=1)
    router.save()
    assert "Model is too busy" in page_after(console, "router", router.id)
    assert inflight(router) == 0
