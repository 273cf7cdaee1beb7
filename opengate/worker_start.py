"""What keeps a worker from starting: rather no worker than one that does half of its work, or works elsewhere."""

import os
import sys
from pathlib import Path
from typing import Any

from celery import signals
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from opengate.celery import app


@signals.celeryd_init.connect
def refuse_a_schedule_that_cannot_be_kept(options: dict[str, Any], **told: Any) -> None:
    """Beat would end with a traceback, and its worker would go on without it."""
    file = Path(options.get("schedule_filename") or app.conf.beat_schedule_filename).absolute()
    if options.get("beat") and not os.access(file.parent, os.W_OK):
        sys.exit(f"Beat cannot write its schedule {file}: name another file by -s.")


@signals.worker_init.connect
def refuse_a_wrong_environment(**told: Any) -> None:
    """As `serve` does: with a default in place of what was meant, work would be done at another database."""
    try:
        call_command("check")
    except SystemCheckError as error:
        sys.exit(str(error))
