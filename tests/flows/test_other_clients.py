"""Official clients at the other calls: what their users write works as it stands."""

import base64
import io
import math
from typing import Any

import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from routing.models import Provider, Router
from tests.inference.documents import text_pdf
from usage.models import Limit

VECTOR = [0.5, -0.25, 0.125]


@pytest.fixture
def model(role, upstream):
    """`model("text-embeddings-inference", "vllm")`."""

    def _model(type: str, dialect: str) -> Router:
        router = Router.objects.create(name="model", type=type)
        Provider.objects.create(router=router, type=dialect, url=upstream.url, model_name="m", timeout=5)
        Limit.objects.open_router(role, router)
        return router

    return _model


@pytest.fixture
def client(gateway, ada, key_of):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key_of(ada), max_retries=0) as client:
        yield client


def embedded(request) -> dict[str, Any]:
    """One vector for each input, its first number the input's place."""
    given = request.json["input"]
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    rows = [{"object": "embedding", "index": n, "embedding": [float(n), *VECTOR]} for n in range(count)]
    return {"object": "list", "data": rows, "usage": {"prompt_tokens": 5, "total_tokens": 5}}


def test_openai_embeddings_as_it_asks_for_them_by_default(client, model, upstream):
    model("text-embeddings-inference", "openai")
    upstream.route("/v1/embeddings", embedded)
    answer = client.embeddings.create(model="model", input=["a", "b"])
    assert [row.embedding for row in answer.data] == [[0.0, *VECTOR], [1.0, *VECTOR]]
    assert (answer.model, answer.usage.prompt_tokens) == ("model", 5)
    assert "encoding_format" not in upstream.received[0].json  # the client asked for base64
    one = client.embeddings.create(model="model", input="a", encoding_format="float")
    assert one.data[0].embedding == [0, *VECTOR]


def test_openai_transcriptions_in_every_format(client, model, upstream):
    model("automatic-speech-recognition", "openai")
    file = ("speech.wav", io.BytesIO(b"RIFFspeech"))
    upstream.reply({"text": "Hello."})
    assert client.audio.transcriptions.create(model="model", file=file).text == "Hello."
    upstream.reply(b"Hello.", content_type="text/plain")
    file = ("speech.wav", io.BytesIO(b"RIFFspeech"))
    assert client.audio.transcriptions.create(model="model", file=file, response_format="text") == "Hello."
    segment = {
        "id": 0,
        "start": 0.0,
        "end": 1.5,
        "text": "Hello.",
        "seek": 0,
        "tokens": [1],
        "temperature": 0.0,
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }
    upstream.reply({"text": "Hello.", "language": "en", "duration": 1.5, "segments": [segment]})
    file = ("speech.wav", io.BytesIO(b"RIFFspeech"))
    verbose = client.audio.transcriptions.create(
        model="model", file=file, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert (verbose.text, verbose.segments[0].end) == ("Hello.", 1.5)
    assert b'name="timestamp_granularities[]"' in upstream.received[2].body


def test_openai_raises_what_its_users_expect(client, model):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no/such", input="a")
    model("text-embeddings-inference", "openai")
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        client.embeddings.create(model="model", input="")
    assert raised.value.param == "input"
    with pytest.raises(openai.UnprocessableEntityError, match=r"Wrong model type\."):
        client.audio.transcriptions.create(model="model", file=("a.wav", b"RIFF"))


@pytest.fixture
def vocabulary():
    """In place of the vocabulary that tiktoken would download: a token for each byte."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encodings = tiktoken.registry.ENCODINGS
    former = encodings.get("cl100k_base")
    encodings["cl100k_base"] = tiktoken.Encoding(
        "cl100k_base", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={}
    )
    yield
    encodings.pop("cl100k_base")
    if former is not None:
        encodings["cl100k_base"] = former


def test_langchain_embeddings_as_they_are_send_lists_of_tokens(gateway, ada, key_of, model, upstream, vocabulary):
    router = model("text-embeddings-inference", "vllm")
    router.names.create(value="text-embedding-ada-002")  # its default
    upstream.route("/v1/embeddings", embedded)
    where: dict[str, Any] = {"base_url": f"{gateway.url}/v1", "api_key": key_of(ada)}
    embeddings = OpenAIEmbeddings(**where)
    vectors = embeddings.embed_documents(["Où ?", "Là."])
    assert upstream.received[0].json["input"] == [list("Où ?".encode()), list("Là.".encode())]
    assert [vector[0] for vector in vectors] == [0.0, 1.0]
    assert vectors[1] == [1.0, *VECTOR]
    query = embeddings.embed_query("a")
    assert [number for number in query if not math.isclose(number, 0)]


@pytest.fixture
def mistral(gateway, ada, key_of):
    with Mistral(api_key=key_of(ada), server_url=gateway.url) as client:
        yield client


def test_mistral_ocr_with_a_model(mistral, model, upstream):
    model("image-to-text", "mistral")
    page = {"index": 0, "markdown": "# Hi", "images": [], "dimensions": {"dpi": 200, "height": 2200, "width": 1700}}
    upstream.reply({"pages": [page], "model": "m", "usage_info": {"pages_processed": 1, "doc_size_bytes": 3}})
    document: Any = {"type": "document_url", "document_url": "https://example.org/a.pdf"}
    answer = mistral.ocr.process(model="model", document=document, include_image_base64=True)
    assert (answer.model, answer.pages[0].markdown, answer.usage_info.pages_processed) == ("model", "# Hi", 1)
    assert upstream.received[0].json["document"] == document


def test_mistral_ocr_without_a_model(mistral):
    url = f"data:application/pdf;base64,{base64.b64encode(text_pdf('Bonjour.')).decode()}"
    document: Any = {"type": "document_url", "document_url": url}
    answer = mistral.ocr.process(model=None, document=document)
    assert (answer.model, answer.pages[0].markdown) == ("local", "Bonjour.")


def test_mistral_raises_with_our_sentence(mistral):
    document: Any = {"type": "document_url", "document_url": "https://example.org/a.pdf"}
    with pytest.raises(SDKError, match=r"Model not found\."):
        mistral.ocr.process(model="no/such", document=document)


def test_mistral_chats_and_embeds_too(mistral, router, upstream, role):
    messages: Any = [{"role": "user", "content": "Say hello."}]
    assert mistral.chat.complete(model="model", messages=messages).choices[0].message.content == "Hello there."
    other = Router.objects.create(name="vectors", type="text-embeddings-inference")
    Provider.objects.create(router=other, type="mistral", url=upstream.url, model_name="m", timeout=5)
    Limit.objects.open_router(role, other)
    upstream.route("/v1/embeddings", embedded)
    assert mistral.embeddings.create(model="vectors", inputs=["a"]).data[0].embedding == [0, *VECTOR]
