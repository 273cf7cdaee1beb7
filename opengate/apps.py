from django.apps import AppConfig
from django.contrib.admin import apps as admin


class OpengateConfig(AppConfig):
    name = "opengate"
    default = True

    def ready(self) -> None:
        from opengate import checks, heartbeat, sentry, tasks_watched, worker_start  # noqa: F401  register themselves

        sentry.start()


class ConsoleConfig(admin.AdminConfig):
    """Django's admin, with our site in place of its own."""

    default = False
    default_site = "opengate.console.Console"
