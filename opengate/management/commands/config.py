"""Routers, providers, roles and organizations as a file: what it would change, make it true, write it, compare it."""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError

from opengate.configuration import applying, current, exporting, foreign, telling
from opengate.configuration.applying import Asking
from opengate.configuration.checking import Described, describe
from opengate.configuration.errors import ConfigurationError
from opengate.configuration.foreign import Conversion
from opengate.configuration.plan import Options, Plan
from opengate.configuration.reading import STDIN, needed_by, read

HEAD = "OpenGate's configuration. `manage.py config apply FILE` makes it true, `drift` compares it."
NOBODY = "No role may call the new routers yet: open them in the console, or by limits of roles in opengate.yml."
USAGE_ERROR = 2  # of argparse; for `drift` it is the word for a difference


class Differs(SystemExit):
    """The exit code for a system that is not as the file says."""

    def __init__(self) -> None:
        super().__init__(2)


class Command(BaseCommand):
    help = (
        "Configuration as code. `plan` says what a file would change, `apply` makes it true in one transaction, "
        "`export` writes what is there, `drift` ends with 0 when nothing differs, 2 when something does, 1 on an error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="plan|apply|export|drift")
        plan = verbs.add_parser("plan", help="Say what a file would change; changes nothing.")
        apply = verbs.add_parser("apply", help="Make a file true: all of it, or nothing.")
        drift = verbs.add_parser("drift", help="Compare: exit code 0 same, 2 different, 1 error.")
        for verb in (plan, apply, drift):
            verb.add_argument("file", metavar="FILE", help="The file; - is the standard input.")
            verb.add_argument("--prune", action="store_true", help="Rows that the file lacks are to be deleted.")
            verb.add_argument(
                "--keep-keys",
                action="store_true",
                help="Leave the keys of providers that exist as they are; their variables need not be set.",
            )
            verb.add_argument("--json", action="store_true", help="Print one JSON object.")
        for verb in (plan, apply):
            verb.add_argument(
                "--from",
                dest="origin",
                choices=foreign.NAMES,
                help="The file is another gateway's. Its models are added; those of which a name exists are skipped.",
            )
        plan.add_argument("--write", metavar="FILE", help="With --from: write it as a file of ours.")
        plan.add_argument("--force", action="store_true", help="With --write: replace the file if it exists.")
        apply.add_argument("--dry-run", action="store_true", help="As plan.")
        apply.add_argument("--yes", action="store_true", help="Do not ask; without a terminal nobody is asked.")
        apply.add_argument(
            "--offline",
            "--no-check",
            action="store_true",
            help="Do not ask upstreams about their models first.",
        )
        apply.add_argument("--timeout", type=int, default=30, help="Seconds to wait for each upstream (default: 30).")
        export = verbs.add_parser("export", help="Write what is there, with references for secrets.")
        export.add_argument("file", metavar="FILE", nargs="?", help="Where to; the standard output by default.")
        export.add_argument("--force", action="store_true", help="Replace the file if it exists.")

    def run_from_argv(self, argv: list[str]) -> None:
        try:
            super().run_from_argv(argv)
        except SystemExit as end:
            if end.code == USAGE_ERROR and not isinstance(end, Differs):
                sys.exit(1)
            raise

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, options["verb"])(options)
        except ConfigurationError as error:
            raise CommandError(str(error)) from None
        except (OperationalError, InterfaceError) as error:
            raise CommandError(f"The database is away: {_first_line(error)}") from None
        except ProgrammingError as error:
            raise CommandError(f"The tables are not up to date, run manage.py migrate: {_first_line(error)}") from None
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None

    # the four verbs

    def plan(self, options: Mapping[str, Any]) -> None:
        conversion, described = self._described(options)
        if options.get("write"):
            if conversion is None:
                raise CommandError("--write goes with --from.")
            self._write_converted(options["write"], conversion, force=options["force"])
        plan = self._planned(options, described)
        self._show(options, described, plan, conversion)
        if plan.faults:
            raise CommandError(_told_faults(plan, described))

    def apply(self, options: Mapping[str, Any]) -> None:
        if options["timeout"] < 1:
            raise CommandError("--timeout must be at least 1.")
        if options["dry_run"]:
            self.plan(options)
            return
        conversion, described = self._described(options)
        found = self._planned(options, described)
        if found.faults:
            raise CommandError(_told_faults(found, described))

        def agree(plan: Plan) -> bool:
            self._say(telling.lines_of(plan))
            self.stdout.write("Apply this? Write yes: ", ending="")
            self.stdout.flush()
            return sys.stdin.readline().strip().lower() == "yes"

        asks = bool(found.changes) and not options["yes"] and options["file"] != STDIN and sys.stdin.isatty()
        asking = Asking(upstreams=not options["offline"], timeout=options["timeout"])
        done = applying.apply(described.document, _meant(options, described), asking, agree if asks else None)
        done = replace(done, notes=(*described.notes, *done.notes))
        self._show(options, described, done, conversion, applied=True)

    def drift(self, options: Mapping[str, Any]) -> None:
        _, described = self._described(options)
        plan = self._planned(options, described)
        self._show(options, described, plan, None)
        if plan.faults:
            raise CommandError(_told_faults(plan, described))
        if plan.changes:
            raise Differs

    def export(self, options: Mapping[str, Any]) -> None:
        found = exporting.export(current.load())
        text = exporting.write(found.data, exporting.head_of(HEAD, found.secrets))
        if options["file"]:
            _write(options["file"], text, force=options["force"])
        else:
            self.stdout.write(text, ending="")

    # their parts

    def _described(self, options: Mapping[str, Any]) -> tuple[Conversion | None, Described]:
        source = read(options["file"])
        variables = dict(os.environ)
        if not options.get("origin"):
            return None, describe(source, variables, keep_keys=options["keep_keys"])
        if options["prune"]:
            raise CommandError("Another gateway's file adds, and deletes nothing: --prune does not go with --from.")
        conversion = foreign.converter(options["origin"])(source, variables)
        converted = conversion.document()
        return conversion, describe(converted, variables | conversion.secrets, keep_keys=options["keep_keys"])

    def _planned(self, options: Mapping[str, Any], described: Described) -> Plan:
        plan = applying.plan(described.document, _meant(options, described))
        return replace(plan, notes=(*described.notes, *plan.notes))

    def _show(
        self,
        options: Mapping[str, Any],
        described: Described,
        plan: Plan,
        conversion: Conversion | None,
        *,
        applied: bool = False,
    ) -> None:
        makes_routers = any((one.action, one.kind) == ("create", "router") for one in plan.changes)
        if options["json"]:
            told = dict(telling.as_json(plan, described.file, described.lines)) | {"applied": applied}
            if conversion is not None:
                told["report"] = conversion.lines_of_report()
            self.stdout.write(json.dumps(told))
            return
        if conversion is not None:
            self._say([*conversion.lines_of_report(), ""])
        self._say(telling.lines_of(plan))
        self._say(f"Note: {line}" for line in telling.remarks(plan.notes, described.file, described.lines))
        if conversion is not None and makes_routers:
            self._say([f"Note: {NOBODY}"])
        if applied and plan.changes:
            self._say([telling.summary(plan, "Applied", ("created", "changed", "deleted"))])

    def _write_converted(self, file: str, conversion: Conversion, *, force: bool) -> None:
        converted = conversion.document()
        names = needed_by(converted.data)
        head = exporting.head_of(f"Out of {Path(conversion.source.file).name}. {HEAD}", names)
        _write(file, exporting.write(converted.data, head), force=force)

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.stdout.write(line)


def _meant(options: Mapping[str, Any], described: Described) -> Options:
    return Options(
        prune=options["prune"],
        keep_keys=options["keep_keys"],
        unset=described.unset,
        adds_only=bool(options.get("origin")),
    )


def _told_faults(plan: Plan, described: Described) -> str:
    return "\n".join(telling.remarks(plan.faults, described.file, described.lines))


def _write(file: str, text: str, *, force: bool) -> None:
    """Whole or not at all."""
    path = Path(file)
    if path.exists() and not force:
        raise CommandError(f"{file} exists; --force replaces it.")
    try:
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror or error}.") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
