import logging
import warnings

from django.apps import AppConfig
from django.contrib.admin import apps as admin


class OpengateConfig(AppConfig):
    name = "opengate"
    default = True

    def ready(self) -> None:
        from opengate import checks, heartbeat, sentry, tasks_watched, worker_start  # noqa: F401  register themselves

        sentry.start()
        logging.captureWarnings(True)  # in the log's format, as all that is said
        # WhiteNoise opens files for threads; Django reads them whole, and ours are small.
        warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")


class ConsoleConfig(admin.AdminConfig):
    """Django's admin, with our site in place of its own."""

    default = False
    default_site = "opengate.console.Console"
