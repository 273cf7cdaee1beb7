"""Whose account somebody gets who signs in at a provider."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import single_sign_on
from accounts.models import Organization, Role, User
from accounts.sign_ins import Identity
from tests.accounts.identity_provider import (
    CLIENT,
    refused,
    who,
)
from tests.conftest import person
from tests.upstream import Reply


def test_a_verified_email_links_an_account_once_and_for_all(provider, ada):
    provider.claims |= {"email": "ADA@Example.org", "name": "Mallory"}
    provider.sign_in(Client())
    linked = User.objects.get()
    assert (linked.pk, linked.email, linked.sub, linked.iss) == (ada.pk, ada.email, "subject-1", provider.url)
    assert linked.name is None
    provider.claims |= {"email": "elsewhere@example.org", "email_verified": False}
    client = Client()
    provider.sign_in(client)
    assert who(client) == ada
    (entry,) = LogEntry.objects.get_for_object(ada).filter(action=LogEntry.Action.UPDATE)
    assert (entry.changes["sub"], entry.remote_addr) == ([None, "subject-1"], "127.0.0.1")


UNVERIFIED: list[tuple[dict[str, Any], str]] = [
    ({"email_verified": False}, "has not verified"),
    ({"email_verified": "false"}, "has not verified"),
    ({"email_verified": None}, "has not verified"),
    ({"email_verified": 1}, "has not verified"),
    ({"email": None}, "did not tell"),
    ({"email": ""}, "did not tell"),
    ({"email": ["admin@example.org"]}, "did not tell"),
    ({"email": "admin@example.org\x00"}, "did not tell"),
    ({"email": "x" * 250 + "@example.org"}, "did not tell"),
]


def test_an_email_that_is_not_verified_takes_over_nobody(provider, admin):
    honest = provider.claims | {"email": admin.email}
    provider.userinfo = {"sub": "subject-1"}
    for claims, words in UNVERIFIED:
        client, provider.claims = Client(), honest | claims
        assert refused(provider.sign_in(client, "/admin/"), 403, words, client), claims
    assert not User.objects.exclude(sub=None).exists()


@pytest.mark.parametrize("email", ["adm\u0131n@example.org", "admin@e\u212aample.org", "Admın@example.org"])
def test_an_email_that_looks_alike_is_another_one(provider, admin, email):
    admin.email = admin.email.replace("example", "ekample") if "\u212a" in email else admin.email
    admin.save()
    client = Client()
    provider.claims |= {"email": email}
    provider.sign_in(client)
    assert who(client) != admin
    assert User.objects.get(pk=admin.pk).sub is None


def test_an_account_that_is_somebody_elses_there_stays_theirs(provider, ada):
    ada.iss, ada.sub = provider.url, "another-subject"
    ada.save()
    provider.claims |= {"email": ada.email}
    client = Client()
    assert refused(provider.sign_in(client), 403, "belongs to another person", client)


def test_two_accounts_that_differ_in_case_are_not_guessed_among(provider, ada):
    person("ADA@example.org", ada.role)
    provider.claims |= {"email": ada.email}
    client = Client()
    assert refused(provider.sign_in(client), 403, "Several accounts", client)


def test_an_expired_account_stays_closed(provider, ada):
    provider.claims |= {"email": ada.email}
    ada.expires = timezone.now() - timedelta(seconds=1)
    ada.save()
    client = Client()
    assert refused(provider.sign_in(client), 403, "has expired", client)
    ada.iss, ada.sub = provider.url, "subject-1"
    ada.save()
    assert refused(provider.sign_in(client), 403, "has expired", client)


def test_a_new_person_gets_what_the_settings_say(provider, settings):
    settings.OIDC_ORGANIZATION = "Ministry"
    Organization.objects.create(name="Ministry")
    client = Client()
    provider.sign_in(client)
    user = who(client)
    assert (user.email, user.name, user.role.name, user.organization.name) == (
        *("new@example.org", "New Person"),
        *("developers", "Ministry"),
    )
    assert not user.has_usable_password()
    assert LogEntry.objects.get_for_object(user).get(action=LogEntry.Action.CREATE).changes["sub"][1] == "subject-1"
    page = client.get("/playground/password").text
    assert "without a password" in page
    form = {"new_password1": "correct horse 2", "new_password2": "correct horse 2"}
    assert client.post("/playground/password", form).status_code == 403
    assert not User.objects.get().has_usable_password()


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"OIDC_ROLE": ""}, 403, "You have no account"),
        ({"OIDC_ROLE": "no such role"}, 503, "not set up correctly"),
        ({"OIDC_ROLE": "admin"}, 503, "not set up correctly"),
        ({"OIDC_ORGANIZATION": "nowhere"}, 503, "not set up correctly"),
        ({"OIDC_GROUP_ROLES": {"staff": "nothing"}}, 503, "not set up correctly"),
        ({"OIDC_EMAIL_DOMAINS": ["example.com"]}, 403, "may sign in here"),
    ],
    ids=str,
)
def test_nobody_is_made_by_mistake(provider, settings, admin, changes, status, words):
    for name, value in changes.items():
        setattr(settings, name, value)
    client = Client()
    provider.claims |= {"groups": ["staff"]}
    assert refused(provider.sign_in(client), status, words, client)
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("groups", "given"),
    [(["x", "staff"], "staff"), ("root", "admin"), (["root", "staff"], "staff"), ([], "developers"), (7, "developers")],
)
def test_groups_choose_the_role_of_a_new_person(provider, settings, admin, groups, given):
    Role.objects.create(name="staff")
    settings.OIDC_GROUP_ROLES = {"staff": "staff", "root": "admin"}
    settings.OIDC_EMAIL_DOMAINS = ["EXAMPLE.org"]
    client = Client()
    provider.claims |= {"groups": groups}
    provider.sign_in(client)
    assert who(client).role.name == given


@pytest.mark.parametrize("is_signed", [False, True])
def test_what_the_id_token_lacks_is_asked_of_the_provider(provider, settings, is_signed):
    """As ProConnect has it: a signed answer, and nothing about whether the e-mail is verified."""
    provider.claims = {"email_verified": True}
    provider.userinfo = {"sub": "subject-1", "email": "new@example.org", "given_name": "New", "usual_name": "Person"}
    if is_signed:
        signed = provider.signed({**provider.userinfo, "iss": provider.url, "aud": CLIENT})
        provider.upstream.route("/userinfo", lambda request: Reply([signed.encode()], content_type="application/jwt"))
    client = Client()
    assert refused(provider.sign_in(client), 403, "has not verified", client)
    settings.OIDC_TRUST_EMAIL = True
    provider.sign_in(client)
    assert (who(client).email, who(client).name) == ("new@example.org", "New Person")
    provider.userinfo["sub"] = "subject-2"
    provider.upstream.route("/userinfo", lambda request: provider.userinfo)
    assert provider.sign_in(client).status_code == 400


def test_of_many_first_sign_ins_at_a_time_one_makes_the_account(provider):
    new = Identity("https://id.example.org", "s", "new@example.org", is_verified=True, name=None, groups=())
    start = threading.Barrier(8)

    def come(_):
        try:
            start.wait(10)
            return single_sign_on.user_of(new).pk
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(come, range(8)))
    assert {User.objects.get().pk} == found
