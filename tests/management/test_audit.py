"""Every change, through the API, the console or a command, leaves who, what, when, and from which value to which."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.core.management import call_command
from django.utils import timezone

from accounts.models import Key, Role, User
from tests.conftest import PASSWORD
from tests.flows.test_changes_in_force import Console
from tests.management.conftest import World, model_list
from tests.usage.records import fund
from usage.models import Limit


@pytest.fixture
def entries(world):
    """Entries written since the world was made, as (model, action, changes)."""
    last = LogEntry.objects.order_by("-id").values_list("id", flat=True)[0]

    def _entries() -> list[tuple[str, str, dict[str, Any]]]:
        rows = LogEntry.objects.filter(id__gt=last).select_related("content_type").order_by("id")
        return [(row.content_type.model, row.get_action_display(), row.changes or {}) for row in rows]

    return _entries


def test_an_entry_says_who_when_from_where_and_in_which_request(world):
    response = world.client.patch(f"/v1/admin/organizations/{world.ids['organization']}", json={"name": "after"})
    entry = LogEntry.objects.latest("id")
    assert entry.changes == {"name": ["Ministry of Rows", "after"]}
    assert (entry.actor_id, entry.actor_email) == (world.admin.id, "admin@example.org")
    assert (entry.remote_addr, entry.cid) == ("127.0.0.1", response.headers["x-request-id"])
    assert abs((timezone.now() - entry.timestamp).total_seconds()) < 10
    assert (entry.content_type.model, entry.object_pk) == ("organization", str(world.ids["organization"]))


# A change through the API, and what the log says of it: model, action, and some of the fields.
CHANGES: dict[str, tuple[str, str, Any, tuple[str, str, dict[str, Any]]]] = {
    "organization": (
        "POST",
        "/v1/admin/organizations",
        {"name": "x"},
        ("organization", "create", {"name": [None, "x"]}),
    ),
    "role": (
        "PATCH",
        "/v1/admin/roles/{role}",
        {"permissions": ["read_metric"]},
        ("role", "update", {"permissions": [[], ["read_metric"]]}),
    ),
    "user": (
        "PATCH",
        "/v1/admin/users/{user}",
        {"priority": 2},
        ("user", "update", {"priority": [0, 2]}),
    ),
    "budget": (
        "PATCH",
        "/v1/admin/users/{user}",
        {"budget": 3},
        ("user", "update", {"budget": [None, "3.000000"]}),
    ),
    "router": (
        "PATCH",
        "/v1/admin/routers/{router}",
        {"cost_prompt_tokens": 0.5},
        ("router", "update", {"cost_prompt_tokens": ["0.000000", "0.500000"]}),
    ),
    "alias": (
        "PATCH",
        "/v1/admin/routers/{router}",
        {"aliases": ["y"]},
        ("routername", "create", {"value": [None, "y"]}),
    ),
    "provider": (
        "PATCH",
        "/v1/admin/providers/{provider}",
        {"timeout": 7},
        ("provider", "update", {"timeout": [300, 7]}),
    ),
    "token": ("DELETE", "/v1/admin/tokens/{token}", None, ("API key", "delete", {"name": ["theirs", None]})),
    "my key": ("POST", "/v1/me/keys", {"name": "z"}, ("API key", "create", {"name": [None, "z"]})),
    "me": ("PATCH", "/v1/me/info", {"name": "Grace"}, ("user", "update", {"name": [None, "Grace"]})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_through_the_api_is_logged(world, entries, name):
    method, path, body, (model, action, changes) = CHANGES[name]
    world.done(method, path.format(**world.ids), body)
    (found,) = [entry for entry in entries() if entry[0] == model.replace("API key", "key")]
    assert found[1] == action
    for field, values in changes.items():
        assert found[2][field] == values


def test_limits_are_logged_one_by_one_and_only_those_that_change(world, entries):
    path, router = f"/v1/admin/roles/{world.ids['role']}", world.ids["router"]
    first = [{"router": router, "type": type, "value": 1} for type in ("rpm", "rpd")]
    world.done("PATCH", path, {"limits": first})
    second = [first[0] | {"value": 2}, first[0] | {"type": "tpm"}]
    world.done("PATCH", path, {"limits": second})
    world.done("PATCH", path, {"limits": second})
    told = [(action, changes["value"]) for model, action, changes in entries() if model == "limit"]
    assert told[:2] == [("create", [None, 1])] * 2
    assert sorted(told[2:]) == [("create", [None, 1]), ("delete", [1, None]), ("update", [1, 2])]


def test_what_goes_with_a_row_is_logged_too(world, entries):
    world.done("DELETE", f"/v1/admin/routers/{world.ids['router']}")
    assert {(model, action) for model, action, _ in entries()} == {
        ("router", "delete"),
        ("routername", "delete"),
        ("provider", "delete"),
    }


def test_no_secret_is_in_the_log(world, entries):
    world.upstream.reply(model_list())
    secret = "sk-upstream-0123456789-abcdefghij"
    world.make("user", email="x@example.org", password="a very own password")
    world.done("POST", "/v1/admin/providers", world.body("provider") | {"key": secret, "url": f"{world.upstream.url}x"})
    world.done("PATCH", "/v1/me/info", {"current_password": PASSWORD, "password": "another very own password"})
    key = world.done("POST", "/v1/me/keys", {"name": "x"})["key"]
    written = json.dumps(list(LogEntry.objects.values("changes", "object_repr", "additional_data"))).lower()
    told = entries()
    assert ("user", "update", {"password": ["***", "***"]}) in told
    assert any(changes.get("key") == ["none", "***"] for model, _, changes in told if model == "provider")
    for text in (secret, secret[-8:], "very own", "argon2", key, key[9:40], Key.objects.latest("id").digest):
        assert text.lower() not in written


def test_what_was_not_changed_or_not_done_leaves_nothing(world, entries):
    world.done("PATCH", f"/v1/admin/organizations/{world.ids['organization']}", {"name": "Ministry of Rows"})
    world.refused("POST", "/v1/admin/roles", {"name": "clerks"})
    world.refused("DELETE", f"/v1/admin/roles/{world.ids['role']}")
    world.refused("PATCH", f"/v1/admin/users/{world.ids['user']}", {"email": "admin@example.org"})
    assert entries() == []


def test_calls_and_settlements_leave_nothing(world, entries, router, as_ada, ada, chat, records):
    fund(ada, 5)
    before = len(entries())
    assert chat(as_ada).status_code == 200
    records(1)
    assert len(entries()) == before


def test_a_user_who_deletes_itself_still_signs(world, admin):
    Role.objects.create(name="another")
    other = User.objects.create_user("other@example.org", PASSWORD, admin.role)
    _, text = Key.objects.issue(other, "own")
    world.client.headers["Authorization"] = f"Bearer {text}"
    world.done("DELETE", f"/v1/admin/users/{other.id}")
    told = LogEntry.objects.filter(action=LogEntry.Action.DELETE).order_by("-id")[:2]
    assert {entry.content_type.model for entry in told} == {"user", "key"}
    assert {(entry.actor_id, entry.actor_email) for entry in told} == {(None, "other@example.org")}


def test_entries_outlive_who_made_them(world):
    role = world.make("role", name="of another")
    other = User.objects.create_user("other@example.org", PASSWORD, world.admin.role)
    _, text = Key.objects.issue(other, "own")
    mine, world.client.headers["Authorization"] = world.client.headers["Authorization"], f"Bearer {text}"
    world.done("DELETE", f"/v1/admin/roles/{role}")
    entry = LogEntry.objects.latest("id")
    assert entry.actor_id == other.id
    world.client.headers["Authorization"] = mine
    world.done("DELETE", f"/v1/admin/users/{other.id}")
    entry.refresh_from_db()
    assert (entry.actor_id, entry.actor_email) == (None, "other@example.org")


def test_a_command_is_logged_without_a_person(world, entries):
    call_command("createkey", "clerk@example.org", "--name", "by command")
    entry = LogEntry.objects.latest("id")
    assert (entry.content_type.model, entry.actor_email) == ("key", None)
    assert entries()[-1][2]["name"] == [None, "by command"]


@pytest.fixture
def console(gateway, admin):
    with gateway.client() as client:
        client.headers["Origin"] = gateway.url
        yield Console(client, admin.email)


def test_a_change_through_the_console_is_logged(console, world, entries):
    user = world.ids["user"]
    budget = {"account-0-budget": "9", "account-0-allowance": "5", "account-0-period": "month"}
    console.send(f"/admin/accounts/user/{user}/change/", "user_form", name="Changed", **budget)
    assert entries() == [
        ("user", "update", {"name": [None, "Changed"]}),
        ("account", "update", {"allowance": [None, "5"], "period": ["", "month"]}),
        ("user", "update", {"budget": ["5.000000", "9.000000"]}),
    ]
    entry = LogEntry.objects.latest("id")
    assert (entry.actor_email, entry.remote_addr) == ("admin@example.org", "127.0.0.1")
    assert re.fullmatch("[0-9a-f]{32}", entry.cid or "")
    console.delete(f"/admin/accounts/key/{world.ids['token']}/delete/")
    assert entries()[-1][:2] == ("key", "delete")


def test_the_log_is_read_in_the_console_and_not_written(console, world):
    page = console.page("/admin/auditlog/logentry/?q=admin@example.org")
    assert "admin@example.org" in page
    assert "Ministry of Rows" in page
    entry = LogEntry.objects.filter(content_type__model="organization").latest("id")
    one = console.page(f"/admin/auditlog/logentry/{entry.id}/change/")
    assert "Ministry of Rows" in one
    assert 'name="_save"' not in one
    assert "deletelink" not in one
    assert console.client.get("/admin/auditlog/logentry/add/").status_code == 403
    assert console.client.post(f"/admin/auditlog/logentry/{entry.id}/delete/", data={}).status_code == 403


def test_deleting_in_the_console_who_made_changes_is_possible(console, world):
    other = User.objects.create_user("other@example.org", PASSWORD, world.admin.role)
    _, text = Key.objects.issue(other, "own")
    with_other = world.client.headers["Authorization"]
    world.client.headers["Authorization"] = f"Bearer {text}"
    world.done("PATCH", f"/v1/admin/organizations/{world.ids['organization']}", {"name": "by other"})
    world.client.headers["Authorization"] = with_other
    console.delete(f"/admin/accounts/user/{other.id}/delete/")
    assert not User.objects.filter(id=other.id).exists()
    assert LogEntry.objects.filter(actor_email="other@example.org").exists()


def test_the_epoch_moves_with_every_kind_of_change(world, redis_client):
    def epoch() -> int:
        return int(redis_client.get("opengate:epoch"))

    ids, seen = world.ids, [epoch()]
    limits = [{"router": ids["router"], "type": type} for type in ("rpm", "rpd", "tpm", "tpd")]
    for method, path, body in (
        ("POST", "/v1/admin/organizations", {"name": "x"}),
        ("PATCH", f"/v1/admin/roles/{ids['role']}", {"limits": limits}),
        ("PATCH", f"/v1/admin/users/{ids['user']}", {"name": "x"}),
        ("PATCH", f"/v1/admin/routers/{ids['router']}", {"aliases": ["x"]}),
        ("PATCH", f"/v1/admin/providers/{ids['provider']}", {"timeout": 9}),
        ("DELETE", f"/v1/admin/tokens/{ids['token']}", None),
        ("POST", "/v1/me/keys", {"name": "x"}),  # which nobody can know already
    ):
        world.done(method, path, body)
        seen.append(epoch())
    assert [after - before for before, after in pairwise(seen)] == [1] * 6 + [0]
    assert Limit.objects.count() == 4


def test_a_world_of_changes_has_an_entry_each(world: World) -> None:
    made = set(LogEntry.objects.filter(actor_email="admin@example.org").values_list("content_type__model", flat=True))
    assert made == {"organization", "router", "routername", "provider", "role", "user", "key"}
