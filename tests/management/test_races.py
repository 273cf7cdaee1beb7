"""Many at a time: constraints decide, and whoever loses is told so."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from accounts.models import Role, User
from routing.models import Provider, Router, RouterName
from tests.conftest import PASSWORD
from tests.management.conftest import MODEL, model_list
from usage.models import Limit

AT_ONCE = 50


def at_once(client: httpx.Client, calls: list[tuple[str, str, Any]]) -> list[httpx.Response]:
    def send(call: tuple[str, str, Any]) -> httpx.Response:
        method, path, body = call
        return client.request(method, path, json=body)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(send, calls))


CREATES: dict[str, Callable[[int, int], tuple[str, Any]]] = {
    "organization": lambda n, role: ("/v1/admin/organizations", {"name": "same"}),
    "role": lambda n, role: ("/v1/admin/roles", {"name": "same"}),
    "user": lambda n, role: ("/v1/admin/users", {"email": "same@example.org", "password": PASSWORD, "role": role}),
    "router": lambda n, role: ("/v1/admin/routers", {"name": "same", "type": "text-generation"}),
    "alias": lambda n, role: (
        "/v1/admin/routers",
        {"name": f"router {n}", "type": "text-generation", "aliases": [f"own {n}", "same"]},
    ),
    "name and alias": lambda n, role: (
        "/v1/admin/routers",
        {"name": "same" if n % 2 else f"router {n}", "type": "text-generation", "aliases": [] if n % 2 else ["same"]},
    ),
}


@pytest.mark.parametrize("kind", CREATES)
def test_of_fifty_simultaneous_creates_one_wins(as_admin, role, kind):
    calls = [("POST", *CREATES[kind](n, role.id)) for n in range(AT_ONCE)]
    answers = at_once(as_admin, calls)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: AT_ONCE - 1}
    assert all("already exist" in answer.json()["detail"] for answer in answers if answer.status_code == 409)
    if "router" in calls[0][1]:
        router = Router.objects.get()
        names = set(RouterName.objects.values_list("value", flat=True))
        assert names == {
            router.name,
            *calls[answers.index(next(a for a in answers if a.status_code == 201))][2].get("aliases", []),
        }


def test_of_fifty_simultaneous_providers_one_wins(as_admin, upstream):
    router = Router.objects.create(name="model", type="text-generation")
    body = {"router": router.id, "type": "vllm", "url": upstream.url, "model_name": MODEL}
    for _ in range(AT_ONCE):
        upstream.reply(model_list())
    answers = at_once(as_admin, [("POST", "/v1/admin/providers", body)] * AT_ONCE)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: AT_ONCE - 1}
    assert Provider.objects.count() == 1


def test_simultaneous_first_providers_agree_on_the_size_of_vectors(as_admin, upstream):
    router = Router.objects.create(name="vectors", type="text-embeddings-inference")

    def body(n: int) -> dict[str, Any]:
        return {"router": router.id, "type": "openai", "url": f"{upstream.url}{n}", "model_name": MODEL}

    sizes = {n: 3 + n % 2 for n in range(10)}
    for n, size in sizes.items():
        upstream.route(f"/{n}/v1/models", model_list())
        upstream.route(f"/{n}/v1/embeddings", {"data": [{"embedding": [0.5] * size}]})
    answers = at_once(as_admin, [("POST", "/v1/admin/providers", body(n)) for n in sizes])
    assert Counter(answer.status_code for answer in answers) == {201: 5, 403: 5}
    assert len(set(Provider.objects.values_list("vector_size", flat=True))) == 1


def test_a_role_given_while_it_is_deleted_is_given_or_gone(as_admin):
    for attempt in range(5):
        role = Role.objects.create(name=f"role {attempt}")
        calls: list[tuple[str, str, Any]] = [
            ("POST", "/v1/admin/users", {"email": f"{attempt}-{n}@example.org", "password": "x", "role": role.id})
            for n in range(4)
        ]
        answers = at_once(as_admin, [*calls, ("DELETE", f"/v1/admin/roles/{role.id}", None)])
        *users, deleted = [answer.status_code for answer in answers]
        assert deleted in (204, 409)
        assert set(users) <= ({404} if deleted == 204 else {201, 404})
        assert Role.objects.filter(id=role.id).exists() == (deleted == 409)
        assert User.objects.filter(role_id=role.id).count() == users.count(201)


def test_simultaneous_limits_are_one_list_or_the_other(as_admin, role):
    routers = [Router.objects.create(name=f"model {n}", type="text-generation") for n in range(4)]
    lists = [
        [{"router": router.id, "type": type, "value": value} for router in routers[value % 2 : value % 2 + 3]]
        for value, type in enumerate(["rpm", "rpm", "tpm", "tpd"] * 3)
    ]
    answers = at_once(as_admin, [("PATCH", f"/v1/admin/roles/{role.id}", {"limits": limits}) for limits in lists])
    assert {answer.status_code for answer in answers} == {204}
    held = sorted(Limit.objects.filter(role=role).values_list("router_id", "type", "value"))
    wanted = [sorted((limit["router"], limit["type"], limit["value"]) for limit in limits) for limits in lists]
    assert held in wanted


def test_simultaneous_logins_leave_one_key(gateway, ada):
    with gateway.client() as client:
        body = {"email": "ada@example.org", "password": PASSWORD}
        answers = at_once(client, [("POST", "/v1/auth/login", body)] * 10)
    assert {answer.status_code for answer in answers} == {200}
    assert ada.keys.filter(name="playground").count() == 1


def test_a_key_made_while_its_user_is_deleted_is_no_error(as_admin):
    role = Role.objects.create(name="leavers")
    for attempt in range(5):
        user = User.objects.create_user(f"{attempt}@example.org", None, role)
        calls: list[tuple[str, str, Any]] = [("POST", "/v1/admin/tokens", {"name": "x", "user": user.id})] * 4
        *made, deleted = at_once(as_admin, [*calls, ("DELETE", f"/v1/admin/users/{user.id}", None)])
        assert {answer.status_code for answer in made} <= {201, 404}
        assert deleted.status_code in (204, 409)  # 409: a key came in between, twice


def test_limits_changed_while_their_routers_are_deleted_are_no_error(as_admin):
    roles = [Role.objects.create(name=f"role {number}") for number in range(4)]
    for attempt in range(3):
        routers = [Router.objects.create(name=f"model {attempt} {n}", type="text-generation") for n in range(4)]
        limits = [{"router": router.id, "type": type} for router in routers for type in ("rpm", "rpd", "tpm", "tpd")]
        for role in roles[::2]:
            for router in routers:
                Limit.objects.open_router(role, router, 1)
        calls: list[tuple[str, str, Any]] = [
            ("PATCH", f"/v1/admin/roles/{role.id}", {"limits": limits[::step]})
            for role, step in zip(roles, (1, -1, 1, -1), strict=True)
        ]
        calls += [("DELETE", f"/v1/admin/routers/{router.id}", None) for router in routers[::-1]]
        answers = at_once(as_admin, calls)
        assert {answer.status_code for answer in answers[:4]} <= {204, 404}, [answer.text for answer in answers]
        assert {answer.status_code for answer in answers[4:]} == {200}, [answer.text for answer in answers]
