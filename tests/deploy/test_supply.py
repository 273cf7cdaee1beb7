"""The check of what is installed notices what it should."""

import pytest

from deploy import supply


def test_every_line_of_the_locks_is_pinned_and_hashed():
    packages = list(supply.locked())
    assert len(packages) > 200
    assert all(package.version and package.hashes for package in packages)


def test_a_line_without_a_hash_or_a_version_is_named(tmp_path, monkeypatch):
    for lock in supply.LOCKS:
        (tmp_path / lock).write_text("")
    (tmp_path / "requirements.txt").write_text(
        "django==5.2 \\\n    --hash=sha256:1\nredis==7\ncelery>=5 --hash=sha256:2\n"
    )
    (tmp_path / "package-lock.json").write_text((supply.ROOT / "package-lock.json").read_text())
    monkeypatch.setattr(supply, "ROOT", tmp_path)
    found = list(supply.faults())
    assert "requirements.txt: redis has no hash." in found
    assert "requirements.txt: celery is not pinned." in found
    assert any(fault.startswith("pytest is installed, and in no lock") for fault in found)
    assert any(fault.startswith("django is installed as 5.2.") for fault in found)


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MPL-2.0 OR Apache-2.0)", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("AGPL-3.0-only", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_where_one_of_its_alternatives_is(licence, allowed):
    assert supply.is_allowed(licence) is allowed
