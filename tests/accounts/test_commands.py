"""`manage.py createadmin`, `createkey` and `revokekey`."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts import keys
from accounts.models import Key, Permission, Role, User

pytestmark = pytest.mark.django_db


def said(*words: str) -> str:
    output = StringIO()
    call_command(*words, stdout=output)
    return output.getvalue()


def test_createadmin_makes_a_user_who_may_do_everything():
    made = json.loads(said("createadmin", "grace@example.org", "--json"))
    user = User.objects.get(email="grace@example.org")
    assert made["email"] == user.email
    assert user.check_password(made["password"])
    assert set(user.role.permissions) == set(Permission.values)
    assert user.keys.get().digest == keys.digest(made["key"])


def test_createadmin_prints_email_password_and_key_a_line_each():
    lines = dict(line.split() for line in said("createadmin", "grace@example.org").splitlines())
    assert list(lines) == ["email", "password", "key"]
    assert keys.is_well_formed(lines["key"])
    assert User.objects.get(email="grace@example.org").check_password(lines["password"])


def test_createadmin_takes_nothing_that_is_no_email():
    with pytest.raises(CommandError, match="no e-mail address"):
        said("createadmin", "grace")


def test_createadmin_says_that_the_user_exists():
    said("createadmin", "grace@example.org")
    with pytest.raises(CommandError, match=r"User grace@example\.org already exists\."):
        said("createadmin", "grace@example.org")
    assert Key.objects.count() == 1


def test_createadmin_gives_no_role_that_cannot_administer():
    Role.objects.create(name="readers", permissions=[Permission.READ_METRIC])
    with pytest.raises(CommandError, match="Role readers exists and does not hold the admin permission"):
        said("createadmin", "grace@example.org", "--role", "readers")
    assert not User.objects.exists()


def test_createkey_prints_the_key_and_nothing_else():
    said("createadmin", "grace@example.org")
    text = said("createkey", "grace@example.org").strip()
    key = Key.objects.get(digest=keys.digest(text))
    assert (key.name, key.expires) == ("command line", None)


def test_createkey_names_the_key_and_lets_it_expire():
    said("createadmin", "grace@example.org")
    made = json.loads(said("createkey", "grace@example.org", "--name", "ci", "--days", "7", "--json"))
    key = Key.objects.get(id=made["id"])
    assert (key.name, key.digest) == ("ci", keys.digest(made["key"]))
    assert key.expires is not None
    assert timedelta(days=6, hours=23) < key.expires - timezone.now() <= timedelta(days=7)


def test_createkey_does_not_know_a_stranger():
    with pytest.raises(CommandError, match=r"User nobody@example\.org not found\."):
        said("createkey", "nobody@example.org")


@pytest.mark.parametrize("email", ["", "  ", "x" * 255, "a\x00b"])
def test_createadmin_refuses_an_email_it_cannot_keep(email):
    with pytest.raises(CommandError, match="e-mail"):
        said("createadmin", email)
    assert not User.objects.exists()


@pytest.mark.parametrize(
    "words", [["--days", "3000000"], ["--days", "0"], ["--days", "-1"], ["--name", "x" * 256], ["--name", " "]]
)
def test_createkey_refuses_what_it_cannot_keep(words):
    said("createadmin", "grace@example.org")
    with pytest.raises(CommandError, match="--"):
        said("createkey", "grace@example.org", *words)
    assert Key.objects.count() == 1


def keys_of_grace() -> list[str]:
    made = json.loads(said("createadmin", "grace@example.org", "--json"))
    return [made["key"], said("createkey", "grace@example.org").strip()]


def test_revokekey_closes_a_key_by_its_id_or_its_text():
    first, second = keys_of_grace()
    id = Key.objects.get(digest=keys.digest(first)).id
    assert "first key" in said("revokekey", str(id))
    (told,) = json.loads(said("revokekey", second, "--json"))
    assert (told["name"], told["user"], told["token"]) == ("command line", "grace@example.org", keys.mask(second))
    assert not Key.objects.exists()


def test_revokekey_closes_all_keys_of_a_user_and_of_no_other():
    keys_of_grace()
    said("createadmin", "ada@example.org")
    lines = said("revokekey", "--user", "grace@example.org").splitlines()
    assert len(lines) == 4  # heads, a rule, two keys
    assert Key.objects.get().user.email == "ada@example.org"
    assert said("revokekey", "--user", "grace@example.org") == "The user has no keys.\n"
    assert json.loads(said("revokekey", "--user", "grace@example.org", "--json")) == []


@pytest.mark.parametrize("name", ["999999", "sk-" + "a" * 43, "sk-short", "first key", "9" * 30])
def test_revokekey_refuses_what_names_no_key_and_does_not_repeat_it(name):
    keys_of_grace()
    with pytest.raises(CommandError) as refused:
        said("revokekey", name)
    assert name not in str(refused.value)
    assert Key.objects.count() == 2


@pytest.mark.parametrize("words", [[], ["1", "--user", "grace@example.org"], ["--user", "nobody@example.org"]])
def test_revokekey_wants_a_key_or_a_user(words):
    keys_of_grace()
    with pytest.raises(CommandError):
        said("revokekey", *words)
    assert Key.objects.count() == 2


def test_createkey_obeys_the_longest_life(settings):
    settings.KEY_MAX_EXPIRATION_DAYS = 30
    said("createadmin", "grace@example.org")
    with pytest.raises(CommandError, match="greater than 30 days"):
        said("createkey", "grace@example.org", "--days", "31")
    said("createkey", "grace@example.org")
    assert all(key.expires for key in Key.objects.all())
