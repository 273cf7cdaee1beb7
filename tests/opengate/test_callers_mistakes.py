"""What a caller gets wrong brings down no page and fills no log."""

import logging
import re
from html import unescape

import pytest
from django.conf import settings
from django.contrib import admin as console_site
from django.test import Client

from accounts.models import User
from tests.accounts.test_console_rights import client_of
from tests.conftest import CHAT

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")

COOKIE = settings.SESSION_COOKIE_NAME
NO_SESSIONS = ('"\\000' + "a" * 31 + '"', "a" * 31, "A" * 32, "é" * 32, "a" * 7000, "'; --")


@pytest.mark.parametrize("told", NO_SESSIONS, ids=range(len(NO_SESSIONS)))
def test_a_cookie_that_is_no_session_is_none_and_asks_no_database(told, django_assert_num_queries):
    client = Client(headers={"Cookie": f"{COOKIE}={told}"})
    with django_assert_num_queries(0):
        for path in ("/admin/", "/playground"):
            assert client.get(path).status_code == 302


def test_the_chat_says_so_too(gateway):
    with gateway.client() as client:
        for told in NO_SESSIONS:
            headers = {"Cookie": f"{COOKIE}={told}".encode("latin-1")}
            assert client.post("/playground/chat", json=CHAT, headers=headers).status_code == 401


@pytest.fixture
def lines(monkeypatch):
    """The records that the log writes, as its own handler lets them pass."""
    written: list[logging.LogRecord] = []
    (handler,) = (one for one in logging.getLogger().handlers if one.name == "console")
    monkeypatch.setattr(handler, "emit", written.append)
    return written


def test_a_refusal_leaves_a_line_and_no_traceback(admin, eve, lines):
    client = client_of(admin)
    many = "&".join(f"field{number}=1" for number in range(settings.DATA_UPLOAD_MAX_NUMBER_FIELDS + 1))
    form = "application/x-www-form-urlencoded"
    assert client.get("/admin/routing/router/?user__password__startswith=a").status_code == 400
    assert client.post("/admin/accounts/role/add/", many, content_type=form).status_code == 400
    assert client.post("/admin/accounts/role/add/", "x", content_type="multipart/form-data").status_code == 400
    assert client.get("/admin/routing/router/1/test/").status_code == 405
    assert client.post("/admin/usage/usagerecord/add/").status_code == 403
    assert client.get("/admin/", headers={"Host": "evil.example"}).status_code == 400
    assert len(lines) >= 6
    assert [record.getMessage() for record in lines if record.exc_info or record.exc_text] == []


def test_a_fault_of_ours_leaves_its_traceback(lines):
    try:
        raise RuntimeError("ours")
    except RuntimeError:
        logging.getLogger("django.request").exception("Failed.", extra={"status_code": 500})
        logging.getLogger("usage").exception("Failed.")
    assert [bool(record.exc_info) for record in lines] == [True, True]


NO_IDS = ("²", "٣", "9" * 30, "9" * 5000, "-1", "1e400", "x")


@pytest.mark.parametrize("id", NO_IDS, ids=range(len(NO_IDS)))
def test_what_is_no_id_finds_nothing(admin, id):
    client = client_of(admin)
    for page in ("routing/provider", "routing/router", "accounts/role"):
        assert client.get(f"/admin/{page}/{id}/change/").status_code == 302
        assert client.post(f"/admin/{page}/{id}/change/").status_code == 302
        assert client.post(f"/admin/{page}/{id}/history/").status_code == 404
    for page in ("usage/limit", "accounts/key", "accounts/user", "knowledge/document"):
        asked = {"role": id, "router": id, "user": id, "organization": id, "collection": id}
        assert client.get(f"/admin/{page}/add/", asked).status_code == 200
        assert client.post(f"/admin/{page}/add/", asked).status_code == 200
    assert client.get("/admin/auditlog/logentry/", {"resource_type": id}).status_code == 200
    assert client.get("/admin/knowledge/collection/", {"space": id}).status_code == 200


def test_histories_may_be_posted_to(admin, router):
    assert client_of(admin).post(f"/admin/routing/router/{router.pk}/history/").status_code == 200


@pytest.mark.parametrize(
    "asked",
    ["id__regex=[", "id__range=1", "type__range=", "name__startswith=a"],
)
def test_an_address_asks_no_more_of_a_list_than_its_filters(admin, router, asked):
    client = client_of(admin)
    assert client.get(f"/admin/routing/router/?{asked}").status_code == 400
    assert client.get("/admin/routing/router/?type__exact=text-generation").status_code == 200
    assert client.get("/admin/auditlog/logentry/?action__exact=1&timestamp__isnull=False").status_code == 200


@pytest.mark.parametrize(
    ("page", "column"),
    [
        ("routing/provider", "key"),
        ("accounts/user", "password"),
        ("accounts/key", "digest"),
        ("accounts/role", "permissions"),
        ("axes/accessattempt", "ip_address"),
    ],
)
def test_no_address_asks_for_a_column_without_a_filter(admin, page, column):
    client = client_of(admin)
    for lookup in ("", "__startswith", "__exact", "__gte", "__lt"):
        assert client.get(f"/admin/{page}/", {column + lookup: "a"}).status_code == 400


def test_every_filter_and_order_that_a_list_offers_is_answered(admin):
    """Those of Django, ours, and what was typed into its search."""
    console, asked = client_of(admin), 0
    for model in console_site.site._registry:
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        page = console.get(path).content.decode()
        for query in {unescape(link) for link in re.findall(r'href="(\?[^"]+)"', page)} | {"?q=7", "?o=1", "?p=1"}:
            assert console.get(f"{path}{query}").status_code == 200, f"{path}{query}"
            asked += 1
    assert asked > 80


def test_the_password_of_a_user_without_one_can_be_set(admin, ada):
    console = client_of(admin)
    User.objects.filter(pk=ada.pk).update(password="!")
    assert console.get(f"/admin/accounts/user/{ada.pk}/password/").status_code == 200
