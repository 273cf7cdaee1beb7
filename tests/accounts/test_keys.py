"""What an API key looks like, and what is kept of it."""

import re

import pytest
from django.db import connection

from accounts import keys
from accounts.models import Key, Role, User


@pytest.fixture
def owner(db):
    return User.objects.create_user("owner@example.org", None, Role.objects.create(name="owners"))


def test_a_key_is_sk_and_256_bits_in_43_characters():
    made = {keys.new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key) for key in made)
    assert all(keys.is_well_formed(key) for key in made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-",
        "sk-" + "a" * 42,
        "sk-" + "a" * 44,
        "SK-" + "a" * 43,
        "pk-" + "a" * 43,
        "a" * 46,
        "sk-" + "a" * 42 + "\0",
        "sk-" + "a" * 43 + "\n",
        " sk-" + "a" * 43,
        "sk-" + "a" * 21 + " " + "a" * 21,
        "sk-" + "é" * 43,
        "sk-" + "٣" * 43,
        "sk-" + "a" * 1_000_000,
    ],
    ids=lambda text: repr(text[:12]) + str(len(text)),
)
def test_anything_else_is_no_key(text):
    assert not keys.is_well_formed(text)


def test_the_table_holds_a_digest_and_a_mask_and_nowhere_the_key(owner):
    key, text = Key.objects.issue(owner, "laptop")
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM accounts_key WHERE id = %s", [key.id])
        columns = [str(value) for value in cursor.fetchone()]
    assert keys.digest(text) in columns
    assert not any(text in column or text[3:] in column for column in columns)


def test_the_mask_shows_the_first_and_last_eight_characters(owner):
    key, text = Key.objects.issue(owner, "laptop")
    assert key.token == f"{text[:8]}...{text[-8:]}"
    assert str(key) == f"laptop ({key.token})"


def test_two_secrets_give_two_digests_the_current_one_first(settings):
    text = keys.new_key()
    settings.KEY_SECRETS = ["former secret, long enough to be one"]
    former = keys.digest(text)
    settings.KEY_SECRETS = ["current secret, long enough to be one", *settings.KEY_SECRETS]
    assert keys.digests(text) == (keys.digest(text), former)
    assert keys.digest(text) != former
