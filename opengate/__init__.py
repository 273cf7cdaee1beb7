"""The floor and the roof of the project; product rules live in the apps."""

from opengate.celery import app as celery_app

__all__ = ["celery_app"]
