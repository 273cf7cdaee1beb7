"""Who sees which page of the console: every page that there is, for each kind of person."""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, resolve
from django.utils import timezone

from accounts.models import CONSOLE_RIGHTS, Permission, Role, User
from routing.models import Router
from tests.conftest import person
from usage.models import Limit

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")

MODELS = {
    f"routing.{action}_{model}"
    for action in ("view", "add", "change", "delete")
    for model in ("router", "routername", "provider")
}
RIGHTS: Mapping[str, set[str]] = {
    "provide_models": MODELS | {"usage.view_limit"},
    "read_metric": {"usage.view_rollup", "routing.view_router", "routing.view_routername", "routing.view_provider"},
}
STAFF = ("provide_models", "read_metric")
STRANGERS = ("create_public_collection", "none", "expired", "anonymous")

# What a page asks that is not one of those each model has: a right, STAFF_PAGE for any, NO_PAGE where nothing is.
STAFF_PAGE = "any right"
NO_PAGE = "nothing is there"
PAGES = {
    "index": STAFF_PAGE,
    "password_change": STAFF_PAGE,
    "password_change_done": STAFF_PAGE,
    "jsi18n": STAFF_PAGE,
    "view_on_site": NO_PAGE,  # no row has a page elsewhere
    "auth_user_password_change": "accounts.change_user",
    "routing_router_test": "routing.change_router",
    "routing_provider_test": "routing.change_provider",
    "usage_usagerecord_export": "usage.view_usagerecord",
    "knowledge_collection_search": "knowledge.view_collection",
    "knowledge_collection_progress": "knowledge.view_collection",
    "knowledge_collection_reembed": "knowledge.change_collection",
    "knowledge_document_progress": "knowledge.view_document",
    "knowledge_document_retry": "knowledge.change_document",
    "accounts_user_keys": "accounts.add_key",
    "accounts_user_unlock": "accounts.change_user",
}
APART = {"login", "logout", "autocomplete", "app_list"}  # open to all, or looked at below
ACTIONS = {"changelist": "view", "add": "add", "change": "change", "delete": "delete"}


def pages() -> Iterator[tuple[str, str]]:
    """Name, and path with 1 for each id, of every page of the console."""

    def walk(patterns: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for pattern in patterns:
            path = prefix + re.sub(r"\(\?P<app_label>[^)]*\)", "routing", str(pattern.pattern)).strip("^$")
            path = path.replace("/?$", "/").removesuffix("$")
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            else:
                assert isinstance(pattern, URLPattern)
                yield str(pattern.name), re.sub(r"<[^>]+>", "1", path)

    (console,) = [one for one in get_resolver().url_patterns if str(one.pattern) == "admin/"]
    yield from walk(console.url_patterns, "/admin/")  # type: ignore[union-attr]


def needed(name: str) -> str | None:
    """The right that the page asks; None when nobody has said."""
    if name in PAGES:
        return PAGES[name]
    for model in admin.site._registry:
        label, model_name = model._meta.app_label, model._meta.model_name
        action = name.removeprefix(f"{label}_{model_name}_")
        if action in ("history", "auditlog"):
            return f"{label}.change_{model_name}"
        if action in ACTIONS and action != name:
            view = "view" if action == "change" else ACTIONS[action]
            return f"{label}.{view}_{model_name}"
    return None


def has(who: str, right: str) -> bool:
    return who in RIGHTS and (right == STAFF_PAGE or right in RIGHTS[who])


def client_of(user: User | None) -> Client:
    client = Client()
    if user is not None:
        client.force_login(user, backend="accounts.passwords.PasswordBackend")
    return client


def asked(path: str, user: Any) -> Any:
    """What the view answers, without the middleware around it."""
    request = RequestFactory().get(path)
    request.user = user
    found = resolve(path)
    return found.func(request, *found.args, **found.kwargs)


@pytest.fixture
def clients(admin) -> dict[str, Client]:
    found = {"admin": client_of(admin), "anonymous": client_of(None)}
    for name in Permission.values:
        if name != Permission.ADMIN:
            role = Role.objects.create(name=name, permissions=[name])
            found[name] = client_of(person(f"{name}@example.org", role))
    found["none"] = client_of(person("none@example.org", Role.objects.create(name="none")))
    yesterday = timezone.now() - timedelta(days=1)
    found["expired"] = client_of(person("expired@example.org", admin.role, expires=yesterday))
    return found


def test_the_rights_are_those_of_this_table():
    assert {str(permission): set(rights) for permission, rights in CONSOLE_RIGHTS.items()} == RIGHTS


def test_every_page_asks_for_its_right(clients):
    seen = 0
    strangers = {who: User.objects.filter(email=f"{who}@example.org").first() or AnonymousUser() for who in STRANGERS}
    for name, path in pages():
        if name in APART or name == "None":  # the last is the redirect of an address without an action, or a 404
            continue
        right = needed(name)
        assert right is not None, f"{path} ({name}) is a new page: say in PAGES which right it asks"
        admins = clients["admin"].get(path).status_code
        for who in STAFF:
            status = clients[who].get(path).status_code
            expected = admins if has(who, right) or right == NO_PAGE else 403
            if admins == 405:  # a button
                status = clients[who].post(path).status_code
                assert (status != 403) == has(who, right), (who, path, name)
            else:
                assert status == expected, (who, path, name)
            seen += 1
        for who in STRANGERS:
            answer = asked(path, strangers[who])
            assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/admin/login/"), (who, path)
    assert seen > 100


def test_who_has_no_right_is_refused_what_pages_do(clients, router):
    """The same for what is sent as for what is shown."""
    for model in admin.site._registry:
        label, name = model._meta.app_label, model._meta.model_name
        row = router.pk if model is Router else 1
        for action, right in (("add/", "add"), (f"{row}/change/", "change"), (f"{row}/delete/", "delete")):
            for who in STAFF:
                if f"{label}.{right}_{name}" not in RIGHTS[who]:
                    answer = clients[who].post(f"/admin/{label}/{name}/{action}", {"post": "yes"})
                    assert answer.status_code == 403, (who, label, name, action)
            for who in STRANGERS:
                assert clients[who].post(f"/admin/{label}/{name}/{action}").status_code == 302
    assert Router.objects.filter(pk=router.pk).exists()


def test_every_action_says_whom_it_is_for():
    for model, console in admin.site._registry.items():
        for action in console.actions or ():
            function = action if callable(action) else getattr(console, action)
            assert getattr(function, "allowed_permissions", None), f"{model.__name__}: {action}"


def test_suggestions_are_for_those_who_see_the_list(clients):
    asked = 0
    for model, console in admin.site._registry.items():
        for field in console.autocomplete_fields:
            remote: Any = model._meta.get_field(field).related_model
            query = {"app_label": model._meta.app_label, "model_name": model._meta.model_name, "field_name": field}
            right = f"{remote._meta.app_label}.view_{remote._meta.model_name}"
            for who, client in clients.items():
                status = client.get("/admin/autocomplete/", query).status_code
                allowed = who == "admin" or has(who, right)
                assert status == (200 if allowed else 302 if who in STRANGERS else 403), (who, query)
                asked += 1
    assert asked > 20


@pytest.mark.parametrize("who", STAFF)
def test_no_page_shows_or_links_what_is_closed(clients, who, router, ada, role, key_of, upstream):
    """From the front page on, along every link."""
    key_of(ada)
    Limit.objects.filter(role=role).update(value=7)
    client, todo, done = clients[who], ["/admin/"], set()
    while todo:
        path = todo.pop()
        done.add(path)
        answer = client.get(path)
        assert answer.status_code in (200, 302), (path, answer.status_code)
        if answer.status_code == 302 or not answer.headers["Content-Type"].startswith("text/html"):
            continue
        page = answer.content.decode()
        for secret in ("upstream-secret", "upstream"[:8] + "...", ada.email, "sk-"):
            assert secret not in page.replace(upstream.url, "").replace("upstream-name", ""), (path, secret)
        links = re.findall(r'(?:href|src)="(/admin/[^"#?]*)', page)
        relative = [re.sub(r"[^/]*$", "", path) + link for link in re.findall(r'href="(\d+/[^"#?]*)"', page)]
        todo += [link for link in {*links, *relative} if link not in done and link not in todo]
    assert f"/admin/routing/router/{router.pk}/change/" in done
    assert ("/admin/usage/limit/" in done) == (who == "provide_models")
    assert not [path for path in done if "/accounts/" in path or "/admin/auditlog" in path]


def test_a_permission_taken_from_the_role_closes_the_page_at_the_next_request(clients):
    client = clients["provide_models"]
    assert client.get("/admin/routing/router/").status_code == 200
    Role.objects.filter(name="provide_models").update(permissions=["read_metric"])
    assert client.get("/admin/routing/router/add/").status_code == 403
    Role.objects.filter(name="provide_models").update(permissions=[])
    assert client.get("/admin/").status_code == 302


def test_what_stands_in_no_table_is_refused(admin):
    staff = person("staff@example.org", Role.objects.create(name="staff", permissions=["provide_models", "unheard_of"]))
    assert staff.is_staff
    assert staff.has_perm("routing.change_router")
    assert staff.has_perms(["routing.change_router", "usage.view_limit"])
    assert not staff.has_perms(["routing.change_router", "accounts.change_role"])
    assert not staff.has_perm("routing.test_router")
    assert not staff.has_module_perms("accounts")
    assert not person("odd@example.org", Role.objects.create(name="odd", permissions=["unheard_of"])).is_staff
    staff.expires = timezone.now()
    assert not staff.has_perm("routing.change_router")
    assert not staff.has_module_perms("routing")
    admin.expires = timezone.now()
    assert not admin.has_perm("routing.change_router")
    assert not admin.has_module_perms("routing")


def test_who_provides_models_deletes_a_router_with_its_limits(clients, router):
    answer = clients["provide_models"].post(f"/admin/routing/router/{router.pk}/delete/", {"post": "yes"})
    assert answer.status_code == 302
    assert not Router.objects.filter(pk=router.pk).exists()
