"""Signing in at a scripted provider."""

import pytest

from accounts import identity_provider
from tests.accounts.identity_provider import CLIENT, SECRET, ScriptedProvider


@pytest.fixture
def provider(upstream, settings, role, redis_client):
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET = upstream.url, CLIENT, SECRET
    settings.OIDC_ROLE, settings.OIDC_NAME = role.name, "Example ID"
    identity_provider.forget()
    return ScriptedProvider(upstream)
