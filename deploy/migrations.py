"""What a migration would do to a system that runs: long locks, and tables that the former release cannot work with.

Squawk judges the SQL of each migration that is newer than the first release, whose migrations (ACCEPTED) met empty
tables; one rule about Django's fields is ours. A line of ACCEPTED with rules behind a colon lets those pass, with a
reason. `python manage.py shell -c "from deploy import migrations; migrations.accept()"` adds all that there are.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from django.apps import apps
from django.db import connection
from django.db.migrations import AddField, CreateModel, Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState
from django.db.models import NOT_PROVIDED

from opengate.environment import BASE_DIR

ACCEPTED = Path(__file__).with_name("migrations.accepted")
OLDEST_POSTGRES = "15.0"
# Rules of taste, of a first setup, and of scripts that Django does not run twice.
NOT_ASKED = (
    "ban-char-field",
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
    "prefer-identity",
    "prefer-robust-stmts",
    "prefer-text-field",
    "prefer-timestamptz",
    "require-timeout-settings",  # PGOPTIONS of the job that migrates
)


def findings() -> list[str]:
    """A line for each fault of a migration that is not accepted."""
    loader = MigrationLoader(connection)
    accepted = _accepted()
    found: list[str] = []
    for name, migration in sorted(_ours(loader).items()):
        allowed = accepted.get(name, [])
        if allowed is not None:
            before = loader.project_state((migration.app_label, migration.name), at_end=False)
            found += [fault for rule, fault in faults(migration, before) if rule not in allowed]
    unknown = sorted(accepted.keys() - _ours(loader).keys())
    return found + [f"{name}: there is no such migration; take it out of {ACCEPTED.name}." for name in unknown]


def faults(migration: Migration, before: ProjectState) -> Iterator[tuple[str, str]]:
    """The rule that is broken, and a line about it."""
    name = f"{migration.app_label}.{migration.name}"
    made = {operation.name_lower for operation in migration.operations if isinstance(operation, CreateModel)}
    for operation in migration.operations:
        if isinstance(operation, AddField) and operation.model_name_lower not in made:
            field = operation.field
            if not field.many_to_many and not field.null and field.db_default is NOT_PROVIDED:
                where = f"{operation.model_name}.{operation.name}"
                yield "no-db-default", f"{name}: {where} has no db_default, so the former release cannot insert rows."
    command = [str(Path(sys.executable).with_name("squawk")), "--reporter", "json", "--pg-version", OLDEST_POSTGRES]
    command += ["--no-error-on-unmatched-pattern", f"--exclude={','.join(NOT_ASKED)}", "--stdin-filepath", name]
    command += ["--assume-in-transaction"] if migration.atomic else []
    done = subprocess.run(command, input=_sql(migration, before), capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"squawk said nothing: {done.stderr}")
    for fault in json.loads(done.stdout):
        yield fault["rule_name"], f"{name}, line {fault['line'] + 1}: {fault['rule_name']}: {fault['message']}"


def accept() -> None:
    """Every migration that there is now, for the release that is the first."""
    known = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    new = sorted(_ours(MigrationLoader(connection)).keys() - _accepted().keys())
    ACCEPTED.write_text("\n".join([*known, *new]) + "\n")


def _ours(loader: MigrationLoader) -> dict[str, Migration]:
    labels = {app.label for app in apps.get_app_configs() if Path(app.path).parent == BASE_DIR}
    return {f"{app}.{name}": found for (app, name), found in loader.disk_migrations.items() if app in labels}


def _accepted() -> dict[str, list[str] | None]:
    """By migration the rules that it may break; None for all."""
    lines = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    accepted: dict[str, list[str] | None] = {}
    for line in lines:
        if entry := line.partition("#")[0].strip():
            name, colon, rules = entry.partition(":")
            accepted[name.strip()] = rules.replace(",", " ").split() if colon else None
    return accepted


def _sql(migration: Migration, before: ProjectState) -> str:
    with connection.schema_editor(collect_sql=True, atomic=migration.atomic) as editor:
        migration.apply(before.clone(), editor, collect_sql=True)
    return "\n".join(editor.collected_sql)
