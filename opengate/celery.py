"""The Celery application: background work of all apps."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "opengate.settings")

app = Celery("opengate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
