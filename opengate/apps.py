from django.apps import AppConfig


class OpengateConfig(AppConfig):
    name = "opengate"

    def ready(self) -> None:
        from opengate import checks  # noqa: F401  registers the system checks
