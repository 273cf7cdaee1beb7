#!/usr/bin/env python
"""What ten million usage records cost: pages, the drain, settlements, reports, the audit, retention, and disk.

    python benchmarks/ledger.py [--records N] [--rounds N] [--json FILE]

Starts PostgreSQL and Valkey itself, fills the table by COPY with all its indexes in place, and asks the endpoints in
this process. One user of a thousand has a tenth of the records. Pages take turns in every round; figures are medians.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.services import servers  # noqa: E402

USERS, ROUTERS, DAYS, HEAVY = 1000, 20, 30, 10  # one record in HEAVY is the first user's
BLOCK = 20_000
DRAINED = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "ledger.json")
    options = parser.parse_args()
    with servers(OPENGATE_USAGE_RETENTION_DAYS=str(DAYS - 1)):
        figures = measure(options.records, options.rounds)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(records: int, rounds: int) -> dict[str, Any]:

    figures: dict[str, Any] = {"records": records}
    world = World()
    figures["copied_a_second"] = round(records / timed(lambda: world.fill(records)))
    figures["disk"] = world.disk()
    figures["milliseconds"] = world.pages(rounds)
    figures |= world.work()
    print(json.dumps(figures, indent=1))
    return figures


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class World:
    """A thousand users, twenty routers, and their records."""

    def __init__(self) -> None:
        from django.test import Client
        from rest_framework.test import APIClient

        from accounts.models import Key, Permission, Role, User
        from routing.models import Router

        role = Role.objects.create(name="admin", permissions=[Permission.ADMIN])
        people = [User(email=f"user{n}@example.org", role=role, password="!") for n in range(USERS)]
        User.objects.bulk_create(people)
        self.users = list(User.objects.order_by("id"))
        self.routers = [Router.objects.create(name=f"model-{n}", type="text-generation") for n in range(ROUTERS)]
        self.keys = Key.objects.bulk_create(
            Key(user=user, name="bench", digest=f"{user.id}", token="sk-…") for user in self.users
        )
        self.api: dict[str, APIClient] = {}
        for name, user in (("heavy", self.users[0]), ("usual", self.users[1])):
            self.api[name] = APIClient(HTTP_HOST="localhost")
            self.api[name].credentials(HTTP_AUTHORIZATION=f"Bearer {Key.objects.issue(user, 'asks')[1]}")
        self.console = Client(HTTP_HOST="localhost")
        self.console.force_login(self.users[0], backend="accounts.passwords.PasswordBackend")

    def fill(self, records: int) -> None:
        """By COPY, in the order of time, then the sums and accounts that the ledger would have."""
        from django.db import connection

        from usage.ledger import _TYPES, DAILY_SUMS
        from usage.models import DailyUsage

        with connection.cursor() as cursor:
            with cursor.copy(f"COPY usage_usagerecord ({', '.join(_TYPES)}) FROM STDIN") as copy:
                for block in self.lines(records):
                    copy.write(block)
            columns = "day, user_id, key_id, organization_id, router_id, provider_id, endpoint, user_email, key_name,"
            columns += "organization_name, router_name, provider_model_name, requests, errors, prompt_tokens,"
            columns += "completion_tokens, cost, gco2eq, kwh"
            cursor.execute(
                f"INSERT INTO {DailyUsage._meta.db_table} ({columns}, records_deleted) SELECT sums.*, false"
                f" FROM ({DAILY_SUMS.format(records='usage_usagerecord')}) AS sums"
            )
            cursor.execute(
                "INSERT INTO usage_account (user_id, spent, carbon_spent, reserved, carbon_reserved, period, time_zone,"
                " refill_day, refill_hour) SELECT user_id, sum(cost), sum(gco2eq), 0, 0, '', 'UTC', 1, 0"
                " FROM usage_dailyusage GROUP BY user_id"
            )
            cursor.execute("VACUUM ANALYZE")

    def lines(self, records: int) -> Iterator[str]:
        from usage.ledger import _TYPES

        chance = random.Random(5)
        start, step = time.time() - DAYS * 86_400, DAYS * 86_400 / records
        outcomes = ("finished",) * 97 + ("client_left", "upstream_failed", "recovered")
        block: list[str] = []
        for number in range(records):
            who = 0 if number % HEAVY == 0 else chance.randrange(USERS)
            user, router = self.users[who], self.routers[chance.randrange(ROUTERS)]
            moment = start + number * step
            outcome = outcomes[number % 100] if number % 10_000 < 9_900 else "finished"
            prompt, completion = chance.randrange(2000), chance.randrange(500)
            values = {
                "request_id": f"{int(moment * 1000):012x}{chance.getrandbits(80):020x}",
                "created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) + f".{number % 1_000_000:06}+00",
                "user_id": user.pk,
                "user_email": user.email,
                "organization_id": "\\N",
                "organization_name": "\\N",
                "key_id": self.keys[who].pk,
                "key_name": "bench",
                "router_id": router.pk,
                "router_name": router.name,
                "provider_id": router.pk,
                "provider_model_name": "meta-llama/Llama-3.1-8B-Instruct",
                "endpoint": "/v1/embeddings" if number % 3 == 0 else "/v1/chat/completions",
                "method": "POST",
                "status": 200 if outcome == "finished" else 499,
                "outcome": outcome,
                "latency_ms": 900,
                "ttft_ms": 120,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "tokens_estimated": "f",
                "cost_prompt_tokens": "1.000000",
                "cost_completion_tokens": "2.000000",
                "cost": f"{(prompt + 2 * completion) / 1_000_000:.6f}",
                "estimated_cost": "\\N",
                "kwh_min": 0.00001,
                "kwh_max": 0.00002,
                "kgco2eq_min": 0.00001,
                "kgco2eq_max": 0.00002,
                "gco2eq": "0.015000",
            }
            block.append("\t".join([str(values[name]) for name in _TYPES]))
            if len(block) == BLOCK:
                yield "\n".join(block) + "\n"
                block.clear()
        if block:
            yield "\n".join(block) + "\n"

    def disk(self) -> dict[str, int]:
        """Bytes."""
        from django.db import connection

        found: dict[str, int] = {}
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_table_size('usage_usagerecord'), pg_total_relation_size('usage_usagerecord')")
            found["table"], found["with_indexes"] = cursor.fetchone()
            cursor.execute(
                "SELECT indexname, pg_relation_size(indexname::text::regclass) FROM pg_indexes"
                " WHERE tablename = 'usage_usagerecord' ORDER BY 1"
            )
            found |= dict(cursor.fetchall())
            cursor.execute("SELECT pg_total_relation_size('usage_dailyusage')")
            found["daily_sums"] = cursor.fetchone()[0]
        return found

    def pages(self, rounds: int) -> dict[str, float]:
        from usage.models import UsageRecord

        some = UsageRecord.objects.filter(user=self.users[1]).latest("created")
        admin = "/admin/usage/usagerecord/"
        targets: dict[str, tuple[Any, str]] = {
            "my usage": (self.api["usual"], "/v1/me/usage"),
            "my usage, hundred rows": (self.api["usual"], "/v1/me/usage?limit=100"),
            "my usage, one endpoint": (self.api["usual"], "/v1/me/usage?endpoint=/v1/embeddings"),
            "my usage, a tenth of all records": (self.api["heavy"], "/v1/me/usage"),
            "my usage, a tenth of all, one endpoint": (self.api["heavy"], "/v1/me/usage?endpoint=/v1/embeddings"),
            "my usage, a tenth of all, the last day": (
                self.api["heavy"],
                f"/v1/me/usage?start_time={int(time.time()) - 86_400}",
            ),
            "console": (self.console, admin),
            "console, page 50": (self.console, f"{admin}?p=50"),
            "console, one outcome": (self.console, f"{admin}?outcome__exact=recovered"),
            "console, a user": (self.console, f"{admin}?q=user77@example.org"),
            "console, the heaviest user": (self.console, f"{admin}?q=user0@example.org"),
            "console, a router": (self.console, f"{admin}?q=model-7"),
            "console, a request": (self.console, f"{admin}?q={some.request_id}"),
            "console, one record": (self.console, f"{admin}{some.pk}/change/"),
            "console, daily usage": (self.console, "/admin/usage/dailyusage/"),
        }
        taken: dict[str, list[float]] = {name: [] for name in targets}
        for number in range(rounds + 3):
            for name, (client, path) in targets.items():
                seconds = timed(lambda client=client, path=path: self.get(client, path))  # type: ignore[misc]
                if number >= 3:
                    taken[name].append(seconds * 1000)
        return {name: round(statistics.median(found), 1) for name, found in taken.items()}

    @staticmethod
    def get(client: Any, path: str) -> None:
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.status_code)

    def work(self) -> dict[str, Any]:
        from django.conf import settings
        from django.core.management import call_command
        from pydantic_core import to_json

        from opengate import redis as opengate_redis
        from opengate.request_id import new_request_id
        from tests.usage.records import record
        from usage import auditing, ledger, retention, spool

        def made(number: int) -> Any:
            user = self.users[number % USERS]
            now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
            fields: dict[str, Any] = {
                "key_id": self.keys[number % USERS].pk,
                "router_id": self.routers[number % ROUTERS].pk,
            }
            fields |= {"cost_prompt_tokens": "1", "cost_completion_tokens": "2", "cost": "0.000003"}
            return record(new_request_id(), user=user, created=now, **fields)

        figures: dict[str, Any] = {}
        with opengate_redis.sync_client() as client:
            for start in range(0, DRAINED, 1000):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, start + 1000):
                    pipeline.xadd(spool.STREAM, {"record": to_json(made(number))})
                pipeline.execute()
        figures["drained_a_second"] = round(DRAINED / timed(spool.drain))
        settled = [timed(lambda: ledger.store([made(number)])) for number in range(300)]
        figures["one_settlement_ms"] = round(statistics.median(settled) * 1000, 2)
        with open(os.devnull, "w") as nowhere:
            for by in ("user", "router", "organization"):
                seconds = timed(lambda by=by: call_command("usage_report", by=by, stdout=nowhere))  # type: ignore[misc]
                figures[f"report_by_{by}_s"] = round(seconds, 2)
        started = time.perf_counter()
        found = auditing.audit()
        figures["audit_s"] = round(time.perf_counter() - started, 1)
        assert found.is_clean, found.findings
        assert settings.USAGE_RETENTION_DAYS == DAYS - 1
        started = time.perf_counter()
        deleted = retention.delete_old()
        figures["deleted_a_second"] = round(deleted / (time.perf_counter() - started))
        assert auditing.audit().is_clean
        return figures


if __name__ == "__main__":
    main()
