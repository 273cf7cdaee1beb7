"""A row of everything the console shows, under the names that somebody gives who means harm."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

from axes.models import AccessAttempt
from django.db import models
from django.utils import timezone

from accounts.models import Key, Organization, Permission, Role, User
from knowledge.models import Chunk, Collection, Document, Space
from routing.models import Provider, Router, RouterName
from tests.conftest import person
from tests.usage.records import fund, record
from usage import ledger
from usage.models import Limit, Reservation

TEXTS = (
    "<img src=x onerror=window.hacked=1>",
    '"><script>window.hacked=1</script>',
    "'-alert(1)-' onfocus=window.hacked=1 autofocus='",
    "{{7*7}} {% debug %} ${7*7}",
    "javascript:window.hacked=1//",
    "\u202etxt.exe\u202c – right to left",
    ("<b>" + "W" * 255)[:255],
)
MARKUP = TEXTS[0]


def seed(upstream_url: str, reader: User) -> None:
    """Rows of all models of the console, seven and more of those that have names; some for the reader's own pages."""
    Key.objects.issue(reader, MARKUP)
    for number, text in enumerate(TEXTS):
        _seed(number, text, upstream_url, reader)
    AccessAttempt.objects.create(
        username=MARKUP, user_agent=MARKUP, path_info=MARKUP, http_accept=MARKUP, failures_since_start=3
    )


def _seed(number: int, text: str, upstream_url: str, reader: User) -> None:
    organization = Organization.objects.create(name=text)
    role = Role.objects.create(name=text, permissions=Permission.values)
    user = person(text[:254], role, organization=organization, name=text)
    fund(user, 100)
    key, _ = Key.objects.issue(user, text)
    router = Router.objects.create(name=text, type="text-generation", user=user)
    RouterName.objects.create(router=router, value=f"{text[:240]} alias")
    # The address is one that no form would take.
    url = f"{upstream_url}{text}" if number else "javascript:window.hacked=1"
    provider = Provider.objects.create(router=router, type="openai", url=url, model_name=text, key="secret", user=user)
    for one in (role, reader.role):
        Limit.objects.open_router(one, router, number * 1000 or None)

    embeddings = Router.objects.create(name=f"{text[:244]} embeds", type="text-embeddings-inference")
    Provider.objects.create(router=embeddings, type="openai", url=upstream_url, model_name=text)
    space = Space.objects.create(router=embeddings, dimensions=8)
    collection = Collection.objects.create(
        name=text, description=text, owner=user, space=space, language="english", visibility="public"
    )
    document = Document.objects.create(
        collection=collection,
        name=text,
        status="failed" if number % 2 else "ready",
        error=text,
        kind="text",
        metadata={text: text},
    )
    Chunk.objects.create(
        document=document, collection=collection, number=0, content=f"{text} in a chunk", metadata={text: text}
    )

    now = timezone.now()
    call: dict[str, Any] = {
        "key_id": key.pk,
        "key_name": text,
        "router_id": router.pk,
        "router_name": text,
        "provider_id": provider.pk,
        "provider_model_name": text,
        "outcome": "upstream_failed" if number % 2 else "finished",
        "status": 502 if number % 2 else 200,
        "ttft_ms": 12,
        "cost": "0.5",
        "gco2eq": "1.5",
    }
    ledger.store([record(uuid4().hex, user=one, created=now.isoformat(), **call) for one in (user, reader)])
    under_way = record(uuid4().hex, user=user, created=now.isoformat(), **call)
    Reservation.objects.create(
        request_id=under_way["request_id"],
        user=user,
        cost=0,
        gco2eq=0,
        prompt_tokens=1,
        completion_tokens=1,
        record=under_way,
        created=now,
        expires=now + timedelta(hours=1),
    )


def row_of(model: type[models.Model]) -> models.Model:
    """The one with the first of the hostile texts, or, of models without names, the oldest."""
    row = model._default_manager.order_by("pk").first()
    assert row is not None, f"tests/browser/hostile.py seeds no row of {model.__name__}"
    return row


def marked(row: models.Model) -> bool:
    """Whether the row's own name is the first of the hostile texts."""
    return any(getattr(row, name, None) == MARKUP for name in ("name", "email", "user_email", "value", "model_name"))
