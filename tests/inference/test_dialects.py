"""Every dialect at every endpoint it serves: what the upstream gets, and what the caller gets, to the last field."""

import base64
import struct
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any

import pytest

from routing.models import SERVED_BY, ModelType, Provider, Router
from tests.upstream import chunk, completion, event, finish, usage_chunk
from usage.models import Limit

SAYS = [{"role": "user", "content": "Say hello."}]
SPEECH = b"RIFF\x00\x01speech"
NO_CARBON = {"kWh": {"min": 0.0, "max": 0.0}, "kgCO2eq": {"min": 0.0, "max": 0.0}}


def usage(prompt: int, completion: int = 0, **others: Any) -> dict[str, Any]:
    counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    rest = {"cost": 0.0, "carbon": NO_CARBON, "impacts": {"kWh": 0.0, "kgCO2eq": 0.0}, "requests": 1}
    return others | counted | rest


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def form_of(received) -> dict[str, Any]:
    """The fields of a form as it came; the file as (name, type, content), repeated fields as lists."""
    head = f"Content-Type: {received.headers['content-type']}\r\n\r\n".encode()
    found: dict[str, Any] = {}
    parts: Any = message_from_bytes(head + received.body).get_payload()
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        filename = part.get_filename()
        value = content.decode() if filename is None else (filename, part.get_content_type(), content)
        found[name] = [*found[name], value] if name in found else [value]
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


@pytest.fixture
def serve(role, upstream):
    """`model`, served by the scripted upstream in a dialect: `serve("tei", "text-classification")`."""

    def _serve(dialect: str, type: str) -> Router:
        router = Router.objects.create(name="model", type=type)
        Provider.objects.create(
            router=router, type=dialect, url=upstream.url, key="upstream-secret", model_name="upstream-name", timeout=5
        )
        Limit.objects.open_router(role, router)
        return router

    return _serve


@dataclass
class Case:
    """What a caller sends, what the upstream is to get and answers, and what the caller is to get."""

    id: str
    dialects: tuple[str, ...]
    type: str
    path: str
    upstream_path: str
    answers: Any
    gets: Any
    json: dict[str, Any] | None = None
    form: dict[str, Any] | None = None
    upstream_json: dict[str, Any] | None = None
    upstream_form: dict[str, Any] | None = None
    answers_type: str = "application/json"
    counted: tuple[int, int, bool] = field(default=(0, 0, False))


FILE = ("speech.wav", "audio/wav", SPEECH)
EMBEDDED = {
    "object": "list",
    "data": [
        {"object": "embedding", "index": 1, "embedding": [0.25, -1]},
        {"object": "embedding", "index": 0, "embedding": [0.5, 2]},
    ],
    "model": "upstream-name",
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}
VECTORS = [
    {"object": "embedding", "index": 0, "embedding": [0.5, 2]},
    {"object": "embedding", "index": 1, "embedding": [0.25, -1]},
]
RANKED = {
    "id": "rerank-1",
    "model": "upstream-name",
    "usage": {"total_tokens": 9},
    "results": [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 0, "relevance_score": -0.1, "document": {"text": "a"}},
    ],
}
QUERY = {"model": "model", "query": "q", "documents": ["aaaa", "bbbb", "cccc"]}
SCORES = [{"index": 0, "score": 0.1}, {"index": 2, "score": 0.2}, {"index": 1, "score": 0.9}]
PAGE = {"index": 0, "markdown": "# Hi", "images": [], "dimensions": {"dpi": 200, "height": 2200, "width": 1700}}
READ = {"pages": [PAGE], "model": "upstream-name", "usage_info": {"pages_processed": 1, "doc_size_bytes": 3}}
DOCUMENT = {"type": "document_url", "document_url": "https://example.org/a.pdf"}
HEARD = completion(" Bonjour. ")

CASES = [
    Case(
        "chat",
        ("albert", "openai", "vllm"),
        "text-generation",
        "/v1/chat/completions",
        "/v1/chat/completions",
        completion(),
        completion(model="model", usage=usage(9, 12)),
        json={"model": "model", "messages": SAYS, "seed": 1, "tools": [], "search": False, "chat_template_kwargs": {}},
        upstream_json={"model": "upstream-name", "messages": SAYS, "seed": 1, "chat_template_kwargs": {}},
        counted=(9, 12, False),
    ),
    Case(
        "chat with what it knows",
        ("mistral",),
        "image-text-to-text",
        "/v1/chat/completions",
        "/v1/chat/completions",
        completion(),
        completion(model="model", usage=usage(9, 12)),
        json={"model": "model", "messages": SAYS, "seed": 1, "user": "u", "logit_bias": {}, "max_completion_tokens": 5},
        upstream_json={"model": "upstream-name", "messages": SAYS, "random_seed": 1, "max_tokens": 5},
        counted=(9, 12, False),
    ),
    Case(
        "embeddings of texts",
        ("albert", "openai", "mistral", "tei", "vllm"),
        "text-embeddings-inference",
        "/v1/embeddings",
        "/v1/embeddings",
        EMBEDDED,
        EMBEDDED | {"data": VECTORS, "model": "model", "usage": usage(7)},
        json={"model": "model", "input": ["a", "b"], "dimensions": 2, "encoding_format": "float", "user": "u"},
        upstream_json={
            "model": "upstream-name",
            "input": ["a", "b"],
            "dimensions": 2,
            "encoding_format": "float",
            "user": "u",
        },
        counted=(7, 0, False),
    ),
    Case(
        "embeddings of lists of tokens, as base64",
        ("albert", "openai", "mistral", "tei", "vllm"),
        "text-embeddings-inference",
        "/v1/embeddings",
        "/v1/embeddings",
        {"data": [{"embedding": [0.5, 2]}, {"embedding": [0.25, -1]}]},
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": packed(0.5, 2)},
                {
                    "object": "embedding",
                    "index": 1,
                    "embedding": packed(0.25, -1),
                },
            ],
            "model": "model",
            "usage": usage(3),
        },
        json={"model": "model", "input": [[1, 2], [3]], "encoding_format": "base64"},
        upstream_json={"model": "upstream-name", "input": [[1, 2], [3]]},
        counted=(3, 0, True),
    ),
    Case(
        "rerank",
        ("albert",),
        "text-classification",
        "/v1/rerank",
        "/v1/rerank",
        RANKED,
        {"object": "list"} | RANKED | {"model": "model", "usage": usage(9)},
        json=QUERY | {"top_n": 2},
        upstream_json=QUERY | {"model": "upstream-name", "top_n": 2},
        counted=(9, 0, False),
    ),
    Case(
        "rerank",
        ("vllm",),
        "text-classification",
        "/v1/rerank",
        "/v2/rerank",
        RANKED,
        {"object": "list"} | RANKED | {"model": "model", "usage": usage(9)},
        json=QUERY | {"top_n": None},
        upstream_json=QUERY | {"model": "upstream-name"},
        counted=(9, 0, False),
    ),
    Case(
        "rerank of the best two",
        ("tei",),
        "text-classification",
        "/v1/rerank",
        "/rerank",
        SCORES,
        {
            "object": "list",
            "results": [{"index": 1, "relevance_score": 0.9}, {"index": 2, "relevance_score": 0.2}],
            "model": "model",
            "usage": usage(4),
        },
        json=QUERY | {"top_n": 2},
        upstream_json={
            "query": "q",
            "texts": ["aaaa", "bbbb", "cccc"],
            "raw_scores": False,
            "return_text": False,
            "truncate": False,
            "truncation_direction": "right",
        },
        counted=(4, 0, True),
    ),
    Case(
        "speech as JSON",
        ("openai",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        {"text": "Hello.", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}},
        {
            "text": "Hello.",
            "model": "model",
            "usage": usage(14, 3, type="tokens", input_tokens=14, output_tokens=3),
        },
        form={
            "model": "model",
            "language": "",
            "prompt": "Names.",
            "include[]": ["a", "b"],
            "temperature": "0.5",
        },
        upstream_form={
            "model": "upstream-name",
            "prompt": "Names.",
            "include[]": ["a", "b"],
            "temperature": "0.5",
            "file": FILE,
        },
        counted=(14, 3, False),
    ),
    Case(
        "speech with times",
        ("albert", "openai"),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        {"text": "Salut.", "language": "fr", "segments": [{"id": 0, "start": 0, "end": 1, "text": "Salut."}]},
        {
            "text": "Salut.",
            "language": "fr",
            "segments": [{"id": 0, "start": 0, "end": 1, "text": "Salut."}],
            "model": "model",
            "usage": usage(0),
        },
        form={"model": "model", "language": "french", "response_format": "verbose_json"},
        upstream_form={"model": "upstream-name", "language": "fr", "response_format": "verbose_json", "file": FILE},
    ),
    Case(
        "speech as JSON",
        ("albert",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        {"text": "Salut.", "id": "albert-1"},
        {"text": "Salut.", "id": "albert-1", "model": "model", "usage": usage(0)},
        form={"model": "model"},
        upstream_form={"model": "upstream-name", "response_format": "json", "file": FILE},
    ),
    Case(
        "speech as text",
        ("albert",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        {"text": "Salut."},
        "Salut.",
        form={"model": "model", "response_format": "text"},
        upstream_form={"model": "upstream-name", "response_format": "json", "file": FILE},
    ),
    Case(
        "speech as text",
        ("openai",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        b"Hello, caf\xc3\xa9.\n",
        "Hello, café.\n",
        form={"model": "model", "response_format": "text", "temperature": "0"},
        upstream_form={"model": "upstream-name", "response_format": "text", "temperature": "0", "file": FILE},
        answers_type="text/plain; charset=utf-8",
    ),
    Case(
        "speech as subtitles",
        ("vllm",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        b"WEBVTT\n\n00:00.000 --> 00:01.000\nHello.\n",
        "WEBVTT\n\n00:00.000 --> 00:01.000\nHello.\n",
        form={"model": "model", "response_format": "vtt"},
        upstream_form={"model": "upstream-name", "language": "en", "response_format": "vtt", "file": FILE},
        answers_type="text/vtt",
    ),
    Case(
        "speech in a language",
        ("vllm",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/audio/transcriptions",
        {"text": "Hallo.", "usage": {"type": "duration", "seconds": 3}},
        {"text": "Hallo.", "model": "model", "usage": usage(0, type="duration", seconds=3)},
        form={"model": "model", "language": "de"},
        upstream_form={"model": "upstream-name", "language": "de", "file": FILE},
    ),
    Case(
        "speech through a chat",
        ("mistral",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        HEARD,
        {"id": "chatcmpl-1", "text": "Bonjour.", "model": "model", "usage": usage(9, 12)},
        form={"model": "model", "language": "fr", "temperature": "0.5"},
        upstream_json={
            "model": "upstream-name",
            "temperature": 0.5,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": base64.b64encode(SPEECH).decode()},
                        {"type": "text", "text": "Write down what is said in the language fr, and nothing else."},
                    ],
                }
            ],
        },
        counted=(9, 12, False),
    ),
    Case(
        "speech through a chat as text, with a prompt",
        ("mistral",),
        "automatic-speech-recognition",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        HEARD,
        "Bonjour.",
        form={"model": "model", "prompt": "Names.", "response_format": "text"},
        upstream_json={
            "model": "upstream-name",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": base64.b64encode(SPEECH).decode()},
                        {"type": "text", "text": "Names."},
                    ],
                }
            ],
        },
        counted=(9, 12, False),
    ),
    Case(
        "a document",
        ("mistral",),
        "image-to-text",
        "/v1/ocr",
        "/v1/ocr",
        READ,
        READ | {"model": "model", "usage": usage(0)},
        json={
            "model": "model",
            "document": DOCUMENT,
            "pages": [0],
            "include_image_base64": True,
            "other": "x",
        },
        upstream_json={
            "model": "upstream-name",
            "document": DOCUMENT,
            "pages": [0],
            "include_image_base64": True,
            "other": "x",
        },
    ),
    Case(
        "an image",
        ("mistral",),
        "image-to-text",
        "/v1/ocr",
        "/v1/ocr",
        READ,
        READ | {"model": "model", "usage": usage(0)},
        json={"model": "model", "document": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}},
        upstream_json={
            "model": "upstream-name",
            "document": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        },
    ),
]
SINGLE = [pytest.param(case, dialect, id=f"{dialect}: {case.id}") for case in CASES for dialect in case.dialects]


@pytest.mark.parametrize(("case", "dialect"), SINGLE)
def test_a_dialect_says_exactly_this(as_ada, serve, upstream, records, case, dialect):
    serve(dialect, case.type)
    upstream.reply(case.answers, content_type=case.answers_type)
    how = {"json": case.json} if case.json else {"data": case.form, "files": {"file": (FILE[0], SPEECH, FILE[1])}}
    response = as_ada.post(case.path, **how)
    assert response.status_code == 200, response.text

    (received,) = upstream.received
    assert (received.method, received.path) == ("POST", case.upstream_path)
    assert received.headers["authorization"] == "Bearer upstream-secret"
    assert "user-agent" not in received.headers
    if case.upstream_json is not None:
        assert received.headers["content-type"] == "application/json"
        assert received.json == case.upstream_json
    else:
        assert form_of(received) == case.upstream_form
        assert int(received.headers["content-length"]) == len(received.body)

    if isinstance(case.gets, str):
        assert response.text == case.gets
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    else:
        assert response.json() == {"id": f"request-{response.headers['x-request-id']}"} | case.gets

    (record,) = records()
    assert (record.endpoint, record.method, record.status, record.outcome) == (case.path, "POST", 200, "finished")
    assert (record.prompt_tokens, record.completion_tokens, record.tokens_estimated) == case.counted
    assert (record.router_name, record.provider_model_name) == ("model", "upstream-name")


def test_every_type_of_provider_is_tried_at_every_type_of_model_it_serves():
    tried = {(case.type, dialect) for case in CASES for dialect in case.dialects}
    chats = {ModelType.TEXT_GENERATION, ModelType.IMAGE_TEXT_TO_TEXT}
    for type, dialects in SERVED_BY.items():
        for dialect in dialects:
            alike = chats if type in chats else {type}
            assert any((other, dialect) in tried for other in alike), (type, dialect)


@pytest.mark.parametrize("dialect", ["albert", "openai", "mistral", "vllm"])
def test_a_streamed_chat_in_each_dialect(as_ada, serve, upstream, dialect):
    serve(dialect, "text-generation")
    upstream.reply(chunks=[event(chunk("Hi")), event(finish()), event(usage_chunk()), event("[DONE]")])
    body = {"model": "model", "messages": SAYS, "stream": True, "seed": 3}
    response = as_ada.post("/v1/chat/completions", json=body)
    assert response.text.endswith("data: [DONE]\n\n")
    expected = {"model": "upstream-name", "messages": SAYS, "stream": True}
    own = {"random_seed": 3} if dialect == "mistral" else {"seed": 3, "stream_options": {"include_usage": True}}
    assert upstream.received[0].json == expected | own


def test_speech_may_come_back_in_parts(as_ada, serve, upstream):
    serve("mistral", "automatic-speech-recognition")
    reference = {"type": "reference", "reference_ids": [1]}
    parts = [{"type": "text", "text": "Bon"}, reference, {"type": "text", "text": "jour."}]
    upstream.reply({"choices": [{"message": {"content": parts}}]})
    response = as_ada.post("/v1/audio/transcriptions", data={"model": "model"}, files={"file": SPEECH})
    assert response.json()["text"] == "Bonjour."


@pytest.mark.parametrize("response_format", ["verbose_json", "srt", "vtt"])
def test_a_dialect_without_times_says_so(as_ada, serve, upstream, response_format):
    serve("mistral", "automatic-speech-recognition")
    form = {"model": "model", "response_format": response_format}
    response = as_ada.post("/v1/audio/transcriptions", data=form, files={"file": SPEECH})
    assert response.status_code == 422
    assert response.json()["detail"] == f"Response format {response_format} is not available for this model."
    assert upstream.received == []
