"""Move what is stored under former secrets to the current ones, and say when the former ones can be dropped."""

import json
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import F, Q

from accounts import keys
from accounts.models import Key
from opengate import encryption

SHOWN = 20


class Command(BaseCommand):
    help = (
        "Encrypts anew, under the first of OPENGATE_ENCRYPTION_SECRETS, what is stored under the others; it may be "
        "stopped and started again, and nobody who calls notices. Keys move to the first of OPENGATE_KEY_SECRETS by "
        "themselves, at their next use: this says which have not yet. First let every process know the new secret, "
        "behind the old one; then put it in front. Exit code 1: something is left that needs a former secret (with "
        "--check), or that no secret opens."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="Change nothing; say what needs a former secret.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.ENCRYPTION_SECRETS or not settings.KEY_SECRETS:
            raise CommandError("OPENGATE_ENCRYPTION_SECRETS and OPENGATE_KEY_SECRETS must be set.")
        columns = encryption.columns()
        for column in columns:
            column.look(renew=not options["check"])
        found: dict[str, Any] = {"encrypted": [_told(column) for column in columns], "keys": _keys()}
        self.stdout.write(json.dumps(found) if options["json"] else "\n".join(_lines(found)))
        if any(column.unreadable for column in columns) or (
            options["check"] and (any(column.former for column in columns) or found["keys"]["waiting"])
        ):
            sys.exit(1)


def _told(column: encryption.Column) -> dict[str, Any]:
    counts = {"current": column.current, "former": column.former}
    return {"column": str(column), **counts, "unreadable": column.unreadable}


def _keys() -> dict[str, Any]:
    """Open keys by the secret of their digests. One whose secret is unknown may be under any of ours."""
    rows = Key.objects.unexpired()
    current, *former = keys.fingerprints()
    mine = Q(digest_secret=current)
    if not former:
        mine |= Q(digest_secret__isnull=True)  # there is no other that could open it
    waiting = rows.filter(Q(digest_secret__in=former) | Q(digest_secret__isnull=True)).exclude(mine)
    lost = rows.filter(digest_secret__isnull=False).exclude(digest_secret__in=[current, *former])
    last = waiting.select_related("user").order_by(F("last_used").desc(nulls_last=True), "id")[:SHOWN]
    return {
        "current": rows.filter(mine).count(),
        "waiting": waiting.count(),
        "lost": lost.count(),
        "waiting_last_used": [
            {
                "id": key.id,
                "name": key.name,
                "user": key.user.email,
                "last_used": key.last_used.isoformat(timespec="seconds") if key.last_used else None,
            }
            for key in last
        ],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for column in found["encrypted"]:
        lines.append(
            f"{column['column']}: {column['current']} under the current secret, {column['former']} under a former one, "
            f"{len(column['unreadable'])} that no secret opens."
        )
        if column["unreadable"]:
            named = ", ".join(map(str, column["unreadable"][:SHOWN]))
            lines.append(f"  Put the missing secret back behind the current one, or write these rows anew: {named}.")
    is_done = not any(column["former"] for column in found["encrypted"])
    if len(settings.ENCRYPTION_SECRETS) > 1:
        lines.append(
            "  The former OPENGATE_ENCRYPTION_SECRETS can be dropped."
            if is_done
            else "  The former OPENGATE_ENCRYPTION_SECRETS are needed until this has run without --check."
        )
    held = found["keys"]
    lines.append(
        f"Keys: {held['current']} under the current secret, {held['waiting']} not seen since it is the current one, "
        f"{held['lost']} whose secret is gone."
    )
    for key in held["waiting_last_used"]:
        used = f"last used {key['last_used']}" if key["last_used"] else "never used"
        lines.append(f"  {key['id']} {key['name']} of {key['user']}: {used}.")
    if held["waiting"] > SHOWN:
        lines.append(f"  … and {held['waiting'] - SHOWN} more, used longer ago.")
    if held["waiting"]:
        lines.append("  They open nothing any more once the former OPENGATE_KEY_SECRETS are dropped.")
    elif len(settings.KEY_SECRETS) > 1:
        lines.append("  The former OPENGATE_KEY_SECRETS can be dropped.")
    if settings.SECRET_KEY_FALLBACKS:
        lines.append(
            f"OPENGATE_SECRET_KEY_FALLBACKS can be dropped {settings.SESSION_COOKIE_AGE // 3600} h after the change: "
            "no session is older."
        )
    return lines
