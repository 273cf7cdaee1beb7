"""`manage.py quickstart`: OpenGate with all it needs, in the foreground."""

import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from opengate import quickstart
from opengate.supervisor import SupervisorError


class Command(BaseCommand):
    help = "Start databases, local models, web and worker; Ctrl-C stops them all."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            quickstart.run(quickstart.Options.read(os.environ))
        except SupervisorError as error:
            raise CommandError(str(error)) from error
