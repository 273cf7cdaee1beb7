"""The production server."""

import os
import socket
import sys
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from opengate import metrics
from opengate.processes import Plan, Processes
from opengate.serving import Options, serve


class Command(BaseCommand):
    help = (
        "Serves OpenGate by several processes on one port. SIGTERM drains and stops it, SIGHUP replaces the processes "
        "one after another without a failed call. Each default can be set by the environment."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument(
            "--workers",
            type=int,
            default=settings.WEB_WORKERS or cores(),
            help="Processes (OPENGATE_WEB_WORKERS; else one for each core that we may use: %(default)s).",
        )
        parser.add_argument(
            "--drain-delay",
            type=float,
            default=settings.DRAIN_DELAY_SECONDS,
            help="Seconds after SIGTERM in which calls are still taken, while /health/ready already says 503: as long "
            "as a load balancer needs to notice. Kubernetes: 10 (OPENGATE_DRAIN_DELAY_SECONDS; %(default)g).",
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=settings.GRACE_SECONDS,
            help="Seconds after that in which open calls may finish, while new ones get 503. Who stops us must wait "
            "for both and 30 s more: terminationGracePeriodSeconds (OPENGATE_GRACE_SECONDS; %(default)g).",
        )
        parser.add_argument(
            "--keep-alive",
            type=int,
            default=settings.KEEP_ALIVE_SECONDS,
            help="Seconds that an unused connection stays open; longer than the proxy in front keeps its own, or calls "
            "are lost now and then (OPENGATE_KEEP_ALIVE_SECONDS; %(default)d).",
        )
        parser.add_argument(
            "--hang-seconds",
            type=float,
            default=30,
            help="A process whose event loop stands still for so long is killed and replaced (%(default)g).",
        )
        parser.add_argument("--listener", type=int, help=SUPPRESS)  # what a web process is given by its parent
        parser.add_argument("--heart", type=int, help=SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["listener"] is not None:
            serve(options["listener"], options["heart"], _serving(options))
            return
        metrics.prepare()
        if options["workers"] < 1:
            raise CommandError("There must be at least one process: --workers 1.")
        stop = options["drain_delay"] + options["grace"]
        plan = Plan(
            # As we were started, so that new processes are of the code, packages and files that are there then.
            command=[sys.executable, *sys.orig_argv[1:], "--skip-checks"],
            count=options["workers"],
            stop_seconds=stop,
            retire_seconds=options["keep_alive"] + options["grace"],
            hang_seconds=options["hang_seconds"],
        )
        listener = _bound(options["host"], options["port"])
        if not Processes(plan, listener).run():
            sys.exit(1)


def _serving(options: dict[str, Any]) -> Options:
    return Options(
        drain_delay=options["drain_delay"],
        grace=options["grace"],
        keep_alive=options["keep_alive"],
        max_header_bytes=settings.MAX_HEADER_BYTES,
        backlog=settings.BACKLOG,
    )


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket: who connects while the processes still start waits."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=settings.BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise CommandError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from error


def cores() -> int:
    """Cores that we may use, by affinity and by the limit of a container (cgroup v2)."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(ours, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no limit
        return ours
