#!/usr/bin/env python
"""What the pages of the console and the playground cost with a million usage records and ten thousand users.

    python benchmarks/console.py [--records N] [--rounds N] [--only WORDS] [--json FILE]

Starts PostgreSQL and Valkey itself, fills the tables, and asks each page in this process, as an administrator: pages
come from the URL configuration; their filters, orders and periods from the links and forms of the pages themselves.
Pages take turns in every round. CPU is this process's own; the database's time is in the milliseconds. Ends with 1 when
the median of a page is above the limit, or a page does not answer 200.
"""

import argparse
import importlib
import json
import logging
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.services import servers  # noqa: E402

DAYS, USERS, ORGANIZATIONS, ROLES, ROUTERS = 90, 10_000, 20, 10, 30
COLLECTIONS, DOCUMENTS, CHUNKS, CHANGES, ATTEMPTS, UNDER_WAY = 1_000, 20_000, 40_000, 100_000, 200, 500
LIMIT_MS = 300
VALUES_OF_A_FILTER = 4
WARM_UP = 2
# What somebody would type, by the name of the field; the first word that is in it counts.
TYPED = {
    "user": "user77@",
    "email": "user77@",
    "key": "key of user 77",
    "request": "",  # the id of a record, once there is one
    "router": "model-7",
    "provider": "upstream-7",
    "organization": "organization 7",
    "status": "502",
    "since": "2020-01-01",
    "name": "7",
    "term": "7",
    "q": "77",
}

FILL = """
INSERT INTO accounts_organization (name, created, updated)
  SELECT 'organization ' || n, now(), now() FROM generate_series(1, {organizations}) n;
INSERT INTO accounts_role (name, permissions, created, updated)
  SELECT 'role ' || n, '{{}}', now(), now() FROM generate_series(1, {roles}) n;
INSERT INTO accounts_user (password, email, name, role_id, organization_id, priority, created, updated)
  SELECT '!', 'user' || n || '@example.org', 'User ' || n, {role} + n % {roles}, {organization} + n % {organizations},
         0, now() - n * interval '1 hour', now()
  FROM generate_series(1, {users}) n;
INSERT INTO accounts_key (user_id, name, digest, token, created, last_used)
  SELECT {user} + n - 1, 'key of user ' || n, 'digest ' || n, 'sk-12345…' || lpad(n::text, 8, '0'), now(), now()
  FROM generate_series(1, {users}) n;
INSERT INTO routing_router (name, type, load_balancing_strategy, cost_prompt_tokens, cost_completion_tokens, created,
                            updated)
  SELECT 'model-' || n, CASE WHEN n % 10 = 0 THEN 'text-embeddings-inference' ELSE 'text-generation' END, 'shuffle',
         1, 2, now(), now() FROM generate_series(1, {routers}) n;
INSERT INTO routing_routername (value, router_id, is_alias, created)
  SELECT name, id, false, now() FROM routing_router UNION ALL SELECT name || '-latest', id, true, now()
  FROM routing_router;
INSERT INTO routing_provider (router_id, type, url, timeout, model_name, model_hosting_zone, model_total_params,
                              model_active_params, created, updated)
  SELECT {router} + n % {routers}, 'openai', 'http://127.0.0.1:9/' || n || '/', 5, 'upstream-' || n, 'FRA', 8, 8, now(),
         now()
  FROM generate_series(0, 2 * {routers} - 1) n;
INSERT INTO usage_limit (role_id, router_id, type, value, created)
  SELECT role.id, router.id, limited, NULLIF((router.id * 100) % 700, 0), now()
  FROM accounts_role role, routing_router router, unnest(ARRAY['tpm', 'tpd', 'rpm', 'rpd']) limited;
INSERT INTO knowledge_space (router_id, dimensions, created)
  SELECT id, 8, now() FROM routing_router WHERE type = 'text-embeddings-inference';
INSERT INTO knowledge_collection (name, visibility, owner_id, language, space_id, chunks, words, created, updated)
  SELECT 'collection ' || n, CASE WHEN n % 10 = 0 THEN 'public' ELSE 'private' END, {user} + n % 100, 'english',
         (SELECT min(id) FROM knowledge_space), 0, 0, now(), now()
  FROM generate_series(1, {collections}) n;
INSERT INTO knowledge_document (collection_id, name, kind, file, size, fingerprint, options, status, progress, error,
                                edited, tries, deaths, due, created)
  SELECT {collection} + n % {collections}, 'document ' || n || '.pdf', 'pdf', '', 1000 * n, '', '{{}}',
         (ARRAY['ready', 'ready', 'ready', 'ready', 'failed', 'pending'])[1 + n % 6], 0, '', false, 0, 0, now(),
         now() - n * interval '1 minute'
  FROM generate_series(1, {documents}) n;
INSERT INTO knowledge_chunk (document_id, collection_id, number, content, created)
  SELECT document.id, document.collection_id, number,
         'Chunk ' || number || ' of ' || document.name || ' is about leave.', now()
  FROM knowledge_document document, generate_series(0, {chunks} / {documents} - 1) number;
INSERT INTO usage_reservation (request_id, user_id, cost, gco2eq, prompt_tokens, completion_tokens, record, created,
                               expires)
  SELECT 'under way ' || n, {user} + n, 0, 0, 1, 1, '{{"router_name": "model-7", "key_name": "key"}}', now(),
         now() + interval '1 hour'
  FROM generate_series(1, {under_way}) n;
INSERT INTO axes_accessattempt (user_agent, ip_address, username, http_accept, path_info, attempt_time, get_data,
                                post_data, failures_since_start)
  SELECT 'agent', ('10.0.0.' || n % 250)::inet, 'user' || n || '@example.org', '*/*', '/admin/login/', now(), '', '', 3
  FROM generate_series(1, {attempts}) n;
INSERT INTO auditlog_logentry (content_type_id, object_pk, object_id, object_repr, changes_text, action, actor_id,
                               actor_email, timestamp, changes, additional_data)
  SELECT (SELECT id FROM django_content_type WHERE app_label = 'accounts' AND model = 'user'), ({user} + n % {users}),
         {user} + n % {users}, 'user' || 1 + n % {users} || '@example.org', '', n % 3, {user}, 'user1@example.org',
         now() - n * interval '1 minute', '{{"name": ["Old", "New"]}}', NULL
  FROM generate_series(1, {changes}) n;
"""
# A few users make most of the calls; each has a usual model, and its provider changes.
RECORDS = """
INSERT INTO usage_usagerecord (request_id, created, user_id, user_email, organization_id, organization_name, key_id,
  key_name, router_id, router_name, provider_id, provider_model_name, endpoint, method, status, outcome, latency_ms,
  ttft_ms, prompt_tokens, completion_tokens, total_tokens, tokens_estimated, cost_prompt_tokens, cost_completion_tokens,
  cost, kwh_min, kwh_max, kgco2eq_min, kgco2eq_max, gco2eq)
SELECT lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || left(md5(n::text), 20), moment,
  {user} + who, 'user' || who + 1 || '@example.org', {organization} + (who + 1) % {organizations},
  'organization ' || 1 + (who + 1) % {organizations}, {key} + who, 'key of user ' || who + 1,
  {router} + model, 'model-' || model + 1, {provider} + model + {routers} * (n % 2), 'upstream-' || model,
  '/v1/chat/completions', 'POST', CASE WHEN n % 33 = 0 THEN 502 ELSE 200 END,
  CASE WHEN n % 33 = 0 THEN 'upstream_failed' ELSE 'finished' END, 300 + n % 5000, 50 + n % 400, n % 2000, n % 500,
  n % 2000 + n % 500, false, 1, 2, (n % 2000 + 2 * (n % 500)) / 1000000.0, 0.00001, 0.00002, 0.00001, 0.00002, 0.015
FROM (
  SELECT n, now() - (interval '{days} days' * (1 - n / {records}::float)) AS moment, who,
         (who + n / 1000 % 2)::int % {routers} AS model
  FROM (SELECT n, floor({users} * power(random(), 3))::int AS who FROM generate_series(1, {records}) n) AS chosen
) AS calls ORDER BY n
"""
ACCOUNTS = """
INSERT INTO usage_account (user_id, granted, spent, carbon_spent, reserved, carbon_reserved, period, time_zone,
                           refill_day, refill_hour)
SELECT accounts_user.id, CASE WHEN accounts_user.id % 3 = 0 THEN NULL ELSE coalesce(sum(cost), 0) * 1.05 END,
       coalesce(sum(cost), 0), coalesce(sum(gco2eq), 0), 0, 0, '', 'UTC', 1, 0
FROM accounts_user LEFT JOIN usage_dailyusage ON user_id = accounts_user.id GROUP BY accounts_user.id
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="a part of the names or addresses of the pages to ask")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "console.json")
    options = parser.parse_args()
    with servers(durable=False):
        logging.getLogger("django.request").setLevel("CRITICAL")  # what nobody may open, is left out
        fill(options.records)
        figures = measure(options.rounds, options.only)
    if not options.only:
        options.json.write_text(json.dumps({"records": options.records, "pages": figures}, indent=1) + "\n")
    sys.exit(told(figures))


def fill(records: int) -> None:
    """Rows by SQL, then the sums by the statements that make them in service."""
    from django.db import connection

    from accounts.models import Key, Organization, Role, User
    from routing.models import Provider, Router
    from usage.ledger import DAILY_SUMS

    started = time.perf_counter()
    numbers = {"users": USERS, "organizations": ORGANIZATIONS, "roles": ROLES, "routers": ROUTERS, "days": DAYS}
    numbers |= {"collections": COLLECTIONS, "documents": DOCUMENTS, "chunks": CHUNKS, "changes": CHANGES}
    numbers |= {"attempts": ATTEMPTS, "under_way": UNDER_WAY, "records": records}
    # The tables are empty, so their ids begin where the sequences do.
    numbers |= {"organization": 1, "role": 1, "user": 1, "router": 1, "provider": 1, "collection": 1, "key": 1}
    for model in (Organization, Role, User, Key, Router, Provider):
        assert not model._default_manager.exists(), model
    with connection.cursor() as cursor:
        cursor.execute("SELECT setseed(0.5)")
        cursor.execute(FILL.format(**numbers))
        cursor.execute(RECORDS.format(**numbers))
        columns = "day, user_id, key_id, organization_id, router_id, provider_id, endpoint, user_email, key_name,"
        columns += "organization_name, router_name, provider_model_name, requests, errors, prompt_tokens,"
        columns += "completion_tokens, cost, gco2eq, kwh"
        sums = DAILY_SUMS.format(records="usage_usagerecord")
        cursor.execute(
            f"INSERT INTO usage_dailyusage ({columns}, records_deleted) SELECT sums.*, false FROM ({sums}) sums"
        )
        cursor.execute(ACCOUNTS)
        cursor.execute("VACUUM ANALYZE")
    print(f"filled in {time.perf_counter() - started:.0f} s")
    roll_up()
    Role.objects.filter(id=1).update(permissions=["admin"])


def roll_up() -> None:
    """The sums of hours and days, where there are some."""
    from django.db import connection

    try:
        rollups: Any = importlib.import_module("usage.rollups")
    except ModuleNotFoundError:
        return
    started = time.perf_counter()
    while not rollups.roll_up():
        pass
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    print(f"rolled up in {time.perf_counter() - started:.0f} s")


class Questions(HTMLParser):
    """The other questions that a page offers about itself: links that begin with `?`, and forms that are got."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.choices: list[tuple[str, str]] = []
        self.typed: list[str] = []
        self._asks = False
        self._select: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a" and given.get("href", "").startswith("?"):
            self.links.append(given["href"][1:])
        elif tag == "form":
            self._asks = given.get("method", "get").lower() == "get"
        elif self._asks and tag == "select":
            self._select = given.get("name")
        elif self._asks and tag == "option" and self._select and given.get("value"):
            self.choices.append((self._select, given["value"]))
        elif self._asks and tag == "input" and given.get("type", "text") not in ("hidden", "submit", "button"):
            self.typed += [given["name"]] if "name" in given else []

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._asks = False
        elif tag == "select":
            self._select = None

    def all(self, typed: dict[str, str]) -> Iterator[str]:
        asked: Counter[str] = Counter()
        offered = [pairs for link in self.links if (pairs := parse_qsl(link))]
        numbers = [pairs for pairs in offered if pairs[0][0] == "p"]
        offered = [pairs for pairs in offered if pairs not in numbers] + numbers[-1:]  # of pages, the last
        for pairs in [*offered, *([choice] for choice in self.choices)]:
            name = ",".join(sorted({name for name, _ in pairs}))
            asked[name] += 1
            if asked[name] <= VALUES_OF_A_FILTER:
                yield urlencode(pairs)
        for name in self.typed:
            if text := next((text for word, text in typed.items() if word in name), ""):
                yield urlencode({name: text})


class Pages:
    """The pages to ask, by name, and who asks."""

    def __init__(self) -> None:
        from django.test import Client

        from accounts.models import User
        from usage.models import UsageRecord

        # Somebody who uses the models as well, so that the playground has something to show.
        self.admin = User.objects.filter(role_id=1).order_by("id")[0]
        self.client = Client(HTTP_HOST="localhost", raise_request_exception=False)
        self.client.force_login(self.admin, backend="accounts.passwords.PasswordBackend")
        self.typed = TYPED | {"request": UsageRecord.objects.latest("created").request_id}
        self.paths = dict(self._found())

    def _found(self) -> Iterator[tuple[str, str]]:
        from tests.browser.addresses import pages

        for address in pages(self._row_of):
            yield address.path, address.name
            answer = self.client.get(address.path)
            if answer.status_code == 200 and not answer.streaming:
                for query in Questions(answer.content.decode()).all(self.typed):
                    yield f"{address.path}?{query}", address.name
        yield from self._choosers()

    def _row_of(self, model: Any) -> Any:
        """One with much to it: of people, the busiest; of keys, one's own; else one from the middle."""
        from accounts.models import Key, User

        if model is Key:
            return self.admin.keys.order_by("pk")[0]
        rows = model._default_manager.order_by("pk")
        return rows[1] if model is User else rows[min(rows.count(), 1000) // 2]

    @staticmethod
    def _choosers() -> Iterator[tuple[str, str]]:
        """What is looked for by typing into forms."""
        from django.contrib import admin
        from django.urls import reverse

        for model, page in admin.site._registry.items():
            forms: list[tuple[Any, Any]] = [(model, page), *((inline.model, inline) for inline in page.inlines)]
            for owner, form in forms:
                for field in form.autocomplete_fields:
                    asked = {"app_label": owner._meta.app_label, "model_name": owner._meta.model_name}
                    for term in ("", "7"):
                        query = urlencode(asked | {"field_name": field, "term": term})
                        yield f"{reverse('admin:autocomplete')}?{query}", "admin:autocomplete"


def measure(rounds: int, only: str) -> dict[str, dict[str, float]]:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    pages = Pages()
    paths = [path for path, name in pages.paths.items() if only in path or only in name]
    print(f"{len(paths)} pages, {rounds} times each")
    taken: dict[str, list[tuple[float, float]]] = {path: [] for path in paths}
    queries: dict[str, int] = {}
    status: dict[str, int] = {}
    for number in range(rounds + WARM_UP):
        for path in list(taken):
            started, used = time.perf_counter(), time.process_time()
            if number == 0:
                with CaptureQueriesContext(connection) as captured:
                    status[path] = pages.client.get(path).status_code
                queries[path] = len(captured)
                if status[path] in (403, 405):  # nobody may, or it is only sent to
                    del taken[path]
                continue
            answer = pages.client.get(path)
            figure = (time.perf_counter() - started) * 1000, (time.process_time() - used) * 1000
            answer.close()
            if number >= WARM_UP:
                taken[path].append(figure)
    figures = {}
    for path, found in taken.items():
        ms = sorted(ms for ms, _ in found)
        figures[path] = {
            "status": status[path],
            "queries": queries[path],
            "median_ms": round(statistics.median(ms), 1),
            "p95_ms": round(ms[min(len(ms) - 1, int(len(ms) * 0.95))], 1),
            "cpu_ms": round(statistics.median(cpu for _, cpu in found), 1),
        }
    return figures


def told(figures: dict[str, dict[str, float]]) -> int:
    """Print them, those that are too slow or broken at the end; whether there are such."""
    print(f"{'queries':>7} {'median':>8} {'p95':>8} {'CPU ms':>7}")
    for path, found in figures.items():
        shown = re.sub(r"[0-9a-f]{32}", "…", path)
        times = f"{found['median_ms']:8.1f} {found['p95_ms']:8.1f} {found['cpu_ms']:7.1f}"
        print(f"{found['queries']:7.0f} {times} {shown[:140]}")
    broken = [path for path, found in figures.items() if found["status"] not in (200, 302)]
    slow = [path for path, found in figures.items() if found["median_ms"] > LIMIT_MS]
    for path in broken:
        print(f"answered {figures[path]['status']:.0f}: {path}")
    print(f"above {LIMIT_MS} ms at the median: {len(slow)} of {len(figures)}")
    for path in slow:
        print(f"  {figures[path]['median_ms']:8.1f} ms, {figures[path]['queries']:.0f} queries: {path}")
    return 1 if slow or broken else 0


if __name__ == "__main__":
    main()
