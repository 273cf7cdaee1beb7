"""Ask every provider about its model."""

import asyncio
import json
import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tabulate import tabulate

from inference import discovery
from opengate.loops import in_loop
from routing.errors import ProviderUnreachable
from routing.models import Provider

AT_ONCE = 20


class Command(BaseCommand):
    help = (
        "Asks every provider about its model, as when it was made. The exit code is 0 when all answer, and 1 when one "
        "is not reachable or contradicts what is stored of its context length or vector size."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--router", metavar="NAME", help="Only the providers of this router; its name or an alias.")
        parser.add_argument("--timeout", type=int, default=30, help="Seconds to wait for each at most (default: 30).")
        parser.add_argument("--save", action="store_true", help="Store what they say where it differs.")
        parser.add_argument("--json", action="store_true", help="Print one JSON list.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["timeout"] < 1:
            raise CommandError("--timeout must be at least 1.")
        providers = Provider.objects.select_related("router").order_by("router__name", "id")
        if options["router"]:
            providers = providers.filter(router__names__value=options["router"])
            if not providers:
                raise CommandError(f"No provider serves a router {options['router']}.")
        rows = list(providers)
        found = in_loop(self._ask_all(rows, options["timeout"]))
        if options["save"]:
            for provider, answer in zip(rows, found, strict=True):
                if answer["status"] != "unreachable" and provider.learn(
                    answer["max_context_length"], answer["vector_size"]
                ):
                    answer["status"] = "saved"
        if options["json"]:
            self.stdout.write(json.dumps(found))
        else:
            self.stdout.write(tabulate(found, headers="keys") if found else "There are no providers.")
        if any(answer["status"] not in ("ok", "saved") for answer in found):
            sys.exit(1)

    async def _ask_all(self, providers: list[Provider], timeout: int) -> list[dict[str, Any]]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(provider: Provider) -> dict[str, Any]:
            provider.timeout = min(provider.timeout, timeout)
            async with gate:
                return await self._ask(provider)

        return await asyncio.gather(*(ask(provider) for provider in providers))

    async def _ask(self, provider: Provider) -> dict[str, Any]:
        started = time.monotonic()
        answer: dict[str, Any] = {
            "id": provider.id,
            "router": provider.router.name,
            "type": provider.type,
            "model_name": provider.model_name,
            "url": provider.url,
            "status": "ok",
            "max_context_length": provider.max_context_length,
            "vector_size": provider.vector_size,
        }
        reason = ""
        try:
            found = await discovery.discover(provider, provider.router.type)
        except ProviderUnreachable as error:
            answer["status"], reason = "unreachable", error.reason + error.cause
        else:
            for name in ("max_context_length", "vector_size"):
                stored, told = getattr(provider, name), getattr(found, name)
                if told is not None:
                    answer[name] = told
                    if stored not in (None, told):
                        answer["status"], reason = "differs", f"{name} is stored as {stored}"
        return answer | {"ms": round((time.monotonic() - started) * 1000), "reason": reason}
