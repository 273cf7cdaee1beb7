#!/usr/bin/env python
"""Django's command line for OpenGate."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError

    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError, ProgrammingError) as error:
        if "--traceback" in sys.argv or not (sentence := _sentence(error)):
            raise
        sys.exit(f"CommandError: {sentence}")


def _sentence(error: Exception) -> str:
    """What whoever runs the command can mend, or nothing: a traceback would hide it."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import OperationalError
    from psycopg.errors import UndefinedColumn, UndefinedTable

    if isinstance(error, ImproperlyConfigured):
        return str(error)
    if isinstance(error, OperationalError):
        return f"The database is away, or does not do it: {str(error).strip()}."
    if isinstance(error.__cause__, UndefinedColumn | UndefinedTable):
        return "The database lacks tables of this version: run `manage.py migrate` first."
    return ""


if __name__ == "__main__":
    main()
