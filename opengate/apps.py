from django.apps import AppConfig
from django.contrib.admin import apps as admin


class OpengateConfig(AppConfig):
    name = "opengate"
    default = True

    def ready(self) -> None:
        from opengate import checks, sentry  # noqa: F401  registers the system checks

        sentry.start()


class ConsoleConfig(admin.AdminConfig):
    """Django's admin, with our site in place of its own."""

    default = False
    default_site = "opengate.console.Console"
