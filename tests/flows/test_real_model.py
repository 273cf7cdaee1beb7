"""Real models behind the gateway, on this machine: SmolLM2, multilingual-e5 and Whisper."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from opengate.localmodels import CHAT_MODEL, EMBEDDINGS_MODEL
from routing.models import Provider, Router
from tests.conftest import CHAT
from tests.server import ROOT, free_port
from usage.models import Limit

ASK = {"model": "smollm2", "max_tokens": 8, "temperature": 0}


def serving(*command: str) -> Iterator[str]:
    """The address of a model's server, a process of its own, once it answers."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *command, str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    yield from serving("opengate.localmodels", "chat", "--port")


@pytest.fixture(scope="module")
def embeddings_url() -> Iterator[str]:
    yield from serving("opengate.localmodels", "embeddings", "--port")


@pytest.fixture(scope="module")
def speech_url() -> Iterator[str]:
    yield from serving("tests.speech")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}v1/models", timeout=5).status_code == 200
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


def test_embeddings_put_a_french_answer_above_an_unrelated_sentence(as_ada, embeddings_url, role, records):
    router = Router.objects.create(name="e5", type="text-embeddings-inference")
    Provider.objects.create(
        router=router, type="openai", url=embeddings_url, model_name=EMBEDDINGS_MODEL, vector_size=384, timeout=60
    )
    Limit.objects.open_router(role, router)
    texts = [
        "Quelle est la capitale de la France ?",
        "Paris est la capitale et la plus grande ville de France.",
        "La recette des crêpes demande de la farine, du lait et des œufs.",
    ]
    response = as_ada.post("/v1/embeddings", json={"model": "e5", "input": texts})
    assert response.status_code == 200, response.text
    question, answer, unrelated = (row["embedding"] for row in response.json()["data"])
    assert (len(question), len(answer)) == (384, 384)
    print(f"\nlikeness of answer {cosine(question, answer):.3f}, of the other {cosine(question, unrelated):.3f}")
    assert cosine(question, answer) > cosine(question, unrelated) + 0.03
    (record,) = records()
    assert record.prompt_tokens == response.json()["usage"]["prompt_tokens"] > 0


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def test_a_spoken_sentence_is_written_down(as_ada, speech_url, role, records):
    """The sentence is synthetic speech; the model is the smallest Whisper, and knows English only."""
    router = Router.objects.create(name="whisper", type="automatic-speech-recognition")
    Provider.objects.create(router=router, type="openai", url=speech_url, model_name="whisper-tiny.en", timeout=60)
    Limit.objects.open_router(role, router)
    with open(ROOT / "tests" / "data" / "speech.wav", "rb") as file:
        response = as_ada.post(
            "/v1/audio/transcriptions",
            data={"model": "whisper", "language": "english", "response_format": "text"},
            files={"file": ("speech.wav", file, "audio/wav")},
        )
    assert response.status_code == 200, response.text
    assert response.text == "The minister opened the new library on Monday morning."
    (record,) = records()
    assert (record.endpoint, record.status) == ("/v1/audio/transcriptions", 200)
