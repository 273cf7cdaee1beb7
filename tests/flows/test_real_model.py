"""A real model behind the gateway: SmolLM2 on this machine, with its own count of tokens."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from opengate.localmodels import CHAT_MODEL
from routing.models import Provider, Router
from tests.conftest import CHAT
from tests.server import ROOT, free_port
from usage.models import Limit

ASK = {"model": "smollm2", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "opengate.localmodels", "chat", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 60
        while not _answers(url):
            assert process.poll() is None, "The model's server ended."
            assert time.monotonic() < deadline, "The model's server does not answer."
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def smollm2(model_url, role) -> Router:
    router = Router.objects.create(name="smollm2", type="text-generation")
    Provider.objects.create(router=router, type="openai", url=model_url, model_name=CHAT_MODEL, timeout=60)
    Limit.objects.open_router(role, router)
    return router


def test_a_completion_has_words_and_the_models_own_count(as_ada, smollm2, chat, records):
    response = chat(as_ada, **ASK)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["choices"][0]["message"]["content"].strip()
    assert body["model"] == "smollm2"
    assert body["usage"]["prompt_tokens"] > 0
    assert 0 < body["usage"]["completion_tokens"] <= 8
    (record,) = records()
    assert (record.router_name, record.provider_model_name) == ("smollm2", CHAT_MODEL)
    assert record.prompt_tokens == body["usage"]["prompt_tokens"]
    assert record.completion_tokens == body["usage"]["completion_tokens"]
    assert not record.tokens_estimated


def test_a_stream_comes_word_by_word_with_the_models_own_count(as_ada, smollm2, records):
    with as_ada.stream("POST", "/v1/chat/completions", json=CHAT | ASK | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    words = [choice["delta"].get("content") for event in events for choice in event["choices"]]
    assert len([word for word in words if word]) > 1
    told = [event["usage"] for event in events if event.get("usage")]
    assert len(told) == 1
    (record,) = records()
    assert 0 < record.completion_tokens == told[0]["completion_tokens"] <= 8
    assert record.prompt_tokens == told[0]["prompt_tokens"] > 0
    assert not record.tokens_estimated
