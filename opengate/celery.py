"""The Celery application: background work of all apps. `tasks_watched` and `heartbeat` add what it tells of itself."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")

app = Celery("opengate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
