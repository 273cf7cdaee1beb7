"""The front page of the console: figures out of roll-ups, what is about to go wrong, what to do first."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Organization, Role, User
from knowledge.models import Collection, Document, Space
from opengate import dashboard
from routing import circuit
from routing.models import Provider, Router
from tests.routing.providers import count_outage
from tests.usage.records import fund, record
from usage import ledger, rollups, shortage, trends
from usage.models import Account, Grain, Limit, Rollup, RollupProgress
from usage.tasks import roll_up_usage

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


@pytest.fixture
def client(admin):
    client = Client()
    client.force_login(admin, backend="accounts.passwords.PasswordBackend")
    return client


def page(client, query=""):
    response = client.get(f"/admin/?{query}")
    assert response.status_code == 200
    return response.content.decode()


def use(user, count=1, *, ago=timedelta(0), name="call", **fields):
    created = (timezone.now() - ago).isoformat()
    costs = {"cost_prompt_tokens": "1000000", "cost_completion_tokens": "1000000", "cost": "2", "gco2eq": "0.5"}
    ledger.store([record(f"{name}-{ago}-{n}", user=user, created=created, **costs | fields) for n in range(count)])


def figures(response):
    return {figure.name: figure for figure in response.context["usage"]["figures"]}


def test_a_fresh_console_says_what_to_do_first(client, ada):
    shown = page(client)
    assert "First steps" in shown
    assert shown.count(">to do<") == 3  # ada is a user
    assert "<canvas" not in shown
    role = Role.objects.get(name="developers")
    router = Router.objects.create(name="m", type="text-generation")
    Provider.objects.create(router=router, type="openai", url="http://127.0.0.1:1", model_name="n", timeout=5)
    Limit.objects.open_router(role, router)
    assert "Ready for the first call" in page(client)
    use(ada, router_id=router.id)
    rollups.roll_up()
    shown = page(client)
    assert "first-steps" not in shown.replace(".first-steps", "")
    assert "<canvas" in shown


def test_figures_are_those_of_the_period_beside_the_one_before(client, ada):
    use(ada, 3, status=200)
    use(ada, 1, status=503, name="error")
    use(ada, 8, ago=timedelta(hours=30))
    rollups.roll_up()
    found = figures(client.get("/admin/?period=24h"))
    assert (found["Requests"].value, found["Errors"].value) == (4, "25.0%")
    assert (found["Tokens"].value, found["Cost"].value, found["Carbon"].value) == (8, Decimal(8), Decimal(2))
    assert found["Requests"].change.startswith("▼ down")
    assert found["Errors"].change == "▲ up 25.0 points"
    assert figures(client.get("/admin/?period=7d"))["Requests"].value == 12
    assert figures(client.get("/admin/?period=30d"))["Requests"].change == "nothing before"


@pytest.mark.parametrize("period", dashboard.PERIODS)
def test_a_chart_has_all_that_its_figures_have(client, ada, period):
    for hours in (0, 5, 20, 50, 120, 700):
        use(ada, ago=timedelta(hours=hours))
    rollups.roll_up()
    response = client.get(f"/admin/?period={period}")
    chart = response.context["usage"]["charts"][0]
    assert sum(sum(series.values) for series in chart.series) == figures(response)["Requests"].value
    assert len(chart.labels) == len(chart.series[0].values)


def test_an_organization_is_seen_alone(client, ada, eve):
    use(ada, 2)
    use(eve, 5, name="eve")
    rollups.roll_up()
    assert figures(client.get("/admin/"))["Requests"].value == 7
    assert figures(client.get(f"/admin/?organization={ada.organization_id}"))["Requests"].value == 2


@pytest.mark.parametrize("query", ["period=1000d", "period=", "organization=x", "organization=999999999999999999999"])
def test_what_is_no_period_or_organization_is_left_aside(client, ada, query):
    use(ada)
    rollups.roll_up()
    assert figures(client.get(f"/admin/?{query}"))["Requests"].value == 1


def test_routers_are_told_with_their_percentiles(client, ada):
    router = Router.objects.create(name="<b>quick</b>", type="text-generation")
    for n in range(100):
        use(ada, router_id=router.id, router_name="as it was", name=f"{n}", latency_ms=10 * n, ttft_ms=n)
    use(ada, 1, name="gone", router_id=987654, router_name="gone away", status=500)
    rollups.roll_up()
    first = datetime.now(UTC) - timedelta(hours=20)
    quick, gone = trends.of_routers(Grain.HOUR, first)
    assert (quick.name, quick.exists, quick.sums.requests) == ("<b>quick</b>", True, 100)
    assert quick.latency["p50"] == pytest.approx(500, rel=0.05)
    assert quick.latency["p95"] == pytest.approx(950, rel=0.05)
    assert quick.ttft["p50"] == pytest.approx(50, rel=0.05)
    assert (gone.exists, gone.latency["p50"]) == (False, None)
    shown = page(client)
    assert "&lt;b&gt;quick&lt;/b&gt;" in shown
    assert "<b>quick" not in shown
    assert "gone away" in shown


def test_circuits_and_what_upstreams_said_are_shown(client, router, redis_client):
    provider = router.providers.get()
    assert "not asked lately" in page(client)
    redis_client.set(f"opengate:probe:{provider.id}", 0)
    for _ in range(circuit.FAILURES_TO_OPEN):
        count_outage(provider.id)
    shown = page(client)
    assert "open, tried again in" in shown
    assert "does not answer" in shown


def test_a_redis_that_is_away_takes_only_what_it_knows(client, router, settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    shown = page(client)
    assert "Redis is away" in shown
    assert "unknown" in shown


def test_a_part_that_fails_takes_no_other_with_it(client, ada, monkeypatch):
    use(ada)
    rollups.roll_up()
    monkeypatch.setattr(shortage, "_SHORT", "SELECT pg_sleep(9) /* %(since)s %(organization)s %(shown)s */")
    monkeypatch.setattr(dashboard, "PATIENCE", "50ms")
    shown = page(client)
    assert "They cannot be shown at the moment." in shown
    assert "<canvas" in shown


def test_budgets_that_end_soon_are_told_the_first_to_end_first(ada, ben, eve):
    now = timezone.now()
    for user in (ada, ben, eve):
        fund(user, 100)
        use(user, 4, name=user.email)
    fund(ada, 4)
    fund(ben, 1)
    roll_up_usage()
    found = shortage.budgets_running_out(now)
    assert [(row.email, row.left, row.recent, row.days) for row in found] == [
        (ben.email, Decimal(1), Decimal(8), 0),
        (ada.email, Decimal(4), Decimal(8), 3),
    ]
    assert shortage.budgets_running_out(now, eve.organization_id or 0) == []
    Account.objects.filter(user=eve).update(allowance=2_000, period="month", refills=now, carbon_granted=3)
    roll_up_usage()
    (money, carbon) = [row for row in shortage.budgets_running_out(now) if row.email == eve.email]
    assert {money.kind, carbon.kind} == {"cost", "gco2eq"}
    assert {money.left, carbon.left} == {Decimal(92), Decimal(1)}


def test_budgets_of_nothing_are_no_shortage(ada):
    fund(ada, 0)
    roll_up_usage()
    assert shortage.budgets_running_out(timezone.now()) == []


def test_documents_that_wait_and_collections_that_move_are_told(client, ada, eve):
    router = Router.objects.create(name="embedder", type="text-embeddings-inference")
    space = Space.objects.create(router=router)
    collection = Collection.objects.create(name="<i>papers</i>", owner=ada, language="english", next_space=space)
    for name, status in (("one", "pending"), ("two", "failed"), ("three", "ready")):
        Document.objects.create(collection=collection, name=name, status=status, error="The model is busy.")
    shown = page(client)
    assert "&lt;i&gt;papers&lt;/i&gt;" in shown
    assert "stands still: its model has no provider" in shown
    assert re.search(r">one</a>, since 0.minutes: The model is busy.", shown)
    counts = dict(client.get("/admin/").context["documents"]["counts"])
    assert counts == {"pending": 1, "parsing": 0, "embedding": 0, "failed": 1}
    other = Organization.objects.create(name="others")
    documents = client.get(f"/admin/?organization={other.id}").context["documents"]
    assert (dict(documents["counts"])["failed"], documents["oldest"], documents["moving"]) == (0, None, [])


def test_the_page_says_how_old_it_is_and_that_no_worker_runs(client, ada):
    assert "Usage was never summed up." in page(client)
    use(ada)
    rollups.roll_up()
    shown = page(client)
    assert re.search(r"As of \d s ago", shown)
    assert "Nothing was summed up" not in shown
    RollupProgress.objects.update(as_of=timezone.now() - timedelta(minutes=5))
    assert "Nothing was summed up for 5 min" in page(client)
    RollupProgress.objects.update(is_backfilled=False, last_day="2026-01-31")
    assert "so far up to 31 January 2026" in page(client)


def test_who_may_see_nothing_sees_nothing(client, ada, monkeypatch):
    use(ada)
    rollups.roll_up()
    monkeypatch.setattr(User, "has_perm", lambda *_: False)
    context = client.get("/admin/").context
    assert all(context[name] is None for name in ("usage", "providers", "budgets", "documents", "steps"))


def test_the_page_asks_the_same_number_of_queries_of_little_and_of_much(client, ada, router):
    use(ada, router_id=router.id)
    rollups.roll_up()
    page(client)  # content types
    with CaptureQueriesContext(
        connection,
    ) as little:
        page(client)
    for n in range(5):
        other = Router.objects.create(name=f"m{n}", type="text-generation")
        Provider.objects.create(router=other, type="openai", url="http://127.0.0.1:1", model_name="n", timeout=5)
        organization = Organization.objects.create(name=f"o{n}")
        user = User.objects.create(email=f"{n}@example.org", role=ada.role, organization=organization)
        fund(user, 0)
        use(user, router_id=other.id, name=f"{n}", ago=timedelta(hours=n))
        collection = Collection.objects.create(
            name="c", owner=user, language="english", next_space=Space.objects.create(router=other)
        )
        Document.objects.create(collection=collection, name="d")
    rollups.roll_up()
    assert Rollup.objects.count() > 10
    with CaptureQueriesContext(connection) as much:
        page(client, "period=90d")
    assert len(much) == len(little) <= 40, [query["sql"][:80] for query in little]
