"""New secrets while the gateway serves: nobody is refused on the way, and what is left behind is named."""

import json
import threading
from http.cookies import SimpleCookie

import pytest
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory

from accounts import principals
from accounts.models import Key
from opengate import encryption
from opengate.checks import encrypted_rows_can_be_read
from opengate.loops import in_loop
from opengate.playground.consumers import signed_in
from routing.models import Provider
from tests.conftest import CHAT
from tests.server import Server

NEW = "tests-only-new-secret-0123456789-0123456789-0123"


def rotated(capsys, *options: str) -> tuple[int, dict]:
    """The exit code of `rotate_secrets` and what it tells."""
    code = 0
    try:
        call_command("rotate_secrets", "--json", *options)
    except SystemExit as end:
        code = int(end.code or 0)
    return code, json.loads(capsys.readouterr().out)


def both(settings, *secrets: str) -> dict[str, str]:
    """These secrets for keys and for what is encrypted, here and as the environment of a server."""
    settings.KEY_SECRETS, settings.ENCRYPTION_SECRETS = list(secrets), list(secrets)
    return {name: ",".join(secrets) for name in ("OPENGATE_KEY_SECRETS", "OPENGATE_ENCRYPTION_SECRETS")}


def test_secrets_change_while_calls_go_on_and_the_former_ones_can_be_dropped(
    transactional_db, redis_client, settings, router, ada, ben, key_of, upstream, capsys
):
    old = settings.KEY_SECRETS[0]
    settings.ENCRYPTION_SECRETS = [old]
    Provider.objects.update(key="upstream-secret")
    key, unused = key_of(ada), key_of(ben, "unused")
    before = Server(**both(settings, old, NEW)).start()
    both(settings, NEW, old)
    statuses, done = [], threading.Event()

    def call() -> None:
        with before.client(key) as client:
            while not done.is_set():
                statuses.append(client.post("/v1/chat/completions", json=CHAT).status_code)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        assert rotated(capsys, "--check")[0] == 1
        code, found = rotated(capsys)
        assert (code, found["encrypted"]) == (
            0,
            [{"column": "routing.Provider.key", "current": 1, "former": 0, "unreadable": []}],
        )
        assert in_loop(principals.find(key)).user_id == ada.id
        code, found = rotated(capsys, "--check")
        assert (code, found["keys"]["waiting"]) == (1, 1)
        assert [(row["user"], row["last_used"]) for row in found["keys"]["waiting_last_used"]] == [(ben.email, None)]
        more = len(statuses) + 3
        while len(statuses) < more and caller.is_alive():
            caller.join(0.01)
    finally:
        done.set()
        caller.join(10)
        before.stop()
    assert set(statuses) == {200}
    alone = Server(**both(settings, NEW)).start()
    try:
        with alone.client(key) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        with alone.client(unused) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
    finally:
        alone.stop()
    assert upstream.received[-1].headers["authorization"] == "Bearer upstream-secret"
    code, found = rotated(capsys, "--check")
    assert (code, found["keys"]["current"], found["keys"]["lost"]) == (0, 1, 1)


def test_a_row_whose_secret_was_dropped_too_early_is_named_everywhere(router, settings, capsys):
    provider = Provider.objects.get()
    settings.ENCRYPTION_SECRETS = [NEW]
    with pytest.raises(ImproperlyConfigured, match="rotate_secrets --check"):
        provider.refresh_from_db()
    code, found = rotated(capsys)
    assert (code, found["encrypted"][0]["unreadable"]) == (1, [provider.id])
    (warning,) = encrypted_rows_can_be_read(None, databases=["default"])
    assert warning.msg == f"routing.Provider.key: no secret opens 1 of its rows: {provider.id}."


def test_many_rows_are_renewed_in_batches_and_one_that_changes_meanwhile_keeps_its_change(
    router, settings, monkeypatch
):
    monkeypatch.setattr(encryption, "BATCH", 2)
    for number in range(4):
        Provider.objects.create(
            router=router, type="vllm", url="http://vllm/", model_name=f"m{number}", key=f"{number}"
        )
    settings.ENCRYPTION_SECRETS = [NEW, *settings.ENCRYPTION_SECRETS]
    (column,) = encryption.columns()
    stored = column._stored()
    Provider.objects.filter(pk=next(stored)[0]).update(key="typed meanwhile")
    column.look(renew=True)
    assert (column.current, column.former, column.unreadable) == (5, 0, [])
    settings.ENCRYPTION_SECRETS = [NEW]
    assert [provider.key for provider in Provider.objects.all()] == ["typed meanwhile", "0", "1", "2", "3"]


def test_a_key_of_before_the_secrets_were_noted_counts_as_waiting_only_where_a_former_one_could_open_it(
    ada, key_of, settings, capsys
):
    key_of(ada)
    Key.objects.update(digest_secret=None)
    assert rotated(capsys, "--check")[1]["keys"]["waiting"] == 0
    settings.KEY_SECRETS = [NEW, *settings.KEY_SECRETS]
    assert rotated(capsys, "--check")[1]["keys"]["waiting"] == 1


def test_a_chat_under_a_former_secret_of_cookies_leaves_the_session_to_the_next_page(ada, settings):
    client = Client()
    client.force_login(ada, "accounts.passwords.PasswordBackend")
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], NEW
    cookies = SimpleCookie({name: morsel.value for name, morsel in client.cookies.items()})
    token = get_token(RequestFactory().get("/"))
    cookies[settings.CSRF_COOKIE_NAME] = token
    headers = [
        (b"host", b"localhost"),
        (b"cookie", cookies.output(header="", sep=";").encode()),
        (b"x-csrftoken", token.encode()),
    ]
    scope = {"type": "http", "method": "POST", "path": "/playground/chat", "query_string": b"", "headers": headers}
    assert signed_in(scope) == ada.pk
    assert Session.objects.count() == 1
    assert client.get("/playground", headers={"Host": "localhost"}).status_code == 200
