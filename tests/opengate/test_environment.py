"""The environment: what is read, what is wrong with it, and where the rest comes from."""

import json
import os
import stat
import subprocess
import sys

import pytest

from opengate import environment
from tests.server import ROOT


def test_defaults_hold_and_empty_means_unset(tmp_path):
    found, problems = environment.read({"OPENGATE_VAR": str(tmp_path), "OPENGATE_DATABASE_POOL": ""})
    assert (found.debug, found.database_pool, found.secret_key) == (False, 10, "")
    assert problems == []


def test_lists_are_split_at_commas(tmp_path):
    found, _ = environment.read({"OPENGATE_VAR": str(tmp_path), "OPENGATE_KEY_SECRETS": "new, old,"})
    assert found.key_secrets == ["new", "old"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENGATE_DEBUG", "maybe"),
        ("OPENGATE_DATABASE_POOL", "-1"),
        ("OPENGATE_REDIS_TIMEOUT_SECONDS", "soon"),
        ("OPENGATE_LOG_LEVEL", "LOUD"),
        ("OPENGATE_MAX_BODY_BYTES", "1"),
    ],
)
def test_a_wrong_value_is_a_problem_with_a_hint_and_the_default_holds(name, value, tmp_path):
    default, _ = environment.read({"OPENGATE_VAR": str(tmp_path)})
    found, (problem,) = environment.read({"OPENGATE_VAR": str(tmp_path), name: value})
    assert found == default
    assert problem.variable == name
    assert repr(value) in problem.message
    assert problem.hint.endswith("Until then the default is in force.")


def test_a_wrong_value_with_a_secret_in_it_is_not_shown():
    wrong = {
        "OPENGATE_DOCUMENT_STORAGE": '{"OPTIONS": {"secret_key": "zebra"}',
        "OPENGATE_SENTRY_DSN": "https://zebra@x",
    }
    _, problems = environment.read(wrong)
    assert len(problems) == 2
    assert "zebra" not in str(problems)


def test_secrets_are_made_once_and_read_by_their_owner_alone(tmp_path):
    path = environment.create_secrets(tmp_path / "var")
    made = path.read_text()
    environment.create_secrets(tmp_path / "var")
    found, _ = environment.read({"OPENGATE_VAR": str(tmp_path / "var")})
    assert path.read_text() == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found.secret_key == json.loads(made)["secret_key"]


def test_a_variable_wins_over_the_file(tmp_path):
    environment.create_secrets(tmp_path)
    found, _ = environment.read({"OPENGATE_VAR": str(tmp_path), "OPENGATE_SECRET_KEY": "mine"})
    assert found.secret_key == "mine"


def check(tmp_path, **variables: str) -> str:
    """What `manage.py check` says in an environment of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENGATE_", "DATABASE_", "REDIS_"))
    }
    result = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=kept | {"OPENGATE_VAR": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr


def test_check_says_what_production_lacks(tmp_path):
    said = check(tmp_path, REDIS_URL="mysql://x", OPENGATE_SECRET_KEY="short", OPENGATE_DATABASE_POOL="x")
    for expected in (
        "OPENGATE_DATABASE_POOL='x'",
        "OPENGATE_SECRET_KEY is too short to be a secret.",
        "OPENGATE_KEY_SECRETS is not set.",
        "OPENGATE_ENCRYPTION_SECRETS is not set.",
        "DATABASE_URL is not set.",
        "REDIS_URL has an unknown scheme.",
    ):
        assert expected in said
    assert "Traceback" not in said


def test_check_says_what_nothing_at_all_lacks(tmp_path):
    said = check(tmp_path, OPENGATE_DOCUMENT_STORAGE='{"BACKEND": "nowhere.Storage"}')
    for expected in (
        "OPENGATE_SECRET_KEY is not set.",
        "REDIS_URL is not set.",
        "OPENGATE_DOCUMENT_STORAGE is no storage",
    ):
        assert expected in said
    assert "Traceback" not in said
    assert "OPENGATE_DOCUMENT_STORAGE is no storage" in check(tmp_path, OPENGATE_DOCUMENT_STORAGE='{"OPTIONS": {}}')


def test_check_is_content_with_a_whole_environment(tmp_path):
    environment.create_secrets(tmp_path)
    said = check(tmp_path, DATABASE_URL="postgresql://u@h/d", REDIS_URL="redis://h/0")
    assert "no issues" in said


def test_a_mistake_in_what_holds_a_secret_is_told_without_it(tmp_path):
    told = {"DATABASE_URL": "postgresql://u:hunter/2#@db/opengate", "REDIS_URL": "redis://:hunter/2@cache/0"}
    told["OPENGATE_DOCUMENT_STORAGE"] = '{"OPTIONS": {"secret_key": "hunter/2'
    _, problems = environment.read({"OPENGATE_VAR": str(tmp_path)} | told)
    assert [problem.variable for problem in problems] == list(told)
    assert "hunter" not in str(problems)


def test_a_variable_that_does_not_exist_is_named_beside_the_one_that_was_meant(monkeypatch):
    monkeypatch.setenv("OPENGATE_ACCES_LOG", "true")
    assert ("OPENGATE_ACCES_LOG", "OPENGATE_ACCESS_LOG") in environment.unknown()


@pytest.mark.parametrize(
    ("command", "address", "told"),
    [
        (("manage.py", "listmodels"), "postgresql://u:pass/word@db/x", "DATABASE_URL: Value error, it is no address"),
        (("-m", "celery", "-A", "opengate", "worker"), "mysql://db/x", "unknown sch"),
    ],
)
def test_a_wrong_address_ends_a_command_and_a_worker_with_a_sentence(command, address, told, tmp_path):
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OPENGATE_VAR": str(tmp_path), "DATABASE_URL": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, told in result.stderr, "Traceback" in result.stderr) == (1, True, False), result.stderr


def test_a_command_whose_database_is_away_says_so(tmp_path):
    result = subprocess.run(
        [sys.executable, "manage.py", "listmodels"],
        cwd=ROOT,
        env=os.environ | {"OPENGATE_VAR": str(tmp_path), "DATABASE_URL": "postgresql://u@127.0.0.1:1/x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
    assert "CommandError: The database is away" in result.stderr


def test_a_worker_whose_beat_cannot_write_its_schedule_does_not_start():
    result = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "opengate", "worker", "--beat", "-s", "/nowhere/schedule"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Beat cannot write its schedule /nowhere/schedule" in result.stderr
