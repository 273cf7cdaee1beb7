#!/usr/bin/env python
"""What a chat completion through OpenGate costs, against the provider itself and the least a Python proxy can do.

    python benchmarks/chat.py [--quick] [--json FILE]

Starts everything itself: PostgreSQL, Valkey, a cheap scripted provider, one web process, a worker. Every feature is on:
key, limits that count, price, carbon, usage records kept durably. With two cores or more the web process has the last
one to itself. All targets are measured in one run, in short slices that take turns; the figures to trust are CPU a
request and ratios. See docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))

from opengate.embedded import running  # noqa: E402
from tests.services import SECRETS  # noqa: E402

WEB, PROVIDER, FLOOR = 8711, 9711, 8712
OURS = ("opengate", "budget")  # the same process; the second one's user has a budget, reserved and settled in Postgres
GENEROUS = 10**12  # a limit that is counted and never reached
CORES = sorted(os.sched_getaffinity(0))

PROVISION = """
import sys
from django.core.management import call_command
from accounts.models import Key, Role, User
from routing.models import Provider, Router
from usage.models import Limit
role = Role.objects.create(name="bench")
router = Router.objects.create(name="fake", type="text-generation", cost_prompt_tokens=1, cost_completion_tokens=2)
Provider.objects.create(router=router, type="openai", url=sys.argv[1], key="k" * 40, model_name="fake",
                        model_hosting_zone="FRA", model_total_params=8, model_active_params=8)
for type in ("rpm", "rpd", "tpm", "tpd"):
    Limit.objects.create(role=role, router=router, type=type, value=GENEROUS)
users = [User.objects.create_user(f"{name}@example.org", None, role) for name in ("bench", "budget")]
call_command("setbudget", users[1].email, budget="1000000000", stdout=sys.stderr)
print(",".join(Key.objects.issue(user, "bench")[1] for user in users))
"""
COUNT = """
from usage import spool
from usage.models import UsageRecord
spool.drain()
print(UsageRecord.objects.count())
"""


def pin(cores: list[int]) -> Any:
    return lambda: os.sched_setaffinity(0, cores)


@contextmanager
def process(command: list[str], environment: dict[str, str], cores: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=pin(cores), stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def shell(code: str, environment: dict[str, str], *arguments: str) -> str:
    """Run code with Django set up; answers the last line it prints."""
    setup = f"import django; django.setup(); GENEROUS = {GENEROUS}\n"
    command = [sys.executable, "-c", setup + code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout.split()[-1]


def wait_for(url: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer.")


def load(targets: list[str], out: Path, *arguments: str) -> dict[str, Any]:
    """One run of the load generator over all targets."""
    command = [sys.executable, str(HERE / "load.py"), "--json", str(out), *arguments]
    for target in targets:
        command += ["--target", target]
    subprocess.run(command, check=True, preexec_fn=pin(CORES[:1]), stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a run worth keeping."""
    kept: dict[str, Any] = {}
    for name, target in result["targets"].items():
        latency = target["latency"] or {}
        kept[name] = {
            "answered": target["requests"],
            "errors": target["errors"],
            "requests_per_second": target["rps"],
            "p50_ms": latency.get("p50_ms"),
            "p99_ms": latency.get("p99_ms"),
            "cpu_ms_per_request": target.get("cpu_ms_per_request"),
            "redis_and_postgres_cpu_ms_per_request": target.get("aux_cpu_ms_per_request"),
            "rss_peak_mib": target.get("rss_peak_mib"),
        }
        if result["mode"] == "stream":
            delay = target.get("chunk_delay") or {}
            kept[name] |= {
                "cpu_us_per_chunk": target.get("cpu_us_per_chunk"),
                "chunk_delay_p50_ms": delay.get("p50_ms"),
                "chunk_delay_p99_ms": delay.get("p99_ms"),
            }
    return {"targets": kept, "opengate_over_direct": result["versus_reference"]["opengate"]}


def table(sections: dict[str, dict[str, Any]]) -> str:
    lines = []
    for title, section in sections.items():
        lines.append(f"\n{title}")
        for name, target in section["targets"].items():
            shown = [f"{key} {value:g}" for key, value in target.items() if isinstance(value, int | float)]
            lines.append(f"  {name:9} " + ", ".join(shown))
        for key, ratio in section["opengate_over_direct"].items():
            lines.append(f"  opengate over direct, {key}: {ratio}")
    return "\n".join(lines)


def measure(quick: bool, out: Path) -> dict[str, Any]:
    seconds, rounds = ("1", "2") if quick else ("3", "5")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opengate-bench-")))
        os.sched_setaffinity(0, CORES[:1])
        services = stack.enter_context(running(home / "embedded", database="opengate", keep=False))
        environment = (
            os.environ
            | SECRETS
            | {
                "DATABASE_URL": services.database_url,
                "REDIS_URL": services.redis_url,
                "OPENGATE_VAR": str(home),
                "OPENGATE_LOG_LEVEL": "WARNING",
                "DJANGO_SETTINGS_MODULE": "opengate.settings",
            }
        )
        python = sys.executable
        subprocess.run([python, "manage.py", "migrate", "-v", "0"], cwd=ROOT, env=environment, check=True)
        key, budget_key = shell(PROVISION, environment, f"http://127.0.0.1:{PROVIDER}/").split(",")
        beat = ["-s", str(home / "beat"), "--loglevel", "error"]
        for command, cores in (
            ([python, str(HERE / "upstream.py"), "--port", str(PROVIDER)], CORES[:1]),
            ([python, str(HERE / "floor.py"), "--port", str(FLOOR), "--upstream", f"127.0.0.1:{PROVIDER}"], CORES[-1:]),
            ([python, "manage.py", "serve", "--workers", "1", "--port", str(WEB)], CORES[-1:]),
            ([python, "-m", "celery", "-A", "opengate", "worker", "-B", "-c", "1", *beat], CORES[:1]),
        ):
            stack.enter_context(process(command, environment, cores))
        wait_for(f"http://127.0.0.1:{WEB}/health/ready")
        targets = [
            f"direct,url=http://127.0.0.1:{PROVIDER}/v1,pids=port:{PROVIDER}",
            f"floor,url=http://127.0.0.1:{FLOOR}/v1,pids=port:{FLOOR}",
            f"opengate,url=http://127.0.0.1:{WEB}/v1,key={key},pids=port:{WEB}",
            f"budget,url=http://127.0.0.1:{WEB}/v1,key={budget_key},pids=port:{WEB}",
        ]
        common = ["--seconds", seconds, "--rounds", rounds, "--timeout", "60"]
        scratch = home / "run.json"
        sections = {
            f"chat, {callers} callers": figures(load(targets, scratch, "--concurrency", callers, *common))
            for callers in ("1", "32", "256")
        }
        stream = ["--mode", "stream", "--concurrency", "64", "--directive", "chunks=100 delay=10"]
        sections["streams, 64 callers, 100 chunks each, one every 10 ms"] = figures(
            load(targets, scratch, *stream, *common)
        )
        answered = sum(section["targets"][ours]["answered"] for section in sections.values() for ours in OURS)
        recorded = int(shell(COUNT, environment))
    if recorded < answered:
        raise SystemExit(f"{answered} calls were answered and measured, but only {recorded} usage records exist.")
    result = {"sections": sections, "calls_measured": answered, "usage_records_with_warm_up": recorded}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(sections))
    print(f"\n{recorded} usage records for {answered} measured calls and their warm-up; written to {out.name}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short slices, for a first look")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "chat.json", help="where the figures go")
    options = parser.parse_args()
    measure(options.quick, options.json)
