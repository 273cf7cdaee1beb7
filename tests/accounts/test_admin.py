"""The console: who gets in, and what its pages do beyond storing rows."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import User
from opengate import once
from routing.models import Router
from tests.conftest import PASSWORD
from tests.usage.records import left, record
from usage import ledger
from usage.models import UsageRecord

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


def signed_in(email: str) -> Client:
    client = Client()
    client.post("/admin/login/", {"username": email, "password": PASSWORD})
    return client


@pytest.fixture
def console(admin) -> Client:
    return signed_in(admin.email)


def test_who_holds_admin_gets_in_and_nobody_else(console, ada):
    assert console.get("/admin/").status_code == 200
    assert signed_in(ada.email).get("/admin/").status_code == 302


def test_an_expired_admin_is_out_at_once(console, admin):
    admin.expires = timezone.now() - timedelta(seconds=1)
    admin.save()
    assert console.get("/admin/").status_code == 302


@pytest.mark.parametrize(
    "path",
    ["accounts/user", "accounts/role", "accounts/organization", "accounts/key", "routing/router", "routing/provider"],
)
def test_every_list_and_every_empty_form_opens(console, router, ada, path):
    for page in (f"/admin/{path}/", f"/admin/{path}/?q=a", f"/admin/{path}/add/"):
        assert console.get(page).status_code == 200


def test_a_user_is_made_with_a_password_a_role_and_a_budget(console, role):
    form = {
        "email": "new@example.org",
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
        "role": role.id,
        "priority": "0",
        "account-TOTAL_FORMS": "1",
        "account-INITIAL_FORMS": "0",
        "account-0-budget": "12.5",
        "account-0-time_zone": "UTC",
        "account-0-refill_day": "1",
        "account-0-refill_hour": "0",
    }
    assert console.post("/admin/accounts/user/add/", form).status_code == 302
    user = User.objects.get(email="new@example.org")
    assert (user.check_password(PASSWORD), str(left(user))) == (True, "12.500000")
    assert user.password.startswith("argon2")


def test_a_key_lives_no_longer_than_the_setting_says(console, ada, settings):
    settings.KEY_MAX_EXPIRATION_DAYS = 30
    form = {"user": ada.id, "name": "new", "expires": "2999-01-01T00:00", "ticket": once.new_ticket()}
    page = console.post("/admin/accounts/key/add/", form)
    assert "cannot be greater than 30 days from now" in page.content.decode()
    assert console.post("/admin/accounts/key/add/", form | {"expires": ""}).status_code == 200
    key = ada.keys.get()
    assert abs(key.expires - timezone.now() - timedelta(days=30)) < timedelta(minutes=1)


def test_a_router_may_not_take_a_name_or_an_alias_of_another(console, router):
    router.names.create(value="taken")
    for name in ("taken", "model"):
        form = {"name": name, "type": "text-generation", "load_balancing_strategy": "shuffle"}
        inlines = {f"providers-{n}_FORMS": "0" for n in ("TOTAL", "INITIAL")}
        page = console.post(
            "/admin/routing/router/add/", form | inlines | {"cost_prompt_tokens": 0, "cost_completion_tokens": 0}
        )
        assert page.status_code == 200
        assert "already exists" in page.content.decode()
    assert Router.objects.count() == 1


def test_history_is_read_and_not_written(console, ada):
    ledger.store([record("a", user=ada)])
    usage = UsageRecord.objects.get()
    assert console.get("/admin/usage/usagerecord/?q=ada").status_code == 200
    assert console.get(f"/admin/usage/usagerecord/{usage.id}/change/").status_code == 200
    assert console.post(f"/admin/usage/usagerecord/{usage.id}/change/", {"cost": 0}).status_code == 403
    assert console.post(f"/admin/usage/usagerecord/{usage.id}/delete/", {"post": "yes"}).status_code == 403


def test_names_are_text_and_never_markup(console, role):
    role.name = "<script>alert(1)</script>"
    role.save()
    page = console.get("/admin/accounts/role/").content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
