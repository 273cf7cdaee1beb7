"""Prove that usage, sums, accounts and reservations agree."""

import json
from argparse import ArgumentParser
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from usage import auditing
from usage.calendar import day


class Command(BaseCommand):
    help = "Proves that usage records, daily sums, accounts and reservations agree, and names what does not (exit 1)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", type=day, default=date.min, metavar="DAY", help="Records from this day on only.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def handle(self, *args: Any, **options: Any) -> None:
        audit = auditing.audit(options["since"])
        if options["json"]:
            findings = [{"rule": finding.rule, "values": finding.values} for finding in audit.findings]
            content = {"clean": audit.is_clean, "checked": audit.checked, "found": audit.found, "findings": findings}
            self.stdout.write(json.dumps(content, default=str, ensure_ascii=False))
        else:
            for rule, found in audit.found.items():
                self.stdout.write(f"{'ok ' if not found else 'NOT'} {rule}{f': {found} break it' if found else ''}")
                for finding in audit.findings:
                    if finding.rule == rule:
                        told = ", ".join(f"{name} {value}" for name, value in finding.values.items())
                        self.stdout.write(f"      {told}")
            told = ", ".join(f"{number:,} {name}" for name, number in audit.checked.items())
            self.stdout.write(f"Checked {told}.")
        if not audit.is_clean:
            raise CommandError("The ledger does not agree with itself.")
