"""The systems that a run compares, each behind one interface: `start` it, and get the endpoint to call.

To add a rival, write a class with a `name` and a `start` that enters the processes into the stack, waits until they
answer, checks that it does the work it is compared for, and returns its Endpoint. What cannot be started raises
Unavailable: the run says so and goes on without it. Systems take turns, so all may run on the core of MEASURED.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import redis

from benchmarks.client import Endpoint, Scenario
from benchmarks.processes import MEASURED, OTHERS, ROOT, process, python, stat_fields, wait_for
from opengate.embedded import running
from tests.server import free_port
from tests.services import SECRETS

KIT = Path(__file__).resolve().parent


class Unavailable(Exception):
    """Why a system cannot take part."""


@dataclass(frozen=True)
class Stage:
    """What the systems of a run share: the provider, a Redis and a Postgres, all on the other core."""

    home: Path
    provider_port: int
    database_url: str
    redis_url: str

    @property
    def provider(self) -> str:
        return f"http://127.0.0.1:{self.provider_port}"

    def counted(self) -> dict[str, int]:
        """By the provider."""
        with urllib.request.urlopen(f"{self.provider}/stats", timeout=10) as answer:
            return dict(json.load(answer))


@contextmanager
def stage(home: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        os.sched_setaffinity(0, OTHERS)
        services = stack.enter_context(running(home / "embedded", database="opengate", keep=False))
        port = free_port()
        provider = [sys.executable, str(KIT / "upstream.py"), "--port", str(port)]
        stack.enter_context(process(provider, dict(os.environ), OTHERS))
        wait_for(f"http://127.0.0.1:{port}/stats")
        yield Stage(home, port, services.database_url, services.redis_url)


class System(Protocol):
    name: str

    def start(self, stage: Stage, stack: ExitStack) -> Endpoint: ...


class Direct:
    """The provider itself: what a gateway adds is told against it."""

    name = "direct"

    def start(self, stage: Stage, stack: ExitStack) -> Endpoint:
        return Endpoint(self.name, f"{stage.provider}/v1", pids=f"port:{stage.provider_port}")


class Floor:
    """The least that a proxy in Python can do."""

    name = "floor"

    def start(self, stage: Stage, stack: ExitStack) -> Endpoint:
        port = free_port()
        command = [sys.executable, str(KIT / "floor.py"), "--port", str(port)]
        command += ["--upstream", f"127.0.0.1:{stage.provider_port}"]
        child = stack.enter_context(process(command, dict(os.environ), MEASURED))
        wait_for(f"http://127.0.0.1:{port}/v1/models", 30, child)
        return Endpoint(self.name, f"http://127.0.0.1:{port}/v1", pids=str(child.pid))


GENEROUS = 10**12  # a limit that is counted and never reached
FURNISH = f"""
import io, sys
from django.core.management import call_command
from accounts.models import Key, Role, User
from routing.models import Provider, Router
from usage.models import Limit
role = Role.objects.create(name="bench")
for name, type in (("fake", "text-generation"), ("vectors", "text-embeddings-inference")):
    router = Router.objects.create(name=name, type=type, cost_prompt_tokens=1, cost_completion_tokens=2)
    Provider.objects.create(router=router, type="openai", url=sys.argv[1], key="k" * 40, model_name="fake",
                            model_hosting_zone="FRA", model_total_params=8, model_active_params=8)
    for limit in ("rpm", "rpd", "tpm", "tpd"):
        Limit.objects.create(role=role, router=router, type=limit, value={GENEROUS})
users = [User.objects.create_user(f"{{name}}@example.org", None, role) for name in ("bench", "budget")]
call_command("setbudget", users[1].email, budget="1000000000", stdout=io.StringIO())
print(",".join(Key.objects.issue(user, "bench")[1] for user in users))
"""
COUNT = """
from usage import spool
from usage.models import UsageRecord
spool.drain()
print(UsageRecord.objects.count())
"""


@dataclass
class OpenGate:
    """The checkout at `root`, every feature on: key, limits that count, price, carbon, durable usage records.

    One web process on the core of MEASURED; its worker, with the scheduler, on the other.
    """

    name: str = "opengate"
    root: Path = ROOT
    more: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict, init=False)
    key_with_budget: str = field(default="", init=False)

    def start(self, stage: Stage, stack: ExitStack) -> Endpoint:
        port = free_port()
        self.environment = os.environ | SECRETS
        self.environment |= {"DATABASE_URL": stage.database_url, "REDIS_URL": stage.redis_url}
        self.environment |= {"OPENGATE_VAR": str(stage.home), "OPENGATE_LOG_LEVEL": "WARNING"}
        # A busy machine is no sick Redis.
        self.environment |= {"DJANGO_SETTINGS_MODULE": "opengate.settings", "OPENGATE_REDIS_TIMEOUT_SECONDS": "2"}
        self.environment |= self.more
        migrate = [sys.executable, "manage.py", "migrate", "-v", "0"]
        subprocess.run(migrate, cwd=self.root, env=self.environment, check=True)
        key, self.key_with_budget = python(FURNISH, self.environment, f"{stage.provider}/", root=self.root).split(",")
        beat = ["-s", str(stage.home / "beat"), "--loglevel", "error"]
        worker = [sys.executable, "-m", "celery", "-A", "opengate", "worker", "-B", "-c", "1", *beat]
        serve = [sys.executable, "manage.py", "serve", "--workers", "1", "--port", str(port)]
        log = stage.home / "worker.log"
        stack.enter_context(process(worker, self.environment, OTHERS, root=self.root, log=log))
        log = stage.home / "web.log"
        web = stack.enter_context(process(serve, self.environment, MEASURED, root=self.root, log=log))
        wait_for(f"http://127.0.0.1:{port}/health/ready", 120, web)
        lent = f"{child_named('postgres', stage)}+{child_named('valkey-server', stage)}"
        url = f"http://127.0.0.1:{port}/v1"
        return Endpoint(self.name, url, key, embedder="vectors", pids=str(web.pid), aux=lent)

    def usage_records(self) -> int:
        """In Postgres, once all of Redis's are there."""
        return int(python(COUNT, self.environment, root=self.root))


class LiteLLM:
    """LiteLLM out of its wheel, in an environment of its own under var/; the nearest fair set of features.

    One worker, production mode, no database; callers in a dictionary; requests and tokens a minute of key, user and
    team through Redis; usage into a list. `start` checks that a wrong key and a call beyond a limit are refused.
    """

    name = "litellm"
    VERSION = "1.106.2"
    PLACE = ROOT / "var" / "rivals" / f"litellm-{VERSION}"
    KEY, LIMITED_KEY = "sk-bench-0123456789", "sk-limited-0123456789"

    def install(self) -> Path:
        """The Python of its environment; the first time takes two minutes."""
        interpreter = self.PLACE / "bin" / "python"
        if (self.PLACE / "installed").exists():
            return interpreter
        print(f"Installing LiteLLM {self.VERSION} into {self.PLACE.relative_to(ROOT)} ...", flush=True)
        shutil.rmtree(self.PLACE, ignore_errors=True)
        wheel = [
            str(interpreter),
            "-m",
            "pip",
            "install",
            "-q",
            "--only-binary",
            ":all:",
            f"litellm[proxy]=={self.VERSION}",
        ]
        try:
            for command in ([sys.executable, "-m", "venv", str(self.PLACE)], wheel):
                subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise Unavailable(f"LiteLLM {self.VERSION} cannot be installed: {said}") from None
        (self.PLACE / "installed").touch()
        return interpreter

    def start(self, stage: Stage, stack: ExitStack) -> Endpoint:
        interpreter, port = self.install(), free_port()
        folder = stage.home / "litellm"
        folder.mkdir()
        shutil.copy(KIT / "litellm_rules.py", folder)
        # JSON is YAML, too.
        (folder / "config.yaml").write_text(json.dumps(self.configuration(stage)))
        environment = {"PATH": os.defpath, "HOME": str(folder), "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
        environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "BENCH_KEY": self.KEY}
        environment |= {"BENCH_LIMITED_KEY": self.LIMITED_KEY}
        command = [str(interpreter), "-c", "from litellm import run_server; run_server()"]
        command += ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", "1", "--telemetry", "False"]
        log = folder / "log"
        child = stack.enter_context(process(command, environment, MEASURED, root=folder, log=log))
        try:
            wait_for(f"http://127.0.0.1:{port}/health/liveliness", 120, child)
        except SystemExit:
            raise Unavailable(f"LiteLLM {self.VERSION} does not start: {log.read_text()[-500:]}") from None
        lent = str(child_named("valkey-server", stage))
        url = f"http://127.0.0.1:{port}/v1"
        self.check(url, stage)
        return Endpoint(self.name, url, self.KEY, embedder="vectors", pids=str(child.pid), aux=lent)

    def configuration(self, stage: Stage) -> dict[str, object]:
        provider = {"model": "openai/fake", "api_base": f"{stage.provider}/v1", "api_key": "k" * 40}
        return {
            "model_list": [{"model_name": name, "litellm_params": provider} for name in ("fake", "vectors")],
            "litellm_settings": {"callbacks": ["litellm_rules.usage"], "set_verbose": False},
            "general_settings": {
                "custom_auth": "litellm_rules.authenticate",
                "master_key": f"sk-{secrets.token_hex(32)}",  # it does not start without one
                "coordination_redis": {"url": self.redis_url(stage)},
            },
        }

    @staticmethod
    def redis_url(stage: Stage) -> str:
        """A database of its own in the Redis that all share."""
        return stage.redis_url.replace("db=0", "db=1")

    def check(self, url: str, stage: Stage) -> None:
        good = [status_of(url, self.KEY) for _ in range(3)]
        limited = [status_of(url, self.LIMITED_KEY) for _ in range(4)]
        with redis.Redis.from_url(self.redis_url(stage)) as memory:
            counted: object = memory.dbsize()
        if status_of(url, "sk-wrong") != 401 or good != [200] * 3 or limited[-1] != 429 or not counted:
            raise Unavailable(f"LiteLLM does not do its work here: {good}, {limited}, {counted} keys in Redis.")


def status_of(url: str, key: str) -> int:
    """Of a chat completion with that key."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", Scenario("check").body("fake"), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def child_named(command: str, stage: Stage) -> int:
    """The process of this stage with that name; another stage of the same run may have its own."""
    places = [(stage.home / "embedded" / name).resolve() for name in ("postgres", "valkey")]
    for path in Path("/proc").glob("[0-9]*"):
        fields = stat_fields(int(path.name))
        if not fields or int(fields[1]) != os.getpid() or (path / "comm").read_text().strip() != command:
            continue
        if any(Path(os.readlink(path / "cwd")).is_relative_to(place) for place in places):
            return int(path.name)
    raise SystemExit(f"There is no {command}.")
