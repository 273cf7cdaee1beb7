"""Tables follow the models, and change under a system that runs."""

import pytest
from django.contrib.postgres.operations import AddIndexConcurrently
from django.core.management import call_command
from django.db import connection, migrations
from django.db.migrations.loader import MigrationLoader
from django.db.models import CharField, Index

from deploy.migrations import faults, findings


def test_no_migration_is_missing(transactional_db, capsys):
    call_command("makemigrations", check_changes=True, dry_run=True)
    assert "No changes detected" in capsys.readouterr().out


def test_no_migration_after_the_first_release_stops_a_system_that_runs(transactional_db):
    assert findings() == []


INDEX = Index(fields=["router_name"], name="usage_model_index")


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (migrations.AddIndex("usagerecord", INDEX), "require-concurrent-index-creation"),
        (migrations.AddField("usagerecord", "note", CharField(default="")), "no-db-default"),
        (migrations.AlterField("usagerecord", "router_name", CharField(max_length=7)), "changing-column-type"),
        (migrations.RemoveField("usagerecord", "router_name"), "ban-drop-column"),
        (migrations.RenameField("usagerecord", "router_name", "model_name"), "renaming-column"),
        (
            migrations.RunSQL("ALTER TABLE usage_usagerecord ADD COLUMN mark uuid NOT NULL DEFAULT gen_random_uuid()"),
            "adding-field-with-default",
        ),
        (
            migrations.RunSQL("ALTER TABLE usage_usagerecord ADD CONSTRAINT low CHECK (id < 9)"),
            "constraint-missing-not-valid",
        ),
    ],
)
def test_a_migration_that_would_is_named(db, operation, rule):
    assert rule in broken(operation)


def test_one_that_takes_care_is_not(transactional_db):
    assert broken(migrations.AddField("usagerecord", "note", CharField(default="", db_default=""))) == set()
    assert broken(AddIndexConcurrently("usagerecord", INDEX), atomic=False) == set()


def broken(operation, *, atomic=True):
    """The rules that a migration of this one operation breaks."""
    next_one = type("Migration", (migrations.Migration,), {"operations": [operation], "atomic": atomic})
    return {rule for rule, _ in faults(next_one("0099_next", "usage"), MigrationLoader(connection).project_state())}
