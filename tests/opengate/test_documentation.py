"""The documentation says what is: links lead somewhere, commands and variables exist, the API guide's snippets run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands

from opengate.environment import Environment
from opengate.management.commands import variables
from routing.models import Provider, Router
from tests.flows.worker import Worker
from tests.inference.documents import text_pdf
from tests.knowledge.conftest import EMBEDDINGS, embedding
from tests.server import ROOT, Server
from tests.upstream import EVENTS, Received, Reply, completion, story
from usage.models import Limit

APPS = {"accounts", "inference", "knowledge", "opengate", "routing", "usage"}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def blocks(page: Path, language: str) -> str:
    """All code of a language on a page, in its order."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as GitHub names headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield f"{page.relative_to(ROOT)}: {link}"


def test_every_link_between_pages_leads_somewhere():
    assert [link for page in PAGES for link in dead_links(page)] == []


def test_every_page_is_on_the_map():
    linked = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "docs/README.md").read_text()))
    assert {path.name for path in ROOT.glob("docs/*.md")} - linked == {"README.md"}


def test_the_page_of_variables_is_in_step_with_the_code():
    assert sorted(" ".join(group.fields for group in variables.GROUPS).split()) == sorted(Environment.model_fields)
    assert (ROOT / "docs/configuration.md").read_text() == variables.page(), "Run `make reference`."


def test_every_command_is_listed_once():
    listed = re.findall(r"^\| `manage\.py (\w+)", (ROOT / "docs/commands.md").read_text(), re.M)
    ours = [name for name, app in get_commands().items() if app in APPS]
    assert [name for name in ours if listed.count(name) != 1] == []


def model(role, upstream, name: str, type: str, dialect: str = "openai") -> None:
    router = Router.objects.create(name=name, type=type)
    Provider.objects.create(router=router, type=dialect, url=upstream.url, model_name=name, timeout=5)
    Limit.objects.open_router(role, router)


def chat(request: Received) -> Reply:
    """The model calls the tool that it is given, and says hello when it has the result."""
    asked = request.json
    if asked.get("stream"):
        return Reply(story(), content_type=EVENTS)
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    wanted = asked.get("tools") and asked["messages"][-1]["role"] == "user"
    body = completion("3" if asked.get("tools") else "Hello there.")
    if wanted:
        body["choices"] = [{"index": 0, "finish_reason": "tool_calls", "message": message}]
    return Reply([json.dumps(body).encode()])


@pytest.fixture
def models(role, upstream) -> None:
    """Those that the guide names."""
    model(role, upstream, "smollm2", "text-generation")
    model(role, upstream, "multilingual-e5-small", "text-embeddings-inference")
    model(role, upstream, "reranker", "text-classification", "vllm")
    model(role, upstream, "whisper", "automatic-speech-recognition")
    model(role, upstream, "ocr", "image-to-text", "mistral")
    Limit.objects.filter(router__name="smollm2", type="rpm").update(value=100)
    upstream.route("/v1/chat/completions", chat)
    upstream.route(EMBEDDINGS, embedding)
    upstream.route("/v2/rerank", {"results": [{"index": 0, "relevance_score": 0.9}]})
    upstream.route("/v1/audio/transcriptions", {"text": "What do herons eat?"})
    upstream.route("/v1/ocr", {"pages": [{"index": 0, "markdown": "# Report", "images": []}]})


@pytest.fixture
def follow(gateway: Server, ada, key_of, models, tmp_path):
    """Run the guide's code of a language, as it stands there: `follow("sh", "bash", "-euo", "pipefail", "-c")`."""
    (tmp_path / "guide.md").write_text("# Herons\n\nHerons eat fish, and nest by the old mill.")
    (tmp_path / "report.pdf").write_bytes(text_pdf("The herons have come back to the old mill in spring."))
    (tmp_path / "question.wav").write_bytes((ROOT / "tests/data/speech.wav").read_bytes())
    address = {"OPENGATE_URL": gateway.url, "OPENGATE_API_KEY": key_of(ada)}

    def _follow(language: str, *interpreter: str) -> str:
        command = [*interpreter, blocks(ROOT / "docs/api-guide.md", language)]
        how = {"env": os.environ | address, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(command, cwd=tmp_path, check=False, **how)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    return _follow


def test_the_python_of_the_api_guide_runs(follow):
    *said, refused, requests, tokens, hello = follow("python", sys.executable, "-W", "error", "-c").splitlines()
    assert said == [
        *("Hello there.", "21 0.0 0.0", "Hello there, friend. (12 tokens)", "3"),
        *("2 vectors of 64", "What do herons eat?"),
    ]
    assert refused.startswith("404 Model not found. - request ")
    assert requests.startswith("100 95 ")
    assert (tokens, hello) == ("None None None", "Hello there.")


def test_the_shell_of_the_api_guide_runs(follow, tmp_path):
    worker = Worker(tmp_path).start()
    try:
        said = follow("sh", "bash", "-euo", "pipefail", "-c")
    finally:
        worker.stop()
    for found in ("# Report", "have come back", "\nready\n", "Herons eat fish", "search_results"):
        assert found in said, said
