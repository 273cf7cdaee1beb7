"""The production server."""

from argparse import ArgumentParser
from typing import Any

import uvicorn
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Serves OpenGate with uvicorn, several processes on one port."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--workers", type=int, default=2, help="Processes; one a core.")
        parser.add_argument("--grace", type=int, default=30, help="Seconds that open calls have to finish at the end.")

    def handle(self, *args: Any, **options: Any) -> None:
        uvicorn.run(
            "opengate.asgi:application",
            host=options["host"],
            port=options["port"],
            workers=options["workers"],
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=options["grace"],
            backlog=4096,
        )
