from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"
    verbose_name = "Usage"

    def ready(self) -> None:
        from opengate import audit, epoch
        from usage.models import Account, Limit

        epoch.watch(Account, Limit)
        audit.watch(Account, "allowance", "carbon_allowance", "period", "time_zone", "refill_day", "refill_hour")
        audit.watch(Limit, "role", "router", "type", "value")
