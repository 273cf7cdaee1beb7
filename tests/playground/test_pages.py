"""The playground's pages: who sees them, and what they answer."""

import ast
import csv
import json
import re
import shlex
from datetime import timedelta
from io import StringIO
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.test import Client
from django.utils import timezone

from accounts import keys
from accounts.models import Key
from knowledge.models import Collection
from tests.conftest import PASSWORD, person
from tests.usage.records import fund, record
from usage import ledger
from usage.models import Account, Limit

LOGIN = "/playground/login"
PAGES = [f"/playground{path}" for path in ("", "/search", "/keys", "/usage", "/limits", "/snippets", "/password")]
HOSTILE = "<script>alert('x')</script>\"'`{{ 7*7 }}</textarea>=1+1"


def log_in(client, user, password=PASSWORD, **fields):
    return client.post(LOGIN, {"username": user.email, "password": password, **fields})


# signing in


@pytest.mark.parametrize(
    ("wanted", "reached"),
    [
        ("", "/playground"),
        ("/playground/usage?days=7", "/playground/usage?days=7"),
        ("/admin/", "/admin/"),
        ("https://evil.example/", "/playground"),
        ("//evil.example", "/playground"),
        ("/\\evil.example", "/playground"),
        ("javascript:alert(1)", "/playground"),
        ("/playground/login?next=/playground/login", "/playground"),
    ],
)
def test_the_login_leads_where_one_wanted_to_go_on_this_site(ada, wanted, reached):
    client = Client()
    response = log_in(client, ada, next=wanted)
    assert (response.status_code, response.headers["location"]) == (302, reached)
    assert client.session[SESSION_KEY] == str(ada.pk)
    assert client.get(LOGIN, {"next": wanted}).headers["location"] == reached


@pytest.mark.parametrize("email", ["ada@example.org", "nobody@example.org", "\x00", "x" * 300, ""])
def test_a_login_that_fails_says_so_and_does_not_say_more(ada, email):
    response = Client().post(LOGIN, {"username": email, "password": "wrong"})
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    if "@" in email:
        assert "E-mail and password do not match." in response.text


def test_too_many_failures_close_the_login_for_a_while(ada, redis_client):
    client = Client()
    for _ in range(settings.AXES_FAILURE_LIMIT):
        log_in(client, ada, "wrong")
    assert "Too many failed sign-ins" in log_in(client, ada).text
    assert SESSION_KEY not in client.session


def test_an_expired_account_is_told_so_after_its_password_alone(ada):
    ada.expires = timezone.now() - timedelta(days=1)
    ada.save()
    assert "Your account expired on" in log_in(Client(), ada).text
    assert "expired" not in log_in(Client(), ada, "wrong").text


def test_an_account_that_expires_is_signed_out_at_its_next_page(page_of, ada):
    client = page_of(ada)
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    response = client.get("/playground/keys", follow=True)
    assert response.redirect_chain[-1][0].startswith(LOGIN)
    assert "Your account has expired." in response.text
    assert SESSION_KEY not in client.session


def test_the_way_out_is_a_post(page_of, ada):
    client = page_of(ada)
    assert client.get("/playground/logout").status_code == 405
    assert client.post("/playground/logout").headers["location"] == LOGIN
    assert client.get("/playground").status_code == 302


def test_who_is_signed_in_to_the_console_is_signed_in_here(admin):
    client = Client()
    client.post("/admin/login/", {"username": admin.email, "password": PASSWORD})
    page = client.get("/playground").text
    assert 'href="/admin/"' in page


def test_forms_without_a_token_are_refused(page_of, ada):
    client = page_of(ada, enforce_csrf_checks=True)
    for path in ("/playground/logout", "/playground/keys", "/playground/search", "/playground/password"):
        assert client.post(path).status_code == 403
    assert Client(enforce_csrf_checks=True).post(LOGIN).status_code == 403
    assert not Key.objects.exists()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_closed_leads_back_and_is_kept_by_nobody(ada, page_of, path):
    response = Client().get(path, {"days": 7})
    assert (response.status_code, response.headers["location"]) == (
        302,
        f"{LOGIN}?next={path.replace('/', '%2F')}%3Fdays%3D7",
    )
    page = page_of(ada).get(path)
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert "script-src 'self';" in page.headers["Content-Security-Policy"] + ";"
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*(src=|application/json))|<style|\sstyle=|\son\w+=", page.text)


def test_a_slash_too_many_finds_the_chat(page_of, ada):
    assert page_of(ada).get("/playground/").headers["location"] == "/playground"


def test_pages_say_what_is_missing(page_of, eve):
    client = page_of(eve)
    for path, id in (
        ("", "no-models"),
        ("/search", "no-collections"),
        ("/keys", "no-keys"),
        ("/usage", "no-usage"),
        ("/limits", "no-models"),
        ("/snippets", "no-models"),
    ):
        assert f'id="{id}"' in client.get(f"/playground{path}").text, path


# chat


def test_the_chat_offers_the_models_and_collections_that_one_may_use(page_of, ada, ben, eve, role, router):
    Collection.objects.create(name="mine", owner=ada, language="english")
    Collection.objects.create(name="bens secret", owner=ben, language="english")
    Collection.objects.create(name="for all", owner=eve, language="english", visibility="public")
    text = page_of(ada).get("/playground").text
    assert '<option value="model">' in text
    assert "mine" in text
    assert "for all" in text
    assert "bens secret" not in text
    Limit.objects.filter(router=router, type="rpd").update(value=0)
    assert 'id="no-models"' in page_of(ada).get("/playground").text


def test_a_model_without_providers_or_of_another_type_is_not_offered(page_of, ada, router):
    router.providers.all().delete()
    assert 'id="no-models"' in page_of(ada).get("/playground").text


def test_hostile_names_stay_text(page_of, role, router, organization):
    user = person("<b>eva</b>@example.org", role, organization=organization)
    organization.name = role.name = HOSTILE
    organization.save()
    role.save()
    router.names.filter(value="model").update(value=HOSTILE)
    type(router).objects.filter(pk=router.pk).update(name=HOSTILE)
    Collection.objects.create(name=HOSTILE, owner=user, language="english")
    Key.objects.issue(user, HOSTILE)
    usage = record("1" * 32, user=user, router_name=HOSTILE, key_name=HOSTILE, created=timezone.now().isoformat())
    ledger.store([usage])
    client = page_of(user)
    for path in PAGES:
        text = client.get(path).text
        assert "<script>alert" not in text, path
        assert "</textarea>=1" not in text, path
        assert "<b>eva" not in text, path
    assert "&lt;script&gt;alert" in client.get("/playground/keys").text


# keys


def form_of(page):
    (ticket,) = re.findall(r'name="ticket" value="([\w:-]+)"', page.text)
    return {"ticket": ticket, "name": "notebook", "expires": ""}


def test_a_key_is_shown_once_in_the_answer_itself(page_of, ada):
    client = page_of(ada)
    page = client.post("/playground/keys", form_of(client.get("/playground/keys")))
    (text,) = re.findall(r'<code id="key-text">(sk-[\w-]{43})</code>', page.text)
    key = Key.objects.get()
    assert (key.user, key.name, key.expires) == (ada, "notebook", None)
    assert key.digest == keys.digest(text)
    assert text not in client.get("/playground/keys").text
    assert key.token in client.get("/playground/keys").text
    assert page.headers["Cache-Control"] == "no-store"


def test_a_form_that_is_sent_again_makes_no_second_key(page_of, ada):
    client = page_of(ada)
    form = form_of(client.get("/playground/keys"))
    assert 'id="new-key"' in client.post("/playground/keys", form).text
    again = client.post("/playground/keys", form)
    assert 'id="was-sent"' in again.text
    assert 'id="new-key"' not in again.text
    assert Key.objects.count() == 1
    assert 'id="new-key"' in client.post("/playground/keys", form_of(again)).text


MISTAKES = [
    {"name": ""},
    {"name": "   "},
    {"name": "a\x00b"},
    {"name": "x" * 256},
    {"name": "playground"},
    {"expires": "2020-01-01"},
    {"expires": "99999-01-01"},
    {"expires": "soon"},
    {"expires": "\x00"},
    {"ticket": ""},
    {"ticket": "x" * 5000},
    {"ticket": "\x00" * 22},
]


def test_a_form_with_a_mistake_makes_no_key_and_says_why(page_of, ada):
    client = page_of(ada)
    form = form_of(client.get("/playground/keys"))
    for change in MISTAKES:
        page = client.post("/playground/keys", form | change)
        assert page.status_code == 200
        assert 'class="error"' in page.text or 'role="alert"' in page.text, change
    assert not Key.objects.exists()


def test_a_key_closes_at_the_end_of_its_last_day(page_of, ada):
    client = page_of(ada)
    day = timezone.now().date() + timedelta(days=3)
    client.post("/playground/keys", form_of(client.get("/playground/keys")) | {"expires": day.isoformat()})
    expires = Key.objects.get().expires
    assert expires is not None
    assert (expires.date(), expires.hour, expires.minute) == (day, 23, 59)


def test_the_longest_life_of_keys_holds(page_of, ada, settings):
    settings.KEY_MAX_EXPIRATION_DAYS = 5
    client = page_of(ada)
    today = timezone.now().date()
    for days, made in ((5, 1), (6, 1), (None, 2)):
        last = (today + timedelta(days=days)).isoformat() if days else ""
        client.post("/playground/keys", form_of(client.get("/playground/keys")) | {"expires": last})
        assert Key.objects.count() == made
    assert not Key.objects.exclude(expires__lte=timezone.now() + timedelta(days=5)).exists()


def test_a_key_is_revoked_and_opens_nothing_from_then_on(as_ada, browse, ada):
    assert as_ada.get("/v1/me/info").status_code == 200
    client = browse(ada)
    path = f"/playground/keys/{Key.objects.get().pk}/revoke"
    assert "Revoke the key" in client.get(path).text
    assert client.post(path).headers["location"] == "/playground/keys"
    assert as_ada.get("/v1/me/info").status_code == 401


def test_keys_of_others_are_not_there(page_of, ada, eve, key_of):
    key_of(ada, "adas")
    client = page_of(eve)
    for id in (Key.objects.get().pk, 0, 2**63, 10**40):
        for answer in (client.get(f"/playground/keys/{id}/revoke"), client.post(f"/playground/keys/{id}/revoke")):
            assert answer.status_code == 404
            assert "or it is not yours" in answer.text
    assert "adas" not in client.get("/playground/keys").text
    assert Key.objects.count() == 1


def test_many_keys_come_in_pages(page_of, ada):
    Key.objects.bulk_create(
        Key(user=ada, name=f"key {number}", digest=str(number), token="sk-") for number in range(60)
    )
    client = page_of(ada)
    assert client.get("/playground/keys").text.count('class="mono"') == 50
    for page in ("2", "99", "-1", "x", "9" * 400):
        assert client.get("/playground/keys", {"page": page}).status_code == 200
    assert client.get("/playground/keys", {"page": "2"}).text.count('class="mono"') == 10


# usage


@pytest.fixture
def used(ada, eve):
    """Two calls of ada's today and one long ago, one of eve's."""
    now = timezone.now()
    rows = [
        record("1" * 32, user=ada, created=now.isoformat(), router_id=1, router_name="=cmd", cost="1.5", gco2eq="2"),
        record("2" * 32, user=ada, created=now.isoformat(), router_id=1, router_name="=cmd", status=502, cost="0.5"),
        record("3" * 32, user=ada, created=(now - timedelta(days=60)).isoformat(), router_name="old"),
        record("4" * 32, user=eve, created=now.isoformat(), router_name="eves"),
    ]
    ledger.store(rows)


def test_usage_is_ones_own_of_the_period(page_of, ada, used):
    client = page_of(ada)
    month = client.get("/playground/usage").text
    (requests,) = re.findall(r'<script id="requests" type="application/json">(.*?)</script>', month)
    series = json.loads(requests)["series"]
    assert [sum(one["values"]) for one in series] == [2, 1]
    assert len(series[0]["values"]) == 30
    assert "=cmd" in month
    assert "eves" not in month
    assert ">old<" not in month
    assert ">old<" in client.get("/playground/usage?days=90").text


def test_any_period_is_answered(page_of, ada, used):
    client = page_of(ada)
    for days in ("7", "0", "-1", "1e9", "9" * 400, ""):
        assert client.get("/playground/usage", {"days": days}).status_code == 200


def test_the_csv_has_ones_own_calls_and_no_formula(browse, ada, used):
    with browse(ada).stream("GET", "/playground/usage.csv?days=30") as response:
        assert response.headers["content-type"] == "text/csv; charset=utf-8"
        assert "usage-30-days.csv" in response.headers["content-disposition"]
        rows = list(csv.DictReader(StringIO(response.read().decode())))
    assert {row["request_id"] for row in rows} == {"1" * 32, "2" * 32}
    assert {row["router_name"] for row in rows} == {"'=cmd"}
    assert {row["cost"] for row in rows} == {"1.500000", "0.500000"}


# limits and budget


def test_limits_are_told_in_words_with_what_is_left(browse, as_ada, ada, role, router, chat):
    Limit.objects.filter(role=role, type="rpm").update(value=60)
    Limit.objects.filter(role=role, type="tpd").update(value=1000)
    router.save()
    assert chat(as_ada).status_code == 200
    text = re.sub(r"\s+", " ", browse(ada).get("/playground/limits").text)
    assert '60<br><span class="quiet">59 left</span>' in text
    assert '1,000<br><span class="quiet">991 left</span>' in text
    assert text.count(">unlimited</span>") == 2
    assert chat(as_ada).headers["x-ratelimit-remaining-requests"] == "58"  # looking takes nothing


@pytest.mark.parametrize("strategy", ["moving_window", "sliding_window"])
def test_other_strategies_tell_what_is_left_too(settings, page_of, ada, role, router, strategy):
    settings.RATE_LIMITING_STRATEGY = strategy
    Limit.objects.filter(role=role).update(value=7)
    assert page_of(ada).get("/playground/limits").text.count("7 left") == 4


def test_a_closed_model_is_told_as_closed(page_of, ada, role, router):
    Limit.objects.filter(role=role, type="rpm").update(value=0)
    Limit.objects.filter(role=role, type="rpd").delete()
    text = page_of(ada).get("/playground/limits").text
    assert '<span class="badge bad">closed</span>' in text
    assert text.count('<td class="number">closed</td>') == 2


def test_the_budget_says_what_is_left_and_when_it_refills(page_of, ada):
    fund(ada, 12.5)
    account = Account.objects.get(user=ada)
    account.allowance, account.period, account.refill_hour = 20, "day", 6
    account.set_allowances(timezone.now())
    text = page_of(ada).get("/playground/limits").text
    assert '<dd id="budget-left">20</dd>' in text
    assert "Allowance a day" in text
    assert "06:00 UTC" in text


# snippets


def snippets(client, **query):
    page = client.get(f"/playground/snippets?{urlencode(query)}").text
    found = re.findall(r'<code id="(\w+)-code">(.*?)</code>', page, re.DOTALL)
    unescaped = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")]
    texts = {}
    for id, text in found:
        for escaped, plain in unescaped:
            text = text.replace(escaped, plain)
        texts[id] = text
    return texts


@pytest.mark.parametrize("kind", ["text-generation", "text-embeddings-inference"])
@pytest.mark.parametrize("name", ["model", HOSTILE, "a'; rm -rf ~; '", 'b" \\ \n$(id) `id`', "modèle 😀"])
def test_snippets_have_address_and_model_and_no_key(page_of, ada, router, name, kind):
    type(router).objects.filter(pk=router.pk).update(type=kind, name=name)
    code = snippets(page_of(ada), model=name)
    assert set(code) == {"curl", "openai", "langchain"}
    for text in code.values():
        assert "http://testserver/v1" in text
        assert "OPENGATE_API_KEY" in text
        assert "sk-" not in text
    words = shlex.split(code["curl"].split("\n\n", 1)[1])
    assert json.loads(words[words.index("-d") + 1])["model"] == name
    for language in ("openai", "langchain"):
        constants = {node.value for node in ast.walk(ast.parse(code[language])) if isinstance(node, ast.Constant)}
        assert name in constants


def test_a_snippet_runs_as_it_stands(browse, gateway, ada, router, key_of, monkeypatch, capsys):
    monkeypatch.setenv("OPENGATE_API_KEY", key_of(ada))
    code = snippets(browse(ada))
    for language in ("openai", "langchain"):
        exec(code[language], {})
    assert "Hello there" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["unknown", "x" * 5000, ""])
def test_an_unknown_model_is_the_usual_one(page_of, ada, router, model):
    assert "'model'" in snippets(page_of(ada), model=model)["openai"]


def test_the_address_is_that_behind_a_proxy(gateway, browse, ada, router):
    client = browse(ada)
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3", "Host": "localhost"}
    assert "https://localhost/v1" in client.get("/playground/snippets", headers=headers).text


# password


def test_the_password_takes_the_current_one_and_keeps_this_session(page_of, ada):
    client, other = page_of(ada), page_of(ada)
    new = "four words and a horse"
    form = {"old_password": "wrong", "new_password1": new, "new_password2": new}
    assert "error" in client.post("/playground/password", form).text
    ada.refresh_from_db()
    assert ada.check_password(PASSWORD)
    assert "has been changed" in client.post("/playground/password", form | {"old_password": PASSWORD}).text
    ada.refresh_from_db()
    assert ada.check_password(new)
    assert client.get("/playground").status_code == 200
    assert other.get("/playground").status_code == 302


@pytest.mark.parametrize("new", ["short", "password123", "x" * 73, "a\x00bcdefghij", ""])
def test_a_bad_new_password_is_refused_in_words(page_of, ada, new):
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    page = page_of(ada).post("/playground/password", form)
    assert page.status_code == 200
    assert 'class="error"' in page.text
    ada.refresh_from_db()
    assert ada.check_password(PASSWORD)


# speed


def test_pages_ask_the_database_a_fixed_number_of_times(page_of, ada, role, router, django_assert_max_num_queries):
    for number in range(20):
        Collection.objects.create(name=f"c{number}", owner=ada, language="english")
        Key.objects.create(user=ada, name=f"key {number}", digest=str(number), token="sk-")
        other = type(router).objects.create(name=f"model {number}", type="text-generation")
        router.providers.get().__class__.objects.create(
            router=other, type="openai", url="http://127.0.0.1:9/", model_name="m", timeout=5
        )
        Limit.objects.open_router(role, other)
    client = page_of(ada)
    for path in PAGES:
        with django_assert_max_num_queries(9):
            assert client.get(path).status_code == 200
