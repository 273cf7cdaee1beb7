"""How one's own programs call the gateway: in each language what works as it stands, but for the key."""

import json
import shlex
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse

from opengate.playground.catalogue import open_models
from opengate.playground.pages import Page, signed_in
from routing.models import CHAT_TYPES, ModelType, Router

VARIABLE = "OPENGATE_API_KEY"
QUESTION = "What is a gateway?"


@dataclass(frozen=True, slots=True)
class Snippet:
    """`id` is unique on the page, `code` as it is copied."""

    id: str
    title: str
    code: str


def of(router: Router, url: str) -> list[Snippet]:
    """For a model; `url` is that of the API."""
    if router.type in CHAT_TYPES:
        curl, openai, langchain = _curl_chat, _openai_chat, _langchain_chat
    else:
        curl, openai, langchain = _curl_embeddings, _openai_embeddings, _langchain_embeddings
    return [
        Snippet("curl", "curl", curl(router.name, url)),
        Snippet("openai", "Python, openai", openai(router.name, url)),
        Snippet("langchain", "Python, LangChain", langchain(router.name, url)),
    ]


def _curl(url: str, body: dict[str, object]) -> str:
    return (
        f"export {VARIABLE}=…\n\n"
        f"curl {shlex.quote(url)} \\\n"
        f'  -H "Authorization: Bearer ${VARIABLE}" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )


def _curl_chat(model: str, url: str) -> str:
    return _curl(f"{url}/chat/completions", {"model": model, "messages": [{"role": "user", "content": QUESTION}]})


def _curl_embeddings(model: str, url: str) -> str:
    return _curl(f"{url}/embeddings", {"model": model, "input": QUESTION})


def _openai(url: str, rest: str) -> str:
    return (
        "import os\n\n"
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url={url!r}, api_key=os.environ["{VARIABLE}"])\n'
        f"{rest}"
    )


def _openai_chat(model: str, url: str) -> str:
    return _openai(
        url,
        "stream = client.chat.completions.create(\n"
        f"    model={model!r},\n"
        f"    messages=[{{'role': 'user', 'content': {QUESTION!r}}}],\n"
        "    stream=True,\n"
        ")\n"
        "for chunk in stream:\n"
        "    if chunk.choices:\n"
        "        print(chunk.choices[0].delta.content or '', end='', flush=True)\n",
    )


def _openai_embeddings(model: str, url: str) -> str:
    return _openai(
        url,
        f"answer = client.embeddings.create(model={model!r}, input=[{QUESTION!r}])\n"
        "print(len(answer.data[0].embedding))\n",
    )


def _langchain(url: str, kind: str, made: str, options: str, rest: str) -> str:
    return (
        "import os\n\n"
        f"from langchain_openai import {kind}\n\n"
        f"{made} = {kind}(\n"
        f"    base_url={url!r},\n"
        f'    api_key=os.environ["{VARIABLE}"],\n'
        f"{options}"
        ")\n"
        f"{rest}"
    )


def _langchain_chat(model: str, url: str) -> str:
    return _langchain(
        url, "ChatOpenAI", "chat", f"    model={model!r},\n", f"print(chat.invoke({QUESTION!r}).content)\n"
    )


def _langchain_embeddings(model: str, url: str) -> str:
    options = (
        f"    model={model!r},\n    check_embedding_ctx_length=False,  # or it would send tokens of another model\n"
    )
    return _langchain(
        url, "OpenAIEmbeddings", "embeddings", options, f"print(len(embeddings.embed_query({QUESTION!r})))\n"
    )


class Snippets(Page):
    template = "snippets"
    menu = "snippets"

    def get(self, request: HttpRequest) -> HttpResponse:
        models = open_models(signed_in(request), {*CHAT_TYPES, ModelType.TEXT_EMBEDDINGS_INFERENCE})
        wanted = request.GET.get("model")
        usual = next((model for model in models if model.type in CHAT_TYPES), models[0] if models else None)
        chosen = next((model for model in models if model.name == wanted), usual)
        url = request.build_absolute_uri("/v1")
        found = of(chosen, url) if chosen else []
        return self.render(request, models=models, chosen=chosen, snippets=found, url=url, variable=VARIABLE)
