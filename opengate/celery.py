"""The Celery application: background work of all apps."""

import logging
import os
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")

HEARTBEAT_SECONDS = 10.0

logger = logging.getLogger(__name__)

app = Celery("opengate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


class Heartbeat(bootsteps.StartStopStep):
    """Touches WORKER_HEARTBEAT while the worker's loop runs and is connected: to ask it costs a probe no Python."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None

    def start(self, consumer: Any) -> None:
        if settings.WORKER_HEARTBEAT:
            _beat(settings.WORKER_HEARTBEAT)
            self._timer = consumer.timer.call_repeatedly(HEARTBEAT_SECONDS, _beat, (settings.WORKER_HEARTBEAT,))

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _beat(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        logger.error("OPENGATE_WORKER_HEARTBEAT: %s cannot be touched: %s.", file, error.strerror)


app.steps["consumer"].add(Heartbeat)
