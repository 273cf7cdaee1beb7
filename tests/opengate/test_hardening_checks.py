"""`manage.py check --deploy`: silent in a production as the README asks for, and loud where something is missing."""

import os
import secrets
import subprocess
import sys

from tests.server import ROOT


def production() -> dict[str, str]:
    return {
        "DATABASE_URL": "postgresql://opengate@db/opengate",
        "REDIS_URL": "redis://cache/0",
        "OPENGATE_SECRET_KEY": secrets.token_urlsafe(48),
        "OPENGATE_KEY_SECRETS": secrets.token_urlsafe(48),
        "OPENGATE_ENCRYPTION_SECRETS": secrets.token_urlsafe(48),
        "OPENGATE_ALLOWED_HOSTS": "models.example.org",
        "OPENGATE_TRUSTED_ORIGINS": "https://models.example.org",
        "OPENGATE_HTTPS_HEADER": "X-Forwarded-Proto",
        "OPENGATE_HSTS_SECONDS": "31536000",
    }


def checked(tmp_path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENGATE_", "DATABASE_", "REDIS_"))
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    environment = kept | {"OPENGATE_VAR": str(tmp_path)} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_production_as_it_should_be_has_no_issues(tmp_path):
    result = checked(tmp_path, production())
    assert (result.returncode, "no issues" in result.stdout) == (0, True), result.stderr


def test_each_thing_that_a_production_lacks_is_said(tmp_path):
    usual = production()
    result = checked(
        tmp_path,
        usual
        | {
            "OPENGATE_DEBUG": "true",
            "OPENGATE_SECRET_KEY": usual["OPENGATE_KEY_SECRETS"],
            "OPENGATE_ENCRYPTION_SECRETS": "change-me-change-me-change-me-change-me-1",
            "OPENGATE_ALLOWED_HOSTS": "*",
            "OPENGATE_TRUSTED_ORIGINS": "http://models.example.org",
            "OPENGATE_PROVIDER_NETWORKS": "lopback,169.254.0.0/16",
        },
    )
    assert result.returncode == 1
    for expected in (
        "OPENGATE_DEBUG is on.",
        "OPENGATE_KEY_SECRETS has a secret that OPENGATE_SECRET_KEY has, too.",
        "OPENGATE_ENCRYPTION_SECRETS can be guessed: it looks like an example.",
        "OPENGATE_ALLOWED_HOSTS lets every host in.",
        "OPENGATE_TRUSTED_ORIGINS trusts http://models.example.org.",
        "OPENGATE_PROVIDER_NETWORKS: lopback is neither a network like 10.2.0.0/16 nor one of",
        "OPENGATE_PROVIDER_NETWORKS: 169.254.0.0/16 is a network where providers never are.",
        "SESSION_COOKIE_SECURE",
        "CSRF_COOKIE_SECURE",
        "Pages are served by http to other machines.",
    ):
        assert expected in result.stderr
    assert not any(secret in result.stderr for secret in (usual["OPENGATE_KEY_SECRETS"], "change-me-"))
