"""The playground's chat over HTTP: a session in place of a key, and all else as the API has it."""

import json
import threading
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from accounts.models import PLAYGROUND
from tests.conftest import CHAT
from tests.inference.test_chat import events_of
from tests.knowledge.conftest import (  # noqa: F401  fixtures
    collection,
    embeddings,
)
from tests.server import is_refused_form
from tests.upstream import WORDS, story
from tests.usage.records import fund
from usage.models import Limit

ADDRESS = "/playground/chat"


def ask(client, **fields):
    return client.post(ADDRESS, json=CHAT | {"stream": True} | fields)


def test_a_session_chats_and_is_recorded_as_the_playground(browse, ada, router, records):
    events = events_of(ask(browse(ada)))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:4]) == "".join(WORDS)
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["completion_tokens"] == 12
    (record,) = records()
    assert (record.user_id, record.key_id, record.key_name) == (ada.id, None, PLAYGROUND)
    assert (record.endpoint, record.outcome, record.total_tokens) == ("/v1/chat/completions", "finished", 21)


def test_a_caller_who_stops_is_settled_as_having_left(browse, ada, router, upstream, records, inflight):
    upstream.reply(chunks=story()[:2], then="stall")
    with browse(ada).stream("POST", ADDRESS, json=CHAT | {"stream": True}) as response:
        assert "Hello" in next(response.iter_lines())
    (record,) = records()
    assert (record.outcome, record.status, record.key_name) == ("client_left", 200, PLAYGROUND)
    assert record.completion_tokens > 0
    assert inflight(router) == 0
    assert upstream.received[0].left.wait(5)


def test_nobody_chats_without_a_session(gateway, router, upstream, browse, ada):
    with gateway.client() as client:
        assert (ask(client).status_code, ask(client).json()["detail"]) == (401, "You are signed out.")
        client.cookies.set(settings.SESSION_COOKIE_NAME, "made-up")
        assert ask(client).status_code == 401
    assert upstream.received == []


def test_a_key_does_not_open_it(as_ada, router, upstream):
    assert ask(as_ada).status_code == 401
    assert upstream.received == []


@pytest.mark.parametrize("token", [None, "b" * 32, "short", "\x00", "a" * 5000], ids=str)
def test_a_form_of_another_site_is_refused(browse, ada, router, upstream, token):
    client = browse(ada)
    del client.headers["X-CSRFToken"]
    headers = {} if token is None or token == "\x00" else {"X-CSRFToken": token}
    response = client.post(ADDRESS, json=CHAT, headers=headers)
    assert (response.status_code, response.json()["detail"]) == (403, "Please load the page again.")
    form = client.post(ADDRESS, data={"csrfmiddlewaretoken": "a" * 32})
    assert form.status_code == 403
    assert upstream.received == []


def test_another_origin_is_refused(browse, ada, router):
    response = browse(ada).post(ADDRESS, json=CHAT, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403


def test_a_host_that_is_not_ours_is_refused(browse, ada, router):
    assert browse(ada).post(ADDRESS, json=CHAT, headers={"Host": "evil.example"}).status_code == 400


def test_an_expired_account_and_a_changed_password_end_it(browse, ada, ben, router):
    of_ada, of_ben = browse(ada), browse(ben)
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    ben.set_password("another one altogether")
    ben.save()
    assert ask(of_ada).status_code == 401
    assert ask(of_ben).status_code == 401


def test_only_post_is_known(browse, ada, router):
    response = browse(ada).get(ADDRESS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_limits_and_budgets_hold(browse, ada, role, router, upstream):
    client = browse(ada)
    Limit.objects.filter(role=role, type="rpm").update(value=1)
    router.cost_prompt_tokens = 1_000_000
    router.save()  # bumps the epoch, which `update` does not
    assert ask(client).status_code == 200
    refused = ask(client)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) > 0
    Limit.objects.filter(role=role, type="rpm").update(value=None)
    router.save()
    fund(ada, 0)
    assert ask(client).json()["detail"] == "Insufficient budget."


def test_the_name_stays_when_the_epoch_moves_on(browse, ada, router, records):
    client = browse(ada)
    ask(client)
    router.save()
    ask(client)
    assert {record.key_name for record in records(2)} == {PLAYGROUND}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"\x00", 422),
        (b"[]", 422),
        (json.dumps(CHAT | {"model": "none\x00"}).encode(), 404),
        (json.dumps(CHAT | {"temperature": "warm"}).encode(), 422),
        (json.dumps(CHAT | {"tools": [{"type": "search", "collection_ids": [999]}]}).encode(), 404),
        (json.dumps(CHAT | {"tools": [{"type": "search", "collection_ids": [10**30]}]}).encode(), 422),
    ],
)
def test_bad_bodies_are_refused_in_words(browse, ada, router, body, status):
    response = browse(ada).post(ADDRESS, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert response.json()["detail"]


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "multipart/form-data", "nonsense", ""])
def test_the_type_of_the_body_opens_nothing(browse, ada, router, kind):
    client = browse(ada)
    answer = client.post(ADDRESS, content=json.dumps(CHAT), headers={"Content-Type": kind})
    assert answer.status_code == 200 or is_refused_form(answer)
    del client.headers["X-CSRFToken"]
    answer = client.post(ADDRESS, content=json.dumps(CHAT), headers={"Content-Type": kind})
    assert answer.status_code == 403 or is_refused_form(answer)


def test_many_chat_at_once(browse, ada, router):
    client, statuses = browse(ada), []
    threads = [threading.Thread(target=lambda: statuses.append(ask(client).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
