"""People signed in to the playground: by Django's test client for pages, over HTTP for the chat."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.test import Client

from accounts.models import User
from tests.server import Server

TOKEN = "a" * 32


def session_of(user: User) -> str:
    """The key of a session in which the user is signed in."""
    store = import_module(settings.SESSION_ENGINE).SessionStore()
    store[SESSION_KEY] = str(user.pk)
    store[BACKEND_SESSION_KEY] = "accounts.passwords.PasswordBackend"
    store[HASH_SESSION_KEY] = user.get_session_auth_hash()
    store.save()
    return str(store.session_key)


@pytest.fixture
def browse(gateway: Server) -> Iterator[Callable[[User], httpx.Client]]:
    """An HTTP client with a user's session and the CSRF token of a page."""
    with ExitStack() as stack:

        def _browse(user: User) -> httpx.Client:
            client = stack.enter_context(gateway.client())
            client.cookies.set(settings.SESSION_COOKIE_NAME, session_of(user))
            client.cookies.set(settings.CSRF_COOKIE_NAME, TOKEN)
            client.headers["X-CSRFToken"] = TOKEN
            return client

        yield _browse


@pytest.fixture
def page_of(redis_client: Any) -> Callable[[User], Client]:
    """Django's test client, signed in as a user."""

    def _page_of(user: User, **how: Any) -> Client:
        client = Client(**how)
        client.force_login(user, "accounts.passwords.PasswordBackend")
        return client

    return _page_of
