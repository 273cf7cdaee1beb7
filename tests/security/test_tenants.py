"""Ids of another tenant on every route there is: they answer as what is not there, and nothing changes."""

import json
import re
from typing import Any

import pytest

from accounts.models import Key, Organization, Permission, Role, User
from knowledge.models import Chunk, Collection, Document
from routing.models import Provider, Router
from tests.conftest import person
from tests.flows.test_routes import routes
from tests.knowledge.conftest import add, collection, embeddings  # noqa: F401
from tests.knowledge.test_tenants import CANARY, calls
from tests.playground.conftest import page_of  # noqa: F401
from usage.models import Limit, UsageRecord


@pytest.fixture
def theirs(target, as_ada, ada, add, collection, router, key_of):  # noqa: F811
    """What ada has, by the names that paths give to ids; all of it holds the canary."""
    key_of(ada, CANARY)
    Collection.objects.filter(id=collection.pk).update(name=CANARY, description=CANARY)
    document = add(f"The {CANARY} beetle.", f"{CANARY}.txt", metadata=json.dumps({CANARY: CANARY}))
    key = Key.objects.get(name=CANARY).pk
    return {
        "organization": ada.organization_id,
        "provider": Provider.objects.get(router=router).pk,
        "role": ada.role_id,
        "router": router.pk,
        "token": key,
        "user": ada.pk,
        "key": key,
        "collection_id": collection.pk,
        "document_id": document.pk,
        "document": document.pk,
        "chunk_id": 0,
        "chunk": 0,
        "model": router.name,
    }


@pytest.fixture
def as_mallory(target, embeddings, key_of):  # noqa: F811
    """A user of another organization and role, who may use the model that embeds and no other."""
    role = Role.objects.create(name="others", permissions=[Permission.CREATE_PUBLIC_COLLECTION])
    Limit.objects.open_router(role, embeddings)
    mallory = person("mallory@example.org", role, organization=Organization.objects.create(name="others"))
    with target.client(key_of(mallory)) as client:
        yield client


def everything() -> list[Any]:
    """All rows that a tenant could lose; the sums that settle and times of use are nobody's to attack here."""
    tables = (Collection, Document, Chunk, User, Role, Organization, Router, Provider, Limit)
    rows: list[Any] = [list(table.objects.order_by("pk").values()) for table in tables]
    return [*rows, list(Key.objects.order_by("pk").values("id", "digest", "user_id", "name", "expires"))]


def test_no_route_with_an_id_takes_that_of_another(theirs, as_mallory):
    before = everything()
    walked = [(method, path) for method, path in sorted(calls()) if "<" in path]
    assert len(walked) > 25
    for method, path in walked:
        names = re.findall(r"<\w+:(\w+)>", path)
        assert set(names) <= set(theirs), f"{path}: say in `theirs` which row of ada's that is"
        address = re.sub(r"<\w+:(\w+)>", lambda match: str(theirs[match[1]]), path)
        body = {"name": "taken", "chunks": [{"content": "x"}], "visibility": "public", "email": "x@example.org"}
        for query in ("", f"?user={theirs['user']}&owner={theirs['user']}&organization={theirs['organization']}"):
            answer = as_mallory.request(method, address + query, json=body)
            expected = 403 if path.startswith("/v1/admin/") else 404
            assert answer.status_code == expected, (method, path, answer.text)
            assert CANARY not in answer.text
            assert "ada@example.org" not in answer.text
    assert everything() == before


def test_no_field_or_filter_takes_the_id_of_another(theirs, as_mallory):
    before = everything()
    ids = {name: value for name, value in theirs.items() if isinstance(value, int)}
    query = ids | {
        "user_id": ids["user"],
        "key_id": ids["key"],
        "owner": ids["user"],
        "collection": ids["collection_id"],
    }
    for path in (
        "/v1/me/keys",
        "/v1/me/usage",
        "/v1/usage",
        "/v1/me",
        "/v1/collections",
        "/v1/documents",
        "/v1/models",
    ):
        answer = as_mallory.get(path, params=query | {"name": CANARY})
        assert answer.status_code in (200, 404, 422)
        assert CANARY not in answer.text.replace(f'"input":"{CANARY}"', ""), path
        assert "ada@example.org" not in answer.text
    form = {"collection_id": str(theirs["collection_id"]), "name": "taken"}
    assert as_mallory.post("/v1/documents", data=form, files={"file": ("x.txt", b"x")}).status_code == 404
    search = {"query": CANARY, "method": "lexical"}
    assert as_mallory.post("/v1/search", json=search | {"document_ids": [ids["document"]]}).json()["data"] == []
    assert as_mallory.post("/v1/search", json=search | {"collection_ids": [ids["collection_id"]]}).status_code == 404
    assert as_mallory.post("/v1/collections", json={"name": "x", "owner": ids["user"], "id": 1}).status_code in (
        201,
        422,
    )
    Collection.objects.filter(owner__email="mallory@example.org").delete()
    assert everything() == before


def test_no_page_of_the_playground_takes_the_id_of_another(theirs, as_mallory, page_of):  # noqa: F811
    client = page_of(User.objects.get(email="mallory@example.org"))
    before = everything()
    with_ids = [path for path, _ in routes() if path.startswith("/playground") and "<" in path]
    assert with_ids == ["/playground/keys/<int:key>/revoke"], "walk this one, too"
    assert client.post(f"/playground/keys/{theirs['key']}/revoke").status_code in (302, 404)
    for path in ("", "/keys", "/usage", "/usage.csv", "/limits", "/snippets", "/search"):
        for method in (client.get, client.post):
            asked = {**theirs, "user": theirs["user"], "collections": theirs["collection_id"], "query": "beetle"}
            answer = method(f"/playground{path}", asked)
            content = b"".join(answer) if not answer.streaming else b""
            assert CANARY.encode() not in content, path
            assert b"ada@example.org" not in content, path
    Key.objects.filter(user__email="mallory@example.org").exclude(name="test").delete()
    assert everything()[:-1] == before[:-1]
    assert Key.objects.filter(pk=theirs["key"]).exists()
    assert not UsageRecord.objects.filter(user__email="ada@example.org", endpoint="/v1/chat/completions").exists()


def test_no_user_without_the_right_opens_a_page_of_the_console(theirs, as_mallory, page_of):  # noqa: F811
    client = page_of(User.objects.get(email="mallory@example.org"))
    for path, _ in routes():
        if path.startswith("/admin/") and path not in ("/admin/login/", "/admin/logout/", "/admin/jsi18n/"):
            address = re.sub(r"<[^>]+>", str(theirs["user"]), path)
            answer = client.get(address)
            assert answer.status_code in (302, 403, 404), path
            assert b"ada@example.org" not in answer.content, path
