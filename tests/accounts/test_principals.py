"""Who is calling: which keys open, and which do not."""

from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.utils import timezone

from accounts import keys, principals
from accounts.errors import InvalidKey
from accounts.models import PLAYGROUND, Key, Organization, Permission, Role, User
from opengate import epoch, loops

FORMER, CURRENT = "former secret, long enough to be one", "current secret, long enough to be one"
PAST, FUTURE = timedelta(seconds=-1), timedelta(hours=1)


@async_to_sync
async def find(text):
    """As of now, like every entrance that passes no admission."""
    try:
        await epoch.refresh()
        return await principals.find(text)
    finally:
        await loops.wind_down()


@async_to_sync
async def admitted_again(principal):
    """What an admission does that learns of a newer epoch."""
    try:
        await epoch.refresh()
        return await principals.again(principal)
    finally:
        await loops.wind_down()


@pytest.fixture
def owner(transactional_db):
    role = Role.objects.create(name="owners", permissions=[Permission.READ_METRIC])
    organization = Organization.objects.create(name="Analytical Engines")
    return User.objects.create_user("owner@example.org", None, role, organization=organization, priority=3)


def test_a_key_finds_its_owner_with_role_and_permissions(owner):
    key, text = Key.objects.issue(owner, "laptop")
    principal = find(text)
    assert (principal.key_id, principal.key_name) == (key.id, "laptop")
    assert (principal.user_id, principal.email, principal.priority) == (owner.id, "owner@example.org", 3)
    assert (principal.role_id, principal.organization_id) == (owner.role_id, owner.organization_id)
    assert principal.grants(Permission.READ_METRIC)
    assert not principal.grants(Permission.ADMIN)


def test_a_key_that_nobody_made_opens_nothing(owner):
    with pytest.raises(InvalidKey):
        find(keys.new_key())


def test_an_expired_key_opens_nothing(owner):
    _, open_key = Key.objects.issue(owner, "open", timezone.now() + FUTURE)
    _, closed_key = Key.objects.issue(owner, "closed", timezone.now() + PAST)
    assert find(open_key).key_name == "open"
    with pytest.raises(InvalidKey):
        find(closed_key)


def test_no_key_of_an_expired_user_opens_anything(owner):
    _, text = Key.objects.issue(owner, "laptop")
    assert find(text)
    owner.expires = timezone.now() + PAST
    owner.save()
    with pytest.raises(InvalidKey):
        find(text)


def test_a_deleted_key_opens_nothing_any_more(owner):
    key, text = Key.objects.issue(owner, "laptop")
    assert find(text)
    key.delete()
    with pytest.raises(InvalidKey):
        find(text)


def test_a_caller_whose_key_is_deleted_on_the_way_is_not_admitted(owner):
    key, text = Key.objects.issue(owner, "laptop")
    principal = find(text)
    assert admitted_again(principal) == principal
    key.delete()
    with pytest.raises(InvalidKey):
        admitted_again(principal)


def test_a_changed_role_is_seen_on_the_way(owner):
    principal = find(Key.objects.issue(owner, "laptop")[1])
    owner.role.permissions = []
    owner.role.save()
    assert not admitted_again(principal).grants(Permission.READ_METRIC)


@pytest.mark.parametrize("prefix", ["", "sk-"])
def test_a_digest_out_of_the_table_is_no_key(owner, prefix):
    key, _ = Key.objects.issue(owner, "laptop")
    for stolen in (key.digest, key.digest[:43], key.token):
        with pytest.raises(InvalidKey):
            find(prefix + stolen)


@pytest.mark.parametrize(
    "odd",
    ["", " ", "sk-", "sk-" + "a" * 42 + "\0", "sk-" + "é" * 43, "sk-" + "a" * 1_000_000],
    ids=["nothing", "a space", "the prefix", "a NUL", "unicode", "a megabyte"],
)
def test_a_malformed_key_is_refused(owner, odd):
    with pytest.raises(InvalidKey):
        find(odd)


def test_a_key_made_under_a_former_secret_opens_and_moves_to_the_current_one(owner, settings):
    settings.KEY_SECRETS = [FORMER]
    key, text = Key.objects.issue(owner, "old")
    settings.KEY_SECRETS = [CURRENT, FORMER]
    assert find(text).key_id == key.id
    settings.KEY_SECRETS = [CURRENT]
    key.refresh_from_db()
    assert key.digest == keys.digest(text)
    assert find(text).key_id == key.id


def test_a_key_whose_secret_is_gone_opens_nothing(owner, settings):
    settings.KEY_SECRETS = [FORMER]
    _, text = Key.objects.issue(owner, "old")
    settings.KEY_SECRETS = [CURRENT]
    with pytest.raises(InvalidKey):
        find(text)


def test_a_key_that_is_made_or_has_expired_is_no_news_to_those_who_remember_others(owner, redis_client):
    _, first = Key.objects.open_playground(owner)
    assert find(first)
    before = epoch.known()
    Key.objects.issue(owner, "laptop")
    Key.objects.filter(name=PLAYGROUND).update(expires=timezone.now() + PAST)  # as time does, of which nobody is told
    _, second = Key.objects.open_playground(owner)
    assert find(second)
    assert epoch.known() == before
    Key.objects.open_playground(owner)
    with pytest.raises(InvalidKey):
        find(second)
    assert epoch.known() > before
