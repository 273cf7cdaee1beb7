"""Users, keys and oneself, as the contract means them."""

import time
from datetime import UTC, timedelta

import pytest
from django.utils import timezone

from accounts.models import Key, User
from opengate.fields import MAX_TIMESTAMP
from tests.conftest import PASSWORD
from tests.server import Server
from tests.usage.records import fund
from usage.models import DailyUsage, Limit, UsageRecord


@pytest.fixture
def ada_in_full(ada, router):
    """ada with everything that a careless change could wipe out."""
    ada.expires, ada.priority = timezone.now() + timedelta(days=1), 2
    ada.save()
    fund(ada, 5)
    return ada


def test_leaving_out_organization_budget_and_expiry_clears_them(as_admin, ada_in_full):
    path = f"/v1/admin/users/{ada_in_full.id}"
    before = as_admin.get(path).json()
    assert as_admin.patch(path, json={"name": "Ada"}).status_code == 204
    after = as_admin.get(path).json()
    assert (after["organization"], after["budget"], after["expires"]) == (None, None, None)
    unchanged = {"id", "email", "role", "priority", "created", "sub", "iss", "object"}
    assert {name: before[name] for name in unchanged} == {name: after[name] for name in unchanged}
    assert after["name"] == "Ada"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400, "-1" + "0" * 400])
@pytest.mark.parametrize("field", ["budget", "priority", "expires", "organization", "role"])
def test_a_number_beyond_all_bounds_is_a_422(as_admin, ada, field, number):
    body = f'{{"budget": 5, "{field}": {number}}}'
    answer = as_admin.patch(f"/v1/admin/users/{ada.id}", content=body, headers={"Content-Type": "application/json"})
    if field in ("organization", "role") and number.startswith("-1") and "e" not in number:
        assert answer.status_code == 404  # an id, of no row
    else:
        assert answer.status_code == 422
        assert [fault["loc"] for fault in answer.json()["detail"]] == [["body", field]]


def test_changing_oneself_touches_nothing_else(as_ada, ada_in_full):
    before = as_ada.get("/v1/me/info").json()
    body = {"name": "Ada", "budget": 1000, "expires": None, "priority": 9, "role": 1, "permissions": ["admin"]}
    assert as_ada.patch("/v1/me/info", json=body).status_code == 204
    after = as_ada.get("/v1/me/info").json()
    assert {**before, "name": "Ada", "updated": 0} == {**after, "updated": 0}
    assert after["updated"] >= before["updated"]
    assert after["budget"] == 5


def test_a_new_password_of_ones_own_takes_the_current_one(as_ada, ada):
    body = {"current_password": PASSWORD, "password": "battery staple"}
    assert as_ada.patch("/v1/me/info", json=body).status_code == 204
    ada.refresh_from_db()
    assert ada.check_password("battery staple")


def test_an_account_without_a_password_may_set_its_first(as_ada, ada):
    ada.set_unusable_password()
    ada.save()
    assert as_ada.patch("/v1/me/info", json={"password": "battery staple"}).status_code == 204
    ada.refresh_from_db()
    assert ada.check_password("battery staple")


def test_an_administrator_sets_a_password_without_the_current_one(as_admin, ada):
    assert as_admin.patch(f"/v1/admin/users/{ada.id}", json={"password": " spaced "}).status_code == 204
    ada.refresh_from_db()
    assert ada.check_password(" spaced ")


def test_limits_of_zero_are_hidden_from_their_owner(as_ada, ada, router, role):
    Limit.objects.filter(role=role, type="rpd").update(value=0)
    Limit.objects.filter(role=role, type="rpm").update(value=7)
    limits = as_ada.get("/v1/me/info").json()["limits"]
    assert {(limit["type"], limit["value"]) for limit in limits} == {("rpm", 7), ("tpm", None), ("tpd", None)}


def test_an_expired_account_sees_that_it_has_expired_and_nothing_else(as_ada, ada):
    assert as_ada.get("/v1/me/keys").status_code == 200
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    for method, path in (
        ("GET", "/v1/me/keys"),
        ("POST", "/v1/me/keys"),
        ("GET", "/v1/me/usage"),
        ("GET", "/v1/models"),
    ):
        response = as_ada.request(method, path, json={"name": "x"} if method == "POST" else None)
        assert (response.status_code, response.json()["detail"]) == (401, "Invalid API key.")
    assert as_ada.get("/v1/me/info").json()["expires"] == int(ada.expires.timestamp())
    assert as_ada.patch("/v1/me/info", json={"name": "Ada"}).status_code == 204


def test_an_administrator_reads_an_expired_account_and_opens_it_again(as_admin, as_ada, ada):
    ada.expires = timezone.now() - timedelta(days=1)
    ada.save()
    assert as_admin.get(f"/v1/admin/users/{ada.id}").json()["expires"] == int(ada.expires.timestamp())
    assert as_ada.get("/v1/me/keys").status_code == 401
    as_admin.patch(f"/v1/admin/users/{ada.id}", json={"organization": ada.organization_id}).raise_for_status()
    assert as_ada.get("/v1/me/keys").status_code == 200


def test_a_key_opens_from_its_making_to_its_deletion(gateway, as_ada):
    made = as_ada.post("/v1/me/keys", json={"name": "notebook"}).json()
    assert made["key"] == made["token"]
    with gateway.client(made["key"]) as client:
        assert client.get("/v1/me/info").status_code == 200
        assert as_ada.delete(f"/v1/me/keys/{made['id']}").status_code == 204
        assert client.get("/v1/me/info").status_code == 401


def test_a_key_is_masked_after_its_making(as_ada):
    made = as_ada.post("/v1/me/keys", json={"name": "notebook"}).json()
    shown = as_ada.get(f"/v1/me/keys/{made['id']}")
    assert shown.json()["token"] == f"{made['key'][:8]}...{made['key'][-8:]}"
    assert made["key"] not in shown.text + as_ada.get("/v1/me/keys").text


def test_two_keys_may_have_one_name(as_ada):
    names = [as_ada.post("/v1/me/keys", json={"name": "same"}).status_code for _ in range(2)]
    assert names == [201, 201]


def test_expired_keys_are_not_listed(as_admin, as_ada, ada):
    Key.objects.issue(ada, "old", timezone.now() - timedelta(seconds=1))
    old = Key.objects.get(name="old")
    assert [key["name"] for key in as_ada.get("/v1/me/keys").json()["data"]] == ["test"]
    assert as_ada.get(f"/v1/me/keys/{old.id}").status_code == 404
    assert as_admin.get(f"/v1/admin/tokens/{old.id}").status_code == 404
    assert "old" not in as_admin.get("/v1/admin/tokens").text
    assert as_admin.delete(f"/v1/admin/tokens/{old.id}").status_code == 204


def test_tokens_are_listed_of_all_or_of_one(as_admin, as_ada, ada, admin):
    assert {token["user"] for token in as_admin.get("/v1/admin/tokens").json()["data"]} == {ada.id, admin.id}
    assert {token["user"] for token in as_admin.get(f"/v1/admin/tokens?user={ada.id}").json()["data"]} == {ada.id}
    assert as_admin.get("/v1/admin/tokens?user=999999").json()["total"] == 0


def test_users_are_found_by_role_organization_and_email(as_admin, ada, ben, eve):
    for query, found in (
        (f"role={ada.role_id}", [ada, ben]),
        (f"organization={ada.organization_id}", [ada, ben]),
        (f"role={eve.role_id}", [eve]),
        ("email=eve@example.org", [eve]),
        ("email=EVE@example.org", None),
        ("role=999999", []),
    ):
        response = as_admin.get(f"/v1/admin/users?{query}")
        assert response.status_code == (404 if found is None else 200)
        if found is not None:
            assert [user["email"] for user in response.json()["data"]] == [user.email for user in found]


def test_deleting_a_user_closes_its_keys_and_keeps_its_usage(as_admin, as_ada, ada, router, chat, records):
    assert chat(as_ada).status_code == 200
    records(1)
    assert as_admin.delete(f"/v1/admin/users/{ada.id}").status_code == 204
    assert as_ada.get("/v1/me/info").status_code == 401
    record = UsageRecord.objects.get()
    assert (record.user_id, record.user_email, record.key_name) == (ada.id, "ada@example.org", "test")


def test_administrators_may_delete_themselves(as_admin, admin):
    assert as_admin.delete(f"/v1/admin/users/{admin.id}").status_code == 204
    assert as_admin.get("/v1/me/info").status_code == 401


def test_usage_is_listed_newest_first_with_all_figures(as_ada, ada, router, chat, records):
    router.cost_prompt_tokens = 2
    router.save()
    assert chat(as_ada).status_code == 200
    assert chat(as_ada, stream=True).status_code == 200
    assert chat(as_ada, model="none").status_code == 404
    records(2)
    listed = as_ada.get("/v1/me/usage").json()
    assert listed["total"] == 2
    streamed, plain = listed["data"]
    assert (plain["model"], plain["key"], plain["endpoint"]) == ("model", "test", "/v1/chat/completions")
    assert (plain["method"], plain["status"]) == ("POST", 200)
    usage = plain["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 12, 21)
    assert usage["cost"] == 0.000018
    assert set(usage["carbon"]["kWh"]) == set(usage["carbon"]["kgCO2eq"]) == {"min", "max"}
    assert set(usage["impacts"]) == {"kWh", "kgCO2eq"}
    assert usage["metrics"]["ttft"] is None
    assert streamed["usage"]["metrics"]["ttft"] is not None
    assert streamed["usage"]["metrics"]["latency"] >= 0


def test_usage_is_listed_by_period_and_endpoint(as_ada, as_eve, ada, router, chat, records):
    assert chat(as_ada).status_code == 200
    records(1)
    long_ago = timezone.now() - timedelta(days=40)
    UsageRecord.objects.update(created=long_ago)
    DailyUsage.objects.update(day=long_ago.astimezone(UTC).date())
    moment = int(UsageRecord.objects.get().created.timestamp())

    def total(**query):
        return as_ada.get("/v1/me/usage", params=query).raise_for_status().json()["total"]

    assert total() == 0
    assert total(start_time=moment, end_time=moment) == 1
    assert total(start_time=moment + 1) == 0
    assert total(start_time=0, end_time=moment - 1) == 0
    assert total(start_time=0, endpoint="/v1/chat/completions") == 1
    assert total(start_time=0, endpoint="/v1/embeddings") == 0
    assert as_eve.get("/v1/me/usage?start_time=0").json()["total"] == 0
    assert total(start_time=MAX_TIMESTAMP) == total(start_time=MAX_TIMESTAMP, end_time=MAX_TIMESTAMP) == 0
    assert total(start_time=0, end_time=MAX_TIMESTAMP) == 1


def test_usage_shows_answered_calls_only(as_ada, ada, router, upstream, chat, records):
    upstream.reply({"message": "no"}, status=400)
    assert chat(as_ada).status_code == 400
    assert records(1)[0].status == 400
    assert as_ada.get("/v1/me/usage").json()["total"] == 0


@pytest.fixture(scope="module")
def strict_gateway(_gateway, django_db_blocker):
    """A web process that gives keys a month at most, and a login two tries."""
    with django_db_blocker.unblock():
        server = Server(OPENGATE_KEY_MAX_EXPIRATION_DAYS="30", OPENGATE_LOGIN_FAILURES="2").start()
    yield server
    server.stop()


def test_a_key_lives_no_longer_than_the_setting_says(gateway, strict_gateway, admin, key_of):
    month = 30 * 86_400
    with strict_gateway.client(key_of(admin)) as client:
        for path in ("/v1/me/keys", "/v1/admin/tokens"):
            body = {"name": "x", "user": admin.id}
            response = client.post(path, json=body | {"expires": int(time.time()) + month + 60})
            detail = "Token expiration timestamp cannot be greater than 30 days from now."
            assert (response.status_code, response.json()["detail"]) == (400, detail)
            soon = int(time.time()) + 3600
            for given, expected in ((None, time.time() + month), (soon, soon)):
                id = client.post(path, json=body | {"expires": given}).raise_for_status().json()["id"]
                assert abs(client.get(f"{path}/{id}").json()["expires"] - expected) < 5


# Signing in


@pytest.fixture
def login(gateway):
    with gateway.client() as client:
        yield lambda email, password: client.post("/v1/auth/login", json={"email": email, "password": password})


def test_a_login_makes_a_key_for_an_hour_in_place_of_the_last(gateway, login, ada):
    first, second = (login("ada@example.org", PASSWORD).json() for _ in range(2))
    with gateway.client(first["key"]) as client:
        assert client.get("/v1/me/info").status_code == 401
    with gateway.client(second["key"]) as client:
        keys = client.get("/v1/me/keys").json()["data"]
    assert [(key["id"], key["name"]) for key in keys] == [(second["id"], "playground")]
    assert abs(keys[0]["expires"] - time.time() - 3600) < 5
    ada.refresh_from_db()
    assert ada.last_login is not None


def test_a_login_leaves_other_keys_and_other_people_alone(login, as_ada, ada, ben):
    login("ben@example.org", PASSWORD).raise_for_status()
    login("ada@example.org", PASSWORD).raise_for_status()
    assert sorted(Key.objects.values_list("user__email", "name")) == [
        ("ada@example.org", "playground"),
        ("ada@example.org", "test"),
        ("ben@example.org", "playground"),
    ]


def test_an_expired_account_signs_in_and_sees_that_it_has_expired(gateway, login, ada):
    User.objects.update(expires=timezone.now() - timedelta(seconds=1))
    with gateway.client(login("ada@example.org", PASSWORD).json()["key"]) as client:
        assert client.get("/v1/me/info").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_mistaken_passwords_close_the_account_to_that_address_for_a_while(gateway, strict_gateway, ada, ben):
    def tried(client, email, password):
        return client.post("/v1/auth/login", json={"email": email, "password": password})

    with strict_gateway.client() as client:
        answers = [tried(client, "ada@example.org", "wrong") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [401, 429, 429]
        assert answers[2].json()["detail"] == "Too many failed logins, please try again later."
        assert int(answers[2].headers["retry-after"]) > 0
        assert tried(client, "ada@example.org", PASSWORD).status_code == 429
        assert tried(client, "ben@example.org", PASSWORD).status_code == 200


def test_mistakes_about_nobody_are_counted_too(gateway, strict_gateway):
    with strict_gateway.client() as client:
        body = {"email": "nobody@example.org", "password": "x"}
        statuses = [client.post("/v1/auth/login", json=body).status_code for _ in range(3)]
    assert statuses == [404, 429, 429]


def test_a_good_login_forgives_mistakes(gateway, strict_gateway, ada):
    with strict_gateway.client() as client:
        for password, status in (("wrong", 401), (PASSWORD, 200), ("wrong", 401), (PASSWORD, 200)):
            body = {"email": "ada@example.org", "password": password}
            assert client.post("/v1/auth/login", json=body).status_code == status


def test_the_console_closes_to_mistaken_passwords_too(gateway, strict_gateway, admin):
    with strict_gateway.client(follow_redirects=True) as client:
        page = ""
        for password in ("wrong", "wrong", PASSWORD):
            client.get("/admin/login/")
            form = {"username": admin.email, "password": password}
            token = client.cookies["csrftoken"]
            page = client.post("/admin/login/", data=form | {"csrfmiddlewaretoken": token}).text
    assert "Too many failed logins" in page
