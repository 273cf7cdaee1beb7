from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"

    def ready(self) -> None:
        from opengate import audit, epoch
        from usage.models import Limit

        epoch.watch(Limit)
        audit.watch(Limit, "role", "router", "type", "value")
