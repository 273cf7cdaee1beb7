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
