"""`manage.py listmodels` and `manage.py checkproviders`."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command, execute_from_command_line

from routing.models import Provider, Router, RouterName

pytestmark = pytest.mark.django_db(transaction=True)


def said(*words: str) -> str:
    output = StringIO()
    call_command(*words, stdout=output)
    return output.getvalue()


def checked(*words: str) -> tuple[int, list[dict]]:
    """Exit code and rows of `checkproviders --json`."""
    output = StringIO()
    try:
        call_command("checkproviders", "--json", *words, stdout=output)
    except SystemExit as end:
        return int(end.code or 0), json.loads(output.getvalue())
    return 0, json.loads(output.getvalue())


@pytest.fixture
def provider(router, upstream):
    upstream.route("/v1/models", {"data": [{"id": "upstream-name", "max_context_length": 4096}]})
    return Provider.objects.get()


def test_listmodels_shows_names_prices_and_providers(provider, upstream):
    Router.objects.update(cost_prompt_tokens=0.5)
    RouterName.objects.create(router=provider.router, value="second name")
    Router.objects.create(name="idle", type="text-generation")
    heads, _, idle, model = said("listmodels").splitlines()
    assert heads.split() == ["id", "name", "type", "aliases", "cost", "providers"]
    assert "none" in idle
    for text in ("model", "second name", "0.5 / 0", f"upstream-name at {upstream.url}"):
        assert text in model
    assert "upstream-secret" not in said("listmodels") + said("listmodels", "--json")
    full = {row["name"]: row for row in json.loads(said("listmodels", "--json"))}
    assert full["model"]["aliases"] == ["second name"]
    assert [row["model_name"] for row in full["model"]["providers"]] == ["upstream-name"]


def test_listmodels_says_that_there_are_none():
    assert said("listmodels") == "There are no routers.\n"
    assert json.loads(said("listmodels", "--json")) == []


def test_checkproviders_is_content_when_all_answer(provider):
    code, (row,) = checked()
    assert (code, row["status"], row["max_context_length"], row["reason"]) == (0, "ok", 4096, "")
    assert row["ms"] >= 0
    provider.refresh_from_db()
    assert provider.max_context_length is None
    table = said("checkproviders")
    assert "upstream-name" in table
    assert "upstream-secret" not in table


def test_checkproviders_fails_for_one_that_is_away(provider, upstream):
    Provider.objects.create(router=provider.router, type="vllm", url="http://127.0.0.1:9/", model_name="m")
    code, rows = checked()
    assert code == 1
    assert [row["status"] for row in rows] == ["ok", "unreachable"]
    assert rows[1]["reason"].startswith("503")
    assert checked("--router", "model")[0] == 1


def test_checkproviders_says_when_the_model_is_gone(provider, upstream):
    upstream.route("/v1/models", {"data": [{"id": "successor"}]})
    code, (row,) = checked()
    assert (code, row["status"]) == (1, "unreachable")
    assert "upstream-name is not among those it lists" in row["reason"]


def test_checkproviders_fails_for_a_contradiction_and_stores_it_when_told(provider):
    Provider.objects.update(max_context_length=1024)
    code, (row,) = checked()
    assert (code, row["status"], row["reason"]) == (1, "differs", "max_context_length is stored as 1024")
    code, (row,) = checked("--save")
    assert (code, row["status"]) == (0, "saved")
    provider.refresh_from_db()
    assert (provider.max_context_length, provider.timeout) == (4096, 5)
    assert checked()[1][0]["status"] == "ok"


def test_checkproviders_waits_no_longer_than_told(provider, upstream):
    Provider.objects.update(timeout=300)
    upstream.reset()
    upstream.reply({}, wait=30)
    code, (row,) = checked("--timeout", "1")
    assert (code, row["status"]) == (1, "unreachable")
    assert row["ms"] < 5000


@pytest.mark.parametrize("words", [["--router", "none"], ["--timeout", "0"], ["--timeout", "x"]])
def test_checkproviders_refuses_what_it_does_not_understand(provider, words):
    with pytest.raises(CommandError):
        said("checkproviders", *words)


def test_checkproviders_has_nothing_to_ask_without_providers():
    assert said("checkproviders") == "There are no providers.\n"


@pytest.mark.parametrize("command", ["createadmin", "createkey", "revokekey", "listmodels", "checkproviders"])
def test_commands_explain_themselves_and_fail_with_a_sentence(command, capsys):
    def code_of(word: str) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            execute_from_command_line(["manage.py", command, word])
        return ended.value.code

    assert code_of("--help") == 0
    assert "--json" in capsys.readouterr().out
    assert code_of("--no-such-option") == 2
    assert f"manage.py {command}: error: " in capsys.readouterr().err
