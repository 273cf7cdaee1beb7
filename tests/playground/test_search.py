"""Search in one's documents: its own page, and the sources of a chat."""

import re
from typing import Any

import pytest

from accounts.models import PLAYGROUND
from tests.conftest import CHAT
from tests.inference.test_chat import events_of
from tests.knowledge.conftest import add, collection, embeddings  # noqa: F401  fixtures
from usage.models import Limit

NOON = "The canteen opens at noon <img src=x onerror=alert(1)>."
NAME = "<b>notes.txt"
FORM = {"query": "When does the canteen open?", "method": "semantic", "limit": "10"}


@pytest.fixture
def document(add):  # noqa: F811
    return add(f"Leave is asked for in writing.\n\n{NOON}", name=NAME, metadata='{"page": 4}')


@pytest.mark.parametrize("method", ["semantic", "lexical", "hybrid"])
def test_results_have_name_page_and_score_and_are_text(browse, ada, document, collection, records, method):  # noqa: F811
    fields = {"method": method, "collections": [str(collection.pk)], "csrfmiddlewaretoken": "a" * 32}
    text = browse(ada).post("/playground/search", data=FORM | fields).text
    assert "1 result" in text
    assert "&lt;b&gt;notes.txt" in text
    assert "page 4" in text
    assert re.search(r"score \d+\.\d{3}", text)
    assert "<img" not in text
    assert records(1)[-1].key_name == PLAYGROUND


def test_what_is_private_stays_so(browse, eve, document, collection):  # noqa: F811
    client = browse(eve)
    assert 'id="no-collections"' in client.get("/playground/search").text
    page = client.post("/playground/search", data=FORM | {"collections": [str(collection.pk)]})
    assert page.status_code == 200
    assert "canteen opens" not in page.text


MISTAKES: list[dict[str, Any]] = [
    {"query": ""},
    {"query": "a\x00b"},
    {"query": "x" * 10_001},
    {"method": "magic"},
    {"limit": "1000000000000000000000"},
    {"limit": "x"},
    {"collections": ["999999"]},
    {"collections": ["9" * 400]},
    {"collections": ["\x00", "x"]},
]


def test_a_bad_search_is_refused_in_words(browse, ada, document):
    client = browse(ada)
    for change in MISTAKES:
        page = client.post("/playground/search", data=FORM | change)
        assert page.status_code == 200
        assert 'class="error"' in page.text, change
        assert 'id="results"' not in page.text


def test_a_model_that_one_may_not_use_is_told(browse, ada, document, embeddings, collection):  # noqa: F811
    Limit.objects.filter(router=embeddings).delete()
    embeddings.save()
    page = browse(ada).post("/playground/search", data=FORM | {"collections": [str(collection.pk)]})
    assert "You may not use the model" in page.text


def test_the_chat_answers_from_documents_and_names_its_sources(browse, ada, document, router, collection):  # noqa: F811
    tools = [{"type": "search", "collection_ids": [collection.pk], "limit": 5}]
    messages = [{"role": "user", "content": FORM["query"]}]
    body = CHAT | {"stream": True, "tools": tools, "messages": messages}
    events = events_of(browse(ada).post("/playground/chat", json=body))
    (result,) = events[-2]["search_results"]
    assert result["document"] == NAME
    assert NOON in result["chunk"]["content"]
    assert result["chunk"]["metadata"]["page"] == 4
