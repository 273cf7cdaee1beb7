"""Pages of users and keys: what they show, what they do, and to many at once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.db.models import F
from django.test import Client
from django.utils import timezone

from accounts.errors import LastAdministrator
from accounts.models import Key, Organization, Permission, Role, User
from accounts.tasks import clear_sessions
from opengate import audit, environment, once
from opengate.checks import passwords_go_by_https
from routing.models import Router
from tests.conftest import PASSWORD, person
from tests.usage.records import left, record
from usage import ledger
from usage.models import Account

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")

USERS = "/admin/accounts/user/"
KEY = re.compile("sk-[A-Za-z0-9_-]{43}")


def entering(email: str, password: str = PASSWORD, client: Client | None = None, address: str = "127.0.0.1") -> Client:
    client = client or Client()
    client.post("/admin/login/", {"username": email, "password": password}, REMOTE_ADDR=address)
    return client


def is_in(client: Client) -> bool:
    return client.get(USERS).status_code == 200


@pytest.fixture
def console(admin) -> Client:
    client = Client()
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    return client


def budget(user: User, amount: int) -> None:
    Account.objects.create(user=user, granted=amount)


def key_form(**fields: str) -> dict[str, str]:
    return {"name": "notebook", "expires": "", "ticket": once.new_ticket(), **fields}


def test_a_user_page_says_what_an_operator_asks_first(console, ada, key_of):
    budget(ada, 10)
    Account.objects.filter(user=ada).update(reserved=Decimal("1.5"))
    key_of(ada, "<b>laptop</b>")
    key_of(ada, "old", timezone.now() - timedelta(days=1))
    ledger.store([record("a", user=ada, cost=Decimal(4))])
    page = console.get(f"{USERS}{ada.pk}/change/").content.decode()
    for text in ("<dd>6</dd>", "<dd>1.5</dd>", "<dd>4</dd>", "not locked out", "&lt;b&gt;laptop&lt;/b&gt;", "expired"):
        assert text in page, text
    assert 'max="10' in page
    assert "<b>laptop" not in page
    assert not re.search(r"\sstyle=|<style|<script>", page)
    assert "/admin/usage/usagerecord/?user=ada%40example.org" in page


def test_a_user_page_takes_the_same_queries_however_much_there_is(console, ada, key_of, django_assert_max_num_queries):
    budget(ada, 10)
    for index in range(30):
        key_of(ada, f"key {index}")
    ledger.store([record(f"{index}", user=ada) for index in range(30)])
    console.get(f"{USERS}{ada.pk}/change/")
    with django_assert_max_num_queries(18):
        page = console.get(f"{USERS}{ada.pk}/change/").content.decode()
    assert page.count(">Revoke</a>") == 20
    assert "All 30 keys" in page
    assert len(re.findall("/admin/usage/usagerecord/[0-9]+/change/", page)) == 20


def test_a_key_is_shown_in_the_answer_that_makes_it_and_nowhere_else(console, ada):
    page = console.get(f"{USERS}{ada.pk}/change/").content.decode()
    found = re.search(r'name="ticket" value="([^"]+)"', page)
    assert found
    form = key_form(ticket=found[1])
    answer = console.post(f"{USERS}{ada.pk}/keys/", form)
    (text,) = set(KEY.findall(answer.content.decode()))
    assert (answer.status_code, Key.objects.get().name) == (200, "notebook")
    assert "no-store" in answer.headers["Cache-Control"]
    assert text not in str(answer.cookies) + str(dict(console.session))
    again = console.post(f"{USERS}{ada.pk}/keys/", form)
    assert "was sent before" in again.content.decode()
    assert not KEY.search(again.content.decode())
    assert ada.keys.count() == 1


def test_a_key_is_refused_with_a_reason_and_the_form_stays_filled_in(console, ada):
    for fields, reason in (
        ({"expires": "2001-01-01T00:00"}, "This moment has passed."),
        ({"expires": "soon"}, "Enter a valid date/time."),
        ({"name": ""}, "This field is required."),
        ({"ticket": "forged"}, "too old"),
    ):
        page = console.post(f"{USERS}{ada.pk}/keys/", key_form(**fields)).content.decode()
        assert reason in page
    assert "notebook" in page
    assert not ada.keys.exists()
    assert console.post(f"{USERS}999999/keys/", key_form()).status_code == 404


def test_the_page_of_keys_shows_a_new_one_once_too(console, ada):
    form = key_form() | {"user": str(ada.pk)}
    answer = console.post("/admin/accounts/key/add/", form)
    (text,) = set(KEY.findall(answer.content.decode()))
    assert text not in console.get("/admin/accounts/key/").content.decode()
    assert "was sent before" in console.post("/admin/accounts/key/add/", form).content.decode()
    assert ada.keys.count() == 1


def test_a_revoked_key_is_gone_and_leaves_its_entry(console, ada, admin, key_of):
    key_of(ada, "laptop")
    key = ada.keys.get()
    assert "Revoke this key" in console.get(f"/admin/accounts/key/{key.pk}/change/").content.decode()
    assert "Revoke the key" in console.get(f"/admin/accounts/key/{key.pk}/delete/").content.decode()
    answer = console.post(f"/admin/accounts/key/{key.pk}/delete/", {"post": "yes"})
    assert answer.headers["Location"] == f"{USERS}{ada.pk}/change/"
    assert not ada.keys.exists()
    assert LogEntry.objects.get(action=LogEntry.Action.DELETE).actor_email == admin.email


def sent(console: Client, action: str, users: list[User], **fields: str) -> str:
    form = {"action": action, "_selected_action": [user.pk for user in users], "select_across": "0"}
    return console.post(USERS, form | fields, follow=True).content.decode()


def test_many_are_told_about_before_anything_happens_to_them(console, ada, ben, role):
    budget(ada, 10)
    page = sent(console, "add_budget", [ada, ben])
    for text in ("2 users", ada.email, ben.email, "1 of them have a budget", "1 have no limit: they stay unlimited"):
        assert text in page, text
    assert left(ada) == 10
    page = sent(console, "add_budget", [ada, ben], confirmed="2", amount="2.5")
    assert "1 budgets raised. 1 stay as they were." in page
    assert (left(ada), left(ben)) == (Decimal("12.5"), None)
    assert "Enter a number" in sent(console, "add_budget", [ada], confirmed="1", amount="much")
    assert "They are 1 by now" in sent(console, "add_budget", [ada], confirmed="2", amount="1")
    assert "would grow beyond" in sent(console, "add_budget", [ada], confirmed="1", amount="999999999999")
    assert left(ada) == Decimal("12.5")


def test_what_happens_to_many_leaves_an_entry_for_each(console, admin, ada, ben, eve, key_of):
    other = Organization.objects.create(name="Other")
    key_of(ada)
    key_of(ben)
    LogEntry.objects.all().delete()
    assert "2 users changed" in sent(console, "change_role", [ada, ben], confirmed="2", role=str(eve.role_id))
    assert "2 users changed" in sent(
        console, "change_organization", [ada, ben], confirmed="2", organization=str(other.pk)
    )
    assert "2 keys revoked" in sent(console, "revoke_keys", [ada, ben], confirmed="2")
    assert "2 accounts closed" in sent(console, "expire", [ada, ben], confirmed="2", when="")
    entries = LogEntry.objects.filter(actor=admin, remote_addr="127.0.0.1")
    told = sorted(name for entry in entries.filter(action=1) for name in entry.changes or ())
    assert told == [*("expires", "expires", "organization", "organization", "role", "role")]
    assert entries.filter(action=2).count() == 2
    ada.refresh_from_db()
    assert (ada.role, ada.organization, ada.is_active, ada.keys.count()) == (eve.role, other, False, 0)


def test_nobody_locks_out_themselves_or_the_last_administrator(console, admin, ada, role):
    asked: list[tuple[str, dict[str, str]]] = [
        ("expire", {"when": "2999-01-01T00:00"}),
        ("change_role", {"role": str(role.pk)}),
    ]
    for action, fields in asked:
        page = sent(console, action, [admin, ada], confirmed="2", **fields)
        assert "Your own account is among them" in page
    page = console.get(f"{USERS}{admin.pk}/delete/", follow=True).content.decode()
    assert "This is your own account" in page
    form = {"email": admin.email, "role": role.pk, "priority": 0, "expires_0": "2030-01-01", "expires_1": "00:00"}
    form |= {"account-TOTAL_FORMS": 0, "account-INITIAL_FORMS": 0}
    page = console.post(f"{USERS}{admin.pk}/change/", form).content.decode()
    assert "you would demote yourself" in page
    assert "you would lock out yourself" in page
    with pytest.raises(LastAdministrator), transaction.atomic():
        User.objects.filter(pk=admin.pk).change(expires=timezone.now())


def test_nobody_closes_the_console_to_all_of_their_role(console, admin, role):
    unticked = {"name": "admin", "initial-permissions": admin.role.permissions}
    page = console.post(f"/admin/accounts/role/{admin.role_id}/change/", unticked).content.decode()
    assert "This is your own role" in page
    admin.role.refresh_from_db()
    assert Permission.ADMIN in admin.role.permissions
    own = unticked | {"permissions": "admin"}
    assert console.post(f"/admin/accounts/role/{admin.role_id}/change/", own).status_code == 302
    role.permissions = [Permission.ADMIN]
    role.save()
    unticked = {"name": "developers", "initial-permissions": role.permissions}
    assert console.post(f"/admin/accounts/role/{role.pk}/change/", unticked).status_code == 302
    role.refresh_from_db()
    assert role.permissions == []


def sent_from(page: str) -> dict[str, str]:
    """What a browser sends of a page's form, as far as it has inputs and selects."""
    found = dict(re.findall(r'<input type="(?:text|hidden|email|number)" name="([^"]+)" value="([^"]*)"', page))
    for name, options in re.findall(r'<select name="([^"]+)".*?>(.*?)</select>', page, re.DOTALL):
        found[name] = next(iter(re.findall(r'<option value="([^"]*)" selected', options)), "")
    return found


def test_two_who_change_a_user_undo_nothing_of_each_other(console, ada, eve):
    page = console.get(f"{USERS}{ada.pk}/change/").content.decode()
    assert ada.password not in page
    User.objects.filter(pk=ada.pk).update(role=eve.role, expires="2030-01-01T00:00:00Z")
    assert console.post(f"{USERS}{ada.pk}/change/", sent_from(page) | {"name": "Ada"}).status_code == 302
    ada.refresh_from_db()
    assert (ada.name, ada.role, ada.expires.year) == ("Ada", eve.role, 2030)


@pytest.mark.parametrize("model", [User, Organization])
def test_of_two_who_take_a_name_the_later_is_told(console, role, monkeypatch, model):
    """As when both were found free."""
    person("taken@example.org", role)
    Organization.objects.create(name="taken")
    monkeypatch.setattr(model, "validate_unique", lambda *args, **how: None)
    if model is User:
        fields = {"email": "taken@example.org", "role": role.pk, "priority": 0, "usable_password": "false"}
        fields |= {"account-TOTAL_FORMS": 0, "account-INITIAL_FORMS": 0}
        answer = console.post(f"{USERS}add/", fields, follow=True)
    else:
        answer = console.post("/admin/accounts/organization/add/", {"name": "taken"}, follow=True)
    assert "took one of the names" in answer.content.decode()


def while_logged(monkeypatch, name: str, work: Callable[[], object]) -> None:
    """Do the work of somebody else just when the entries of the log of changes are written."""
    real = getattr(audit, name)

    def recorded(given: Any) -> None:
        real(given)
        with ThreadPoolExecutor(1) as other:
            other.submit(in_other_connection, work).result(10)

    monkeypatch.setattr(audit, name, recorded)


def in_other_connection(work: Callable[[], object]) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '5s'")  # of a lock that somebody holds
        work()
    finally:
        connection.close()


def test_calls_are_settled_while_many_budgets_are_raised(console, ada, monkeypatch):
    budget(ada, 10)
    while_logged(monkeypatch, "record_all", lambda: Account.objects.filter(user=ada).update(spent=F("spent") + 4))
    assert "1 budgets raised" in sent(console, "add_budget", [ada], confirmed="1", amount="5")
    assert left(ada) == 11


def test_a_budget_that_somebody_sets_meanwhile_stays_as_it_was_set(console, ada, monkeypatch):
    budget(ada, 10)
    while_logged(monkeypatch, "record_all", lambda: Account.objects.filter(user=ada).update(granted=100))
    assert "The budgets were changed meanwhile" in sent(console, "add_budget", [ada], confirmed="1", amount="5")
    assert left(ada) == 100
    assert not LogEntry.objects.filter(changes__budget=["10.000000", "15.000000"]).exists()


def test_calls_are_settled_while_many_keys_are_revoked(console, ada, key_of, monkeypatch):
    key_of(ada)
    while_logged(monkeypatch, "record_deletions", lambda: ada.keys.update(last_used=timezone.now()))
    assert "1 keys revoked" in sent(console, "revoke_keys", [ada], confirmed="1")
    assert not ada.keys.exists()


def test_a_key_that_somebody_deletes_meanwhile_is_told_once(console, ada, key_of, monkeypatch):
    key_of(ada)
    key_of(ada)
    first = ada.keys.all()[0]
    chosen = {"action": "revoke", "_selected_action": [key.pk for key in ada.keys.all()]}
    while_logged(monkeypatch, "record_deletions", lambda: first.delete())
    page = console.post("/admin/accounts/key/", chosen, follow=True).content.decode()
    assert "The keys were changed meanwhile" in page
    assert LogEntry.objects.filter(action=LogEntry.Action.DELETE).count() == ada.keys.count() == 1


def test_thousands_are_changed_in_a_few_statements(console, role, organization, django_assert_max_num_queries):
    User.objects.bulk_create(User(email=f"{index}@many.example", role=role) for index in range(1000))
    Account.objects.bulk_create(Account(user=user, granted=1) for user in User.objects.filter(role=role))
    one = User.objects.filter(role=role)[:1]
    query = f"{USERS}?q=many.example"
    for action, fields in (
        ("change_organization", {"organization": str(organization.pk)}),
        ("add_budget", {"amount": "1"}),
        ("expire", {}),
    ):
        form = {"action": action, "_selected_action": [one[0].pk], "select_across": "1"}
        with django_assert_max_num_queries(24):
            assert "1000 users" in console.post(query, form).content.decode()
        with django_assert_max_num_queries(24):
            assert console.post(query, form | fields | {"confirmed": "1000"}).status_code == 302
    assert User.objects.filter(organization=organization, expires__lte=timezone.now()).count() == 1000
    assert LogEntry.objects.filter(object_repr__endswith="@many.example").count() == 1000 * 3


def test_a_user_who_owns_routers_is_kept_with_a_reason(console, ada):
    Router.objects.create(name="adas", type="text-generation", user=ada)
    for method in (console.get, console.post):
        page = method(f"{USERS}{ada.pk}/delete/", {"post": "yes"}, follow=True).content.decode()
        assert "User cannot be deleted because the user owns routers: [adas]." in page
    Router.objects.all().delete()
    assert console.post(f"{USERS}{ada.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not User.objects.filter(pk=ada.pk).exists()


def test_users_are_found_by_what_an_operator_has(console, ada, ben, eve, key_of):
    key_of(ada)
    budget(ben, 0)
    User.objects.filter(pk=eve.pk).update(expires=timezone.now())
    User.objects.filter(pk=ben.pk).update(expires=timezone.now() + timedelta(days=7))

    def found(query: str) -> set[str]:
        page = console.get(USERS + query).content.decode()
        return {name for name in ("ada", "ben", "eve") if f">{name}@example.org<" in page}

    assert found("?q=" + ada.keys.get().token) == {"ada"}
    assert found("?q=BEN") == {"ben"}
    assert found("?state=expired") == {"eve"}
    assert found("?state=soon") == {"ben"}
    assert found("?state=open") == {"ada", "ben"}
    assert found("?budget=out") == {"ben"}
    assert found("?budget=unlimited") == {"ada", "eve"}
    assert found("?budget=nonsense") == {"ada", "ben", "eve"}


def test_mistaken_passwords_close_the_account_to_their_address_until_somebody_unlocks_it(console, admin, settings):
    settings.AXES_FAILURE_LIMIT = 2
    for _ in range(2):
        entering(admin.email, "wrong", address="10.0.0.1")
    refused = Client().post("/admin/login/", {"username": admin.email, "password": PASSWORD}, REMOTE_ADDR="10.0.0.1")
    assert "Too many failed logins" in refused.content.decode()
    assert is_in(entering(admin.email, address="10.0.0.2"))
    for _ in range(2):
        entering(admin.email, "wrong", address="10.0.0.1")
    page = console.get(f"{USERS}{admin.pk}/change/").content.decode()
    assert "locked out" in page
    assert "10.0.0.1" in page
    assert "unlocked" not in page
    console.post(f"{USERS}{admin.pk}/unlock/")
    assert is_in(entering(admin.email, address="10.0.0.1"))
    assert console.get(f"{USERS}{admin.pk}/unlock/").status_code == 405


def test_a_login_takes_a_new_session(admin):
    client = Client()
    client.get("/admin/login/")
    session = client.session
    session["before"] = 1
    session.save()
    before = session.session_key
    assert before
    client.cookies["opengate-session"] = before
    entering(admin.email, client=client)
    assert is_in(client)
    assert client.session.session_key != before
    assert not Session.objects.filter(session_key=before).exists()
    cookie = client.cookies["opengate-session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"], cookie["max-age"]) == (True, "Lax", "", 43_200)


def test_a_new_password_ends_other_sessions(admin):
    here, elsewhere = entering(admin.email), entering(admin.email)
    form = {"old_password": PASSWORD, "new_password1": "staple battery horse", "new_password2": "staple battery horse"}
    assert here.post("/admin/password_change/", form).status_code == 302
    assert is_in(here)
    assert not is_in(elsewhere)


def test_a_session_ends_with_its_user(admin):
    other = person("other@example.org", admin.role)
    client = entering(other.email)
    assert is_in(client)
    other.delete()
    assert not is_in(client)


def test_ended_sessions_are_cleared(admin):
    entering(admin.email)
    entering(admin.email)
    first = Session.objects.all()[0]
    Session.objects.filter(pk=first.pk).update(expire_date=timezone.now())
    clear_sessions()
    assert Session.objects.count() == 1


@pytest.mark.parametrize(
    ("variables", "https"),
    [
        ({}, False),
        ({"OPENGATE_TRUSTED_ORIGINS": "https://gate.example"}, True),
        ({"OPENGATE_TRUSTED_ORIGINS": "https://gate.example,http://localhost:8000"}, False),
        ({"OPENGATE_TRUSTED_ORIGINS": "https://gate.example", "OPENGATE_HTTPS": "false"}, False),
        ({"OPENGATE_HTTPS": "true"}, True),
    ],
)
def test_cookies_are_kept_to_https_where_people_come_by_it(variables, https):
    assert environment.read(variables)[0].comes_by_https is https


def test_a_public_console_without_https_is_warned_of(settings):
    settings.HTTPS, settings.ALLOWED_HOSTS = False, ["gate.example"]
    assert [warning.id for warning in passwords_go_by_https(None)] == ["opengate.W002"]
    settings.HTTPS = True
    assert passwords_go_by_https(None) == []
    settings.HTTPS, settings.ALLOWED_HOSTS = False, ["localhost"]
    assert passwords_go_by_https(None) == []


def test_history_is_signed_and_stays_text(console, admin, ada, key_of):
    Organization.objects.create(name="<script>alert(1)</script>")
    organization = Organization.objects.get(name__startswith="<")
    page = console.get(f"/admin/accounts/organization/{organization.pk}/history/").content.decode()
    assert "by the command line" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    console.post(f"/admin/accounts/organization/{organization.pk}/change/", {"name": "<i>renamed</i>"})
    page = console.get(f"/admin/accounts/organization/{organization.pk}/history/").content.decode()
    assert f"by {admin.email}" in page
    assert "<i>renamed" not in page
    key_of(ada, "laptop")
    page = console.get(f"/admin/auditlog/logentry/?about=user-{ada.pk}").content.decode()
    assert "laptop" in page
    assert console.get("/admin/auditlog/logentry/?about=role-x&resource_type=x").status_code == 200
    assert console.get("/admin/accounts/user/999999/history/").status_code == 404


def test_the_log_of_changes_is_searched_by_who_and_what(console, admin, role):
    console.post(f"/admin/accounts/role/{role.pk}/change/", {"name": "renamed"})
    Role.objects.create(name="quiet")
    entry = LogEntry.objects.filter(actor=admin).first()
    for term, count in ((entry.cid if entry else "none", 0), ("quiet", 1), ("%", 0)):
        answer = console.get("/admin/auditlog/logentry/", {"q": term})
        assert answer.status_code == 200
        if count:
            assert "quiet" in answer.content.decode()
