"""Show routers and who serves them."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from tabulate import tabulate

from routing.models import Router


class Command(BaseCommand):
    help = "Lists the routers with their aliases, prices and providers."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON list.")

    def handle(self, *args: Any, **options: Any) -> None:
        routers = Router.objects.described().prefetch_related("providers").order_by("name")
        if options["json"]:
            self.stdout.write(json.dumps([self._full(router) for router in routers]))
        elif routers:
            self.stdout.write(tabulate([self._line(router) for router in routers], headers="keys"))
        else:
            self.stdout.write("There are no routers.")

    def _full(self, router: Router) -> dict[str, Any]:
        return {
            "id": router.id,
            "name": router.name,
            "type": router.type,
            "aliases": [name.value for name in router.names.all() if name.is_alias],
            "cost_prompt_tokens": float(router.cost_prompt_tokens),
            "cost_completion_tokens": float(router.cost_completion_tokens),
            "providers": [
                {"id": row.id, "type": row.type, "url": row.url, "model_name": row.model_name}
                for row in router.providers.all()
            ],
        }

    def _line(self, router: Router) -> dict[str, Any]:
        full = self._full(router)
        return {
            "id": full["id"],
            "name": full["name"],
            "type": full["type"],
            "aliases": ", ".join(full["aliases"]),
            "cost": f"{full['cost_prompt_tokens']:g} / {full['cost_completion_tokens']:g}",
            "providers": "\n".join(f"{row['model_name']} at {row['url']}" for row in full["providers"]) or "none",
        }
