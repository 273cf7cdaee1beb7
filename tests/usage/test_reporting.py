"""Reports: by whom, of which days, in which form; and nothing in them that a spreadsheet would run."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import User
from tests.usage.records import record
from usage import ledger, reporting

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


def report(*words: str) -> str:
    out = io.StringIO()
    call_command("usage_report", *words, stdout=out)
    return out.getvalue()


def rows(*words: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report(*words, "--format", "csv"))))


NOVEMBER = ("--month", "2026-11")


@pytest.fixture(autouse=True)
def usage(ada, ben, eve):
    ledger.store(
        [
            record("a", user=ada, created="2026-10-31T23:59:59+00:00", cost="100"),
            record("b", user=ada, created="2026-11-01T00:00:00+00:00", cost="1.5", gco2eq="0.25", router_id=1),
            record("c", user=ada, created="2026-11-30T23:59:59+00:00", cost="0.5", key_id=7, status=503),
            record("d", user=ben, created="2026-11-15T12:00:00+00:00", cost="3", key_id=8, router_id=2),
            record("e", user=eve, created="2026-11-15T12:00:00+00:00", cost="9", router_name="renamed", router_id=1),
            record("f", user=eve, created="2026-12-01T00:00:00+00:00", cost="100"),
        ]
    )


def test_users_from_the_costliest_down(ada, ben, eve):
    found = rows(*NOVEMBER)
    assert [(row["name"], row["requests"], row["errors"], row["cost"]) for row in found] == [
        ("eve@example.org", "1", "0", "9.000000"),
        ("ben@example.org", "1", "0", "3.000000"),
        ("ada@example.org", "2", "1", "2.000000"),
    ]
    assert [row["id"] for row in found] == [str(eve.id), str(ben.id), str(ada.id)]
    assert (found[2]["gco2eq"], found[2]["prompt_tokens"]) == ("0.250000", "2")


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("organization", [("", "9.000000"), ("Ministry of Tests", "5.000000")]),
        ("router", [("renamed", "10.500000"), ("router", "3.000000"), ("router", "0.500000")]),
        ("key", [("key", "10.500000"), ("key", "3.000000"), ("key", "0.500000")]),
        ("provider", [("", "14.000000")]),
    ],
)
def test_other_groups(by, expected):
    assert [(row["name"], row["cost"]) for row in rows(*NOVEMBER, "--by", by)] == expected


def test_days_in_their_order():
    found = rows("--from", "2026-11-01", "--to", "2026-11-15", "--by", "day")
    assert [(row["day"], row["cost"]) for row in found] == [("2026-11-01", "1.500000"), ("2026-11-15", "12.000000")]


def test_a_user_who_is_gone_is_in_the_report(ada):
    ada.delete()
    assert "ada@example.org" in [row["name"] for row in rows(*NOVEMBER)]


def test_json_has_exact_sums():
    found = json.loads(report(*NOVEMBER, "--format", "json"))
    assert (found["from"], found["to"], found["by"]) == ("2026-11-01", "2026-11-30", "user")
    assert found["total"]["cost"] == "14.000000"
    assert [row["cost"] for row in found["rows"]] == ["9.000000", "3.000000", "2.000000"]


def test_the_table_ends_with_a_sum():
    lines = report(*NOVEMBER).splitlines()
    assert lines[0] == "From 2026-11-01 to 2026-11-30, by user:"
    assert lines[-1].split()[:3] == ["all", "4", "1"]
    assert "14.000000" in lines[-1]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", " =x", "＝x", '=HYPERLINK("http://x","y")'])
def test_a_name_that_is_a_formula_is_text_in_csv(eve, name):
    User.objects.filter(id=eve.id).update(email=name)
    ledger.store([record("g", user=User.objects.get(id=eve.id), created="2026-11-16T00:00:00+00:00")])
    assert rows(*NOVEMBER)[0]["name"] == f"'{name}"


@pytest.mark.parametrize(
    "name", ["x\r=1", "x\n=1", "\t=1", "x;=1", "x,@a", "x|+1", "x; -1", "x;\u200b=1", "\x01", "a\0b"]
)
def test_no_part_of_a_name_is_a_formula_wherever_a_cell_may_begin(eve, name):
    ledger.store(
        [record("g", user=eve, key_id=77, key_name=name.replace("\0", ""), created="2026-11-16T00:00:00+00:00")]
    )
    text = report(*NOVEMBER, "--by", "key", "--format", "csv")
    cells = [cell.strip('\u200b "') for cell in re.split("[;,|\\t\\r\\n]", text)]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert len(text.splitlines()) == 5


def test_an_empty_period_is_an_empty_report():
    assert rows("--month", "2020-01") == []
    total = json.loads(report("--month", "2020-01", "--format", "json"))["total"]
    assert {type(total[name]) for name in ("cost", "gco2eq")} == {str}  # as when there are rows
    assert "all" in report("--month", "2020-01")


@pytest.mark.parametrize(
    "words",
    [
        ("--month", "2026-13"),
        ("--month", "November"),
        ("--from", "2026-02-30"),
        ("--from", "2026-11-02", "--to", "2026-11-01"),
        ("--month", "2026-11", "--from", "2026-11-01"),
        ("--by", "colour"),
    ],
)
def test_what_makes_no_sense_is_said(words):
    with pytest.raises(CommandError):
        report(*words)


@pytest.mark.parametrize("words", [("usage_report", "--from", "yesterday"), ("audit_ledger", "--since", "2026-02-30")])
def test_what_is_no_day_is_said(words):
    with pytest.raises(CommandError, match=f"invalid day value: '{words[2]}'"):
        call_command(*words)


@pytest.mark.parametrize("words", [("--month", "9999-12"), ("--month", "0001-01"), ("--to", "0001-01-05")])
def test_the_first_and_the_last_days_there_are(words):
    assert rows(*words) == []


def test_a_name_says_nothing_to_the_terminal(ada):
    ledger.store(
        [record("g", user=ada, created="2026-11-16T00:00:00+00:00", key_id=9, key_name="a\x1b[2J\nb", cost="50")]
    )
    line = report(*NOVEMBER, "--by", "key").splitlines()[3]
    assert line.split()[:2] == ["9", "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}b"]


DAY = 86_400
MOMENTS = st.integers(0, 6 * DAY).map(lambda seconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))


@pytest.fixture
def week(ada):
    """A call every two hours and a bit, for six days; some are not answered, some are embeddings."""
    moments = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=7919 * n) for n in range(6 * DAY // 7919))
    ledger.store(
        [
            record(
                f"w{n}",
                user=ada,
                created=moment.isoformat(),
                status=503 if n % 5 == 0 else 200,
                endpoint="/v1/embeddings" if n % 3 == 0 else "/v1/chat/completions",
            )
            for n, moment in enumerate(moments)
        ]
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(since=MOMENTS, until=st.one_of(st.none(), MOMENTS), endpoint=st.sampled_from([None, "/v1/embeddings"]))
def test_the_number_of_calls_by_sums_is_that_of_the_records(week, ada, since, until, endpoint):
    which = ada.id, since, until, endpoint
    assert reporting.number_answered(*which) == reporting.answered(*which).count()
