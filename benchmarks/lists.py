#!/usr/bin/env python
"""What a page of users costs among a hundred thousand, against one among a hundred.

    python benchmarks/lists.py [--rounds N] [--json FILE]

Starts PostgreSQL and Valkey itself and asks the endpoint in this process, so that the CPU is its own; the database's
time is in the milliseconds. The pages take turns in every round; the ratios are of medians.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.services import servers  # noqa: E402

FEW, MANY = 100, 100_000
INSERT = (
    "INSERT INTO accounts_user (password, email, name, role_id, priority, created, updated)"
    " SELECT '!', %s || n || '@example.org', 'user ' || n %% 1000, %s, 0,"
    " now() - n * interval '1 second', now() - (n * 7919 %% 100000) * interval '1 second'"
    " FROM generate_series(1, %s) AS n"
)
PAGES = {
    "first page": "offset=0",
    "first page, newest first": "order_by=created&order_direction=desc",
    "first page, by name": "order_by=name",
    "page in the middle": f"offset={MANY // 2}",
    "last page": f"offset={MANY - 10}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "lists.json")
    options = parser.parse_args()
    with servers(durable=False):
        figures = measure(options.rounds)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(rounds: int) -> dict[str, dict[str, float]]:
    from django.db import connection
    from rest_framework.test import APIClient

    from accounts.models import Key, Permission, Role, User

    role = Role.objects.create(name="admin", permissions=[Permission.ADMIN])
    admin = User.objects.create_user("admin@example.org", None, role)
    client = APIClient(HTTP_HOST="localhost")
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {Key.objects.issue(admin, 'bench')[1]}")
    few = Role.objects.create(name="few")

    def fill(prefix: str, number: int, role_id: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(INSERT, [prefix, role_id, number])
            cursor.execute("VACUUM ANALYZE accounts_user")

    def page(query: str) -> tuple[float, float]:
        started, used = time.perf_counter(), time.process_time()
        assert client.get(f"/v1/admin/users?{query}").status_code == 200
        return (time.perf_counter() - started) * 1000, (time.process_time() - used) * 1000

    fill("few-", FEW, few.pk)
    small = [page("offset=0") for _ in range(rounds + 10)][10:]
    fill("many-", MANY, role.pk)
    # Beside the pages among many, one among few in the same run: of a role that has a hundred users.
    targets = {f"first page of {FEW}": f"role={few.pk}"} | PAGES
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
    for number in range(rounds + 5):
        for name, query in targets.items():
            figure = page(query)
            if number >= 5:
                taken[name].append(figure)
    base = statistics.median(ms for ms, _ in taken[f"first page of {FEW}"])
    figures = {}
    print(f"{'':32} {'ms':>7} {'CPU ms':>7} {'ratio':>6}")
    for name, rows in ({"table of a hundred users": small} | taken).items():
        ms, cpu = (statistics.median(row[index] for row in rows) for index in (0, 1))
        figures[name] = {"ms": round(ms, 2), "cpu_ms": round(cpu, 2), "ratio": round(ms / base, 2)}
        print(f"{name:32} {ms:7.2f} {cpu:7.2f} {ms / base:6.2f}")
    return figures


if __name__ == "__main__":
    main()
