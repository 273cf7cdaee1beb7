"""The whole product, started as a newcomer starts it."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from opengate import localmodels
from opengate.embedded import Postgres
from opengate.quickstart import Options, example
from opengate.supervisor import SupervisorError
from tests.browser.chromium import executable
from tests.inference.documents import text_pdf

CHECKOUT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not localmodels.chat_is_available(), reason="requirements-models.txt is not installed"),
]


class Run:
    """One `manage.py quickstart`, its output in a file."""

    def __init__(self, var: Path, port: int, output: Path | None = None) -> None:
        self.var, self.output = var, output or var / "output.txt"
        environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        environment |= {"OPENGATE_VAR": str(var), "OPENGATE_PORT": str(port), "OPENGATE_WEB_WORKERS": "1"}
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "quickstart"],
                cwd=CHECKOUT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 90
        while "Ctrl-C" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.var / "quickstart.json").read_text())
        return facts

    def curl(self) -> list[str]:
        line = next(line for line in self.said.splitlines() if line.startswith("  curl "))
        return shlex.split(line)


def processes_on(var: Path) -> list[str]:
    """Command lines of the processes that were told of this folder."""
    told, found = f"OPENGATE_VAR={var}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            if words and (told in (folder / "environ").read_bytes() or bytes(var) in words):
                found.append(words.replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def var() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="opengate-test-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as somebody else
        yield Path(folder)
        Postgres(Path(folder) / "embedded").remove()


@pytest.fixture
def started(var: Path, port: int) -> Iterator[Run]:
    run = Run(var, port)
    yield run
    run.process.kill()
    run.process.wait()


def ask(curl: list[str]) -> None:
    """Run the printed line, then once more as a stream."""
    answer = json.loads(subprocess.run(curl, capture_output=True, check=True, timeout=60).stdout)
    assert answer["choices"][0]["message"]["content"], answer
    assert answer["usage"]["completion_tokens"] > 0
    streamed = [*curl[:-1], json.dumps({**json.loads(curl[-1]), "stream": True}), "-N"]
    events = subprocess.run(streamed, capture_output=True, check=True, timeout=60).stdout.decode()
    assert events.count("data: ") > 5
    assert events.rstrip().endswith("data: [DONE]")


def tour(facts: dict[str, Any]) -> None:
    """Run the tour of the README as it stands."""
    (script,) = re.findall(r"```bash\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    environment = os.environ | {"KEY": facts["api_key"], "URL": f"{facts['url']}/v1"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    provider, info, answer, usage = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert (info["email"], info["budget"]) == ("ada@example.org", 5)
    assert answer["model"] == "assistant"
    assert 0 < answer["usage"]["cost"] < 0.001
    assert [(row["model"], row["usage"]["cost"]) for row in usage["data"]] == [("helpdesk", answer["usage"]["cost"])]
    assert provider["router_id"] == info["limits"][0]["router"]


def use(facts: dict[str, Any], var: Path) -> None:
    """Run the Python of the README, with this run's address and folder."""
    (script,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    script = script.replace("http://127.0.0.1:8000", facts["url"]).replace(
        "var/quickstart.json", f"{var}/quickstart.json"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr


LEAVE = "Les congés annuels se demandent par écrit, deux semaines avant le départ."
CANTEEN = "La cantine ouvre à midi ; le déjeuner y coûte quatre euros."
QUESTION = "Combien coûte un déjeuner à la cantine ?"


def documents(facts: dict[str, Any]) -> None:
    """A French PDF from upload to answer, and out again."""
    headers = {"Authorization": f"Bearer {facts['api_key']}"}
    with httpx.Client(base_url=f"{facts['url']}/v1/", headers=headers, timeout=60) as client:

        def done(method: str, path: str, **how: Any) -> Any:
            answer = client.request(method, path, **how)
            assert answer.is_success, answer.text
            return answer.json() if answer.content else None

        collection = done("POST", "collections", json={"name": "Guide", "language": "french"})["id"]
        file = {"file": ("guide.pdf", text_pdf(LEAVE, CANTEEN), "application/pdf")}
        fields = {"collection_id": str(collection), "chunk_size": "100", "metadata": '{"year": 2026}'}
        document = done("POST", "documents", data=fields, files=file)["id"]
        assert done("GET", f"documents/{document}")["status"] == "ready"
        for method in ("semantic", "lexical", "hybrid"):
            asked = {"query": QUESTION, "method": method, "collection_ids": [collection]}
            best = done("POST", "search", json=asked)["data"][0]["chunk"]
            assert "quatre euros" in best["content"]
            assert best["metadata"] == {"page": 2, "year": 2026}
        chat = {"model": "smollm2", "max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]}
        chat["tools"] = [{"type": "search", "collection_ids": [collection], "limit": 1}]
        answer = done("POST", "chat/completions", json=chat)
        assert answer["choices"][0]["message"]["content"]
        assert [result["chunk"]["document_id"] for result in answer["search_results"]] == [document]
        done("DELETE", f"documents/{document}")
        for method in ("semantic", "lexical", "hybrid"):
            assert done("POST", "search", json={"query": QUESTION, "method": method})["data"] == []


def chat_in_a_browser(facts: dict[str, Any]) -> None:
    """The administrator asks something in the playground, where the words come one by one.

    Where no browser is, the tests of pages are skipped and say so.
    """
    path = executable()
    if path is None:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(base_url=facts["url"])
        page.set_default_timeout(60_000)
        page.goto("/playground")
        page.locator("#id_username").fill(facts["admin_email"])
        page.locator("#id_password").fill(facts["admin_password"])
        page.locator("#login").click()
        page.locator("#model").select_option("smollm2")
        page.locator("#max_tokens").fill("40")
        page.locator("#message").fill("Tell me about the sea.")
        page.evaluate(LENGTHS)
        page.locator("#send").click()
        page.locator(".message.assistant .figures-line").wait_for()
        assert "CO₂e" in page.locator(".figures-line").inner_text()
        assert page.evaluate("new Set(lengths).size") > 3
        browser.close()


# Of the answer, as it grows.
LENGTHS = """() => {
  window.lengths = [];
  const list = document.getElementById("messages");
  const look = () => lengths.push(list.querySelector(".assistant .body")?.textContent.length ?? 0);
  new MutationObserver(look).observe(list, {childList: true, subtree: true, characterData: true});
}"""


def refusal(var: Path, port: int) -> str:
    """What a quickstart says that cannot start."""
    with tempfile.TemporaryDirectory() as output:
        run = Run(var, port, Path(output) / "output.txt")
        assert run.process.wait(30) != 0
        return run.said


def test_the_printed_line_works_and_survives_a_killed_supervisor(started: Run, var: Path, port: int) -> None:
    started.wait_until_ready()
    facts, curl = started.facts, started.curl()
    assert (var / "quickstart.json").stat().st_mode & 0o777 == 0o600
    assert facts["url"] == f"http://127.0.0.1:{port}"
    assert facts["api_key"] in started.said
    assert facts["admin_password"] in started.said
    ask(curl)
    tour(facts)
    use(facts, var)
    documents(facts)
    chat_in_a_browser(facts)
    started.process.kill()
    started.process.wait()

    again = Run(var, port)
    try:
        again.wait_until_ready()
        assert again.facts["api_key"] == facts["api_key"]
        assert facts["api_key"] not in again.said
        assert f"manage.py createkey {facts['admin_email']}" in again.said
        ask(curl)
        assert "OpenGate already runs on" in refusal(var, port)
        assert again.stop() == 0, again.said
    finally:
        again.process.kill()
        again.process.wait()
    assert processes_on(var) == []


def test_a_busy_port_is_refused_at_once(var: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1, port {port}" in refusal(var, port)
    assert not (var / "embedded").exists()


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(SupervisorError, match="OPENGATE_PORT='http' is not a number"):
        Options.read({"OPENGATE_PORT": "http"})


def test_the_address_is_one_a_caller_can_use() -> None:
    assert Options.read({"OPENGATE_HOST": "0.0.0.0"}).url == "http://127.0.0.1:8000"
    assert Options.read({"OPENGATE_HOST": "::1", "OPENGATE_PORT": "81"}).url == "http://[::1]:81"


def test_without_a_local_model_the_example_lists_models() -> None:
    assert example("http://x", "sk-1", None) == "curl http://x/v1/models -H 'Authorization: Bearer sk-1'"
