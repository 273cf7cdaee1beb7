"""The request explorer: filters that no value breaks, the story of a request, and a CSV file that streams."""

import csv
import io
import time
from datetime import timedelta
from html import unescape

import psutil  # type: ignore[import-untyped]
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Key, User
from routing.models import Provider, Router
from tests.flows.test_changes_in_force import Console
from tests.usage.records import record
from usage import ledger
from usage.explorer import COLUMNS, RequestFilter, Story
from usage.models import UsageRecord

LIST = "/admin/usage/usagerecord/"


def ago(**how: float) -> str:
    return (timezone.now() - timedelta(**how)).isoformat()


@pytest.fixture
def rows(ada, ben, router):
    """By request id: a is ada's, b and c are ben's; c is of yesterday's yesterday."""
    key, _ = Key.objects.issue(ada, "laptop", None)
    provider = router.providers.get()
    at_router = {"router_id": router.id, "router_name": "model", "provider_id": provider.id}
    ledger.store(
        [
            record("a" * 32, user=ada, created=ago(minutes=5), key_id=key.id, key_name="laptop", **at_router),
            record("b" * 32, user=ben, created=ago(hours=2), status=503, outcome="upstream_failed"),
            record("c" * 32, user=ben, created=ago(days=2), status=429, outcome="refused_midway", key_name="gone"),
            record("d" * 32, user=ada, created=ago(days=200), user_id=None, user_email="left@example.org"),
        ]
    )
    return UsageRecord.objects.all()


def found(**asked: str) -> str:
    """The first letters of the request ids."""
    search = RequestFilter(asked)
    letters = "".join(sorted(row.request_id[0] for row in search.of(UsageRecord.objects.all())))
    return letters if search.is_valid() else "; ".join(search.faults)


@pytest.mark.parametrize(
    ("asked", "letters"),
    [
        ({}, "ab"),
        ({"period": "hour"}, "a"),
        ({"period": "week"}, "abc"),
        ({"since": "2020-01-01T00:00"}, "abcd"),
        ({"since": "2020-01-01T00:00", "until": "2020-01-02T00:00"}, ""),
        ({"user": "ADA"}, "a"),
        ({"user": "example.org", "period": "week"}, "abc"),
        ({"user": "left@example.org", "since": "2020-01-01T00:00"}, "d"),
        ({"user": "nobody"}, ""),
        ({"key": "lap"}, "a"),
        ({"key": "gone", "period": "month"}, "c"),
        ({"status": "503"}, "b"),
        ({"status": "4xx", "period": "week"}, "c"),
        ({"status": "2xx"}, "a"),
        ({"status": "200"}, "a"),
        ({"outcome": "upstream_failed"}, "b"),
        ({"q": "D" * 32, "period": "hour"}, "d"),
        ({"router": "999999999999999999"}, ""),
        ({"provider": "17"}, ""),
        ({"nothing": "known"}, "ab"),
    ],
)
def test_requests_are_found_by(rows, asked, letters):
    assert found(**asked) == letters


def test_requests_are_found_by_router_and_provider(rows, router):
    assert found(router=str(router.id)) == found(provider=str(router.providers.get().id)) == "a"


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"user": "\0"}, "User's e-mail, or a part: Null characters are not allowed."),
        ({"key": "x" * 256}, "Key's name, or a part: Ensure this value has at most 255 characters (it has 256)."),
        ({"status": "99999999999"}, "Status: A status is like 429, or like 4xx."),
        ({"status": "4xx' OR 1=1"}, "Status: A status is like 429, or like 4xx."),
        ({"router": "1e3"}, "Router: Select a valid choice. 1e3 is not one of the available choices."),
        ({"router": "9" * 30}, f"Router: Select a valid choice. {'9' * 30} is not one of the available choices."),
        ({"router": "٣"}, "Router: Select a valid choice. ٣ is not one of the available choices."),
        ({"outcome": "good"}, "Outcome: Select a valid choice. good is not one of the available choices."),
        ({"since": "2026-02-30T00:00"}, "From (UTC): Enter a valid date/time."),
        ({"since": "0001-01-01T00:00:00+23:59"}, "From (UTC): The year is between 2000 and 2100."),
        ({"until": "99999-01-01"}, "To (UTC): Enter a valid date/time."),
        ({"since": "2026-01-02T00:00", "until": "2026-01-01T00:00"}, "To (UTC): The end is before the beginning."),
        ({"period": "century"}, "Period: Select a valid choice. century is not one of the available choices."),
        ({"q": "zz"}, "Request id: A request id has 32 hexadecimal digits."),
    ],
)
def test_what_makes_no_sense_is_said_and_finds_nothing(rows, asked, fault):
    assert found(**asked) == fault


@pytest.fixture
def page(client, admin):
    """A page of the console, in this process."""
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    return client.get


@pytest.mark.parametrize(
    "query",
    [
        "user=%00",
        "status=99999999999",
        "since=2026-02-30T00:00",
        "since=0001-01-01T00:00&until=9999-12-31T23:59",
        "p=99999999999999999999",
        "p=x",
        "p=%00",
        "o=1.2.-99",
        "router=%F0%9F%92%A9",
        "user=%FF%FE",
        "user__password__startswith=a",
        "_to_field=%00",
        "e=1",
        "all=",
    ],
)
def test_no_address_breaks_the_list(page, rows, query):
    assert page(f"{LIST}?{query}").status_code in (200, 302, 400)
    assert page(f"{LIST}export/?{query}").status_code in (200, 302, 400)


@pytest.mark.parametrize(
    "address",
    [
        "/admin/accounts/user/?q=%00",
        "/admin/accounts/user/?role__id__exact=%00",
        "/admin/accounts/user/%00/change/",
        "/admin/usage/usagerecord/1%00/change/",
        "/admin/auditlog/logentry/?q=%00",
        "/admin/autocomplete/?term=%00&app_label=usage&model_name=limit&field_name=role",
        "/admin/%00",
        "/admin/login/?next=%00",
    ],
)
def test_a_nul_in_an_address_of_the_console_is_a_bad_request(page, address):
    response = page(address)
    assert response.status_code == 400
    assert "This request cannot be read" in response.content.decode()


def test_what_is_too_large_to_be_an_id_is_no_request(page, rows):
    assert page(f"{LIST}99999999999999999999999/change/").status_code == 302


def test_a_fault_is_shown_where_it_was_made(page, rows):
    text = unescape(page(f"{LIST}?status=lots").content.decode())
    assert "Status: A status is like 429, or like 4xx." in text
    assert "Nothing is looked for" in text
    assert page(f"{LIST}export/?status=lots")["Location"] == f"{LIST}?status=lots"


def test_names_stay_text(page, ada, router):
    hostile = "<script>alert(1)</script>"
    Provider.objects.filter(router=router).update(model_name=hostile)
    Router.objects.filter(id=router.id).update(name=hostile)
    flight = {
        "times_ms": {"recorded": 1},
        "strategy": hostile,
        "providers": [{"id": 1, "model": hostile, "why": hostile}],
    }
    names = {"key_name": hostile, "router_name": hostile, "provider_model_name": hostile, "organization_name": hostile}
    ledger.store([record("a", user=ada, created=ago(minutes=1), flight=flight, **names)])
    row = UsageRecord.objects.get()
    for address in (LIST, f"{LIST}?user={hostile}", f"{LIST}{row.id}/change/"):
        text = page(address).content.decode()
        assert hostile not in text
        assert "&lt;script&gt;alert(1)" in text


FLIGHT = {
    "times_ms": {
        "admitted": 1, "reserved": 2, "waited": 3, "placed": 5, "first_token": 50, "last_byte": 90, "recorded": 100
    },
    "limits": {"rpm": {"limit": 10, "used": 4, "resets_ms": 1500}, "rpd": None, "tpm": None, "tpd": None},
    "budget": {"cost": "0.500000", "gco2eq": "1.000000"},
    "strategy": "cheapest",
    "providers": [
        {"id": 1, "model": "one", "why": "tried"},
        {"id": 2, "model": "two", "why": "full", "takes": 4},
        {"id": 3, "model": "three", "why": "open"},
        {"id": 4, "model": "four", "why": "chosen"},
        {"id": 5, "model": "five", "why": "not_needed"},
    ],
    "tries": [
        {"provider": 1, "began_ms": 2, "took_ms": 3, "came": "failed", "status": 503, "error": "Too busy."},
        {"provider": 4, "began_ms": 5, "took_ms": 85, "came": "answered"},
    ],
}  # fmt: skip


def test_the_story_of_a_request_is_told_in_words(page, ada):
    ledger.store([record("a", user=ada, created=ago(minutes=1), flight=FLIGHT)])
    text = page(f"{LIST}{UsageRecord.objects.get().id}/change/").content.decode()
    for words in (
        "Requests a minute",
        "unlimited",
        "1.50 s",
        "In the order of preference: the cheapest first.",
        "It failed before in this call.",
        "It takes 4 at a time.",
        "Circuit open",
        "The first in order that had room.",
        "One before it had room.",
        "503: Too busy.",
        "From the first token to the last",
    ):
        assert words in text, words
    assert 'style="' not in text


def test_stages_come_in_order_and_within_the_whole(ada):
    stages = Story(UsageRecord(status=200, outcome="finished", flight=FLIGHT)).stages
    assert [stage.start_ms for stage in stages] == sorted(stage.start_ms for stage in stages)
    assert len(stages) == 7
    assert all(float(stage.x[:-1]) + float(stage.width[:-1]) <= 100.01 for stage in stages)


@pytest.mark.parametrize("flight", [None, {}, {"times_ms": {"recorded": 3}}, {"times_ms": {}, "limits": "unchecked"}])
def test_a_record_with_little_or_no_flight_says_so(page, ada, flight):
    ledger.store([record("a", user=ada, created=ago(minutes=1), flight=flight)])
    text = page(f"{LIST}{UsageRecord.objects.get().id}/change/").content.decode()
    if not flight:
        assert "No flight record was kept of this call." in text
    elif "limits" in flight:
        assert "Redis was away: the call went unchecked." in text
    else:
        assert "the gateway answered this call itself" in text


def test_a_page_asks_a_fixed_number_of_queries(page, ada, rows):
    page(LIST)
    with CaptureQueriesContext(connection) as few:
        page(f"{LIST}?user=ada&key=lap")
    ledger.store([record(f"{n:032x}", user=ada, created=ago(minutes=n), key_name="laptop") for n in range(40)])
    with CaptureQueriesContext(connection) as many:
        page(f"{LIST}?user=ada&key=lap")
    assert len(few) == len(many) <= 12


def test_what_takes_too_long_says_so(page, rows, monkeypatch):
    monkeypatch.setattr("usage.admin.LIST_SECONDS", 0.2)
    monkeypatch.setattr(RequestFilter, "of", lambda self, records: records.extra(where=["pg_sleep(1) IS NOT NULL"]))
    response = page(LIST)
    assert response.status_code == 200
    assert "That takes too long to find" in response.content.decode()


def test_the_file_has_what_the_list_shows_and_streams(gateway, admin, ada):
    """The first bytes come long before the last, and the gateway's memory stays flat."""
    failed = {"status": 503, "outcome": "upstream_failed", "cost": "0.000001"}
    ledger.store([record("f" * 32, user=ada, created=ago(minutes=1), key_name="=cmd()", **failed)])
    with connection.cursor() as cursor:
        columns = ", ".join(
            str(f.column) for f in UsageRecord._meta.concrete_fields if f.column not in ("id", "request_id", "created")
        )
        cursor.execute(
            f"INSERT INTO usage_usagerecord (request_id, created, {columns})"
            f" SELECT md5(n::text), created - n * interval '1 ms', {columns}"
            " FROM usage_usagerecord, generate_series(1, 30000) AS n"
        )
    with gateway.client() as client:
        client.headers["Origin"] = gateway.url
        Console(client, admin.email)
        before = memory(gateway)
        started = time.monotonic()
        first = None
        parts = []
        with client.stream("GET", f"{LIST}export/?user=ada&status=503") as response:
            assert response.headers["content-type"] == "text/csv; charset=utf-8"
            assert response.headers["content-disposition"].startswith('attachment; filename="requests-')
            for part in response.iter_bytes():
                first = time.monotonic() - started if first is None else first
                parts.append(part)
        whole = time.monotonic() - started
        grown = memory(gateway) - before
    assert first is not None
    assert first < whole / 3
    assert grown < 40_000_000
    table = list(csv.DictReader(io.StringIO(b"".join(parts).decode(), newline="")))
    assert len(table) == 30_001
    assert list(table[0]) == list(COLUMNS)
    assert (table[0]["key_name"], table[0]["cost"], table[0]["ttft_ms"]) == ("'=cmd()", "0.000001", "")
    assert table[0]["created"].endswith("+00:00")


def memory(gateway) -> int:
    """Bytes that the web process has in memory, its children with it."""
    process = psutil.Process(gateway.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def test_a_stranger_gets_no_file(gateway, ada):
    User.objects.filter(id=ada.id).update(name="Ada")
    with gateway.client() as client:
        assert client.get(f"{LIST}export/").status_code == 302
