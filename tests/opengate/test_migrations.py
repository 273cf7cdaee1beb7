"""Tables follow the models."""

from django.core.management import call_command


def test_no_migration_is_missing(transactional_db, capsys):
    call_command("makemigrations", check_changes=True, dry_run=True)
    assert "No changes detected" in capsys.readouterr().out
