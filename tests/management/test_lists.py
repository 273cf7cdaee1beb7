"""Lists stay cheap however long they are."""

import json
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from accounts.models import Key
from routing.models import Provider, Router
from usage.models import Limit

MANY = 100_000


@pytest.fixture
def client(admin, redis_client):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {Key.objects.issue(admin, 'test')[1]}")
    assert client.get("/v1/me/info").status_code == 200  # from now on the key is remembered
    return client


@pytest.fixture
def many_users(role, organization):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO accounts_user (password, email, name, role_id, organization_id, priority, created, updated)"
            " SELECT '!', n || '@example.org', 'user ' || n %% 1000, %s, %s, 0,"
            " now() - n * interval '1 second', now() - (n * 7919 %% 100000) * interval '1 second'"
            " FROM generate_series(1, %s) AS n",
            [role.id, organization.id, MANY],
        )
        cursor.execute(
            "INSERT INTO usage_account (user_id, spent, reserved, carbon_spent, carbon_reserved, period, time_zone,"
            " refill_day, refill_hour) SELECT id, 1, 0, 1, 0, '', 'UTC', 1, 0 FROM accounts_user"
        )
        cursor.execute("ANALYZE accounts_user, usage_account")


def plan(sql: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}")
        (found,) = cursor.fetchone()
    return (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]


def nodes(part: dict[str, Any]) -> list[str]:
    return [part["Node Type"], *(node for inner in part.get("Plans", ()) for node in nodes(inner))]


def test_a_hundred_thousand_users_take_two_queries_a_page(client, many_users, django_assert_num_queries):
    for query in (
        "",
        "limit=100",
        "offset=99990",
        "order_by=name",
        "order_by=updated&order_direction=desc&offset=50000",
    ):
        with django_assert_num_queries(2):
            answer = client.get(f"/v1/admin/users?{query}").json()
        assert answer["total"] == MANY + 1
        assert len(answer["data"]) == answer["limit"]


def test_a_page_of_users_is_read_from_an_index_and_not_sorted(client, many_users, django_assert_num_queries):
    for order in ("id", "name", "created", "updated"):
        for direction in ("asc", "desc"):
            with django_assert_num_queries(2) as captured:
                client.get(f"/v1/admin/users?order_by={order}&order_direction={direction}")
            found = nodes(plan(captured.captured_queries[1]["sql"]))
            assert not {"Sort", "Incremental Sort", "Seq Scan"} & set(found), (order, direction, found)


def test_pages_cover_all_users_once(client, many_users):
    ids = [
        user["id"]
        for offset in range(0, 1000, 100)
        for user in client.get(f"/v1/admin/users?order_by=name&limit=100&offset={offset}").json()["data"]
    ]
    assert len(set(ids)) == 1000


QUERIES = {
    "/v1/admin/organizations": 2,
    "/v1/admin/roles": 3,  # and their limits
    "/v1/admin/tokens": 2,
    "/v1/admin/routers": 3,  # and their names
    "/v1/admin/providers": 2,
}


def test_a_list_takes_as_many_queries_for_fifty_rows_as_for_one(
    client, organization, role, admin, django_assert_num_queries
):
    def row(number: int) -> None:
        router = Router.objects.create(name=f"model {number}", type="text-generation")
        router.rename(router.name, [f"alias {number}"])
        Provider.objects.create(router=router, type="vllm", url="http://vllm/", key="x", model_name="m")
        new = type(role).objects.create(name=f"role {number}")
        type(organization).objects.create(name=f"organization {number}")
        Limit.objects.open_router(new, router)
        Key.objects.issue(admin, "x")

    row(0)
    for path, queries in QUERIES.items():
        with django_assert_num_queries(queries):
            client.get(path)
    for number in range(1, 50):
        row(number)
    for path, queries in QUERIES.items():
        with django_assert_num_queries(queries):
            assert len(client.get(f"{path}?limit=50").json()["data"]) == 50
