"""Signs of life that a worker gives: a file, touched while its loop runs, and when each queue's last task ended."""

import logging
from pathlib import Path
from typing import Any

import redis
from celery import bootsteps, signals
from django.conf import settings

from opengate import redis as opengate_redis
from opengate.celery import app

HEARTBEAT_SECONDS = 10.0
WORKED = "opengate:worked"
_WORKED = "redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])"

logger = logging.getLogger(__name__)


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


app.steps["consumer"].add(Heartbeat)


def _beat(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        logger.error("OPENGATE_WORKER_HEARTBEAT: %s cannot be touched: %s.", file, error.strerror)


@signals.task_postrun.connect
def note_when(task: Any, **told: Any) -> None:
    """Remember when a queue's last task ended, by Redis' clock: so a worker that is away shows."""
    queue = (task.request.delivery_info or {}).get("routing_key")
    if queue in {known.name for known in app.conf.task_queues}:
        with opengate_redis.sync_client() as client:
            try:
                client.eval(_WORKED, 1, WORKED, queue)
            except (redis.RedisError, OSError):
                pass  # the tasks themselves have more to say of it
