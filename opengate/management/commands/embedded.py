"""`manage.py embedded -- COMMAND`: one command with the embedded servers up for as long as it runs."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from opengate.embedded import running
from opengate.environment import BASE_DIR, create_secrets
from opengate.quickstart import DATABASE
from opengate.supervisor import SupervisorError


class Command(BaseCommand):
    help = "Start the embedded Postgres and Valkey, run a command with DATABASE_URL and REDIS_URL set, stop them."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command, with its words")

    def handle(self, *args: Any, words: list[str], **options: Any) -> None:
        command = words[1:] if words[:1] == ["--"] else words
        if not command:
            raise CommandError("Say what to run: manage.py embedded -- COMMAND.")
        var = Path(os.environ.get("OPENGATE_VAR") or BASE_DIR / "var").absolute()
        create_secrets(var)
        try:
            # The data of quickstart, and so its lock.
            with running(var / "embedded", database=DATABASE, lock=var / "quickstart.lock") as services:
                urls = {"DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url}
                code = _run(command, {**os.environ, **urls, "OPENGATE_VAR": str(var)})
        except SupervisorError as error:
            raise CommandError(str(error)) from error
        sys.exit(code)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """In our terminal it gets Ctrl-C itself, and SIGTERM from us. A signal's exit code is 128 and its number."""
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise CommandError(f"{command[0]} cannot be run: {error.strerror}.") from error
    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    code = process.wait()
    return code if code >= 0 else 128 - code
