from django.apps import AppConfig


class RoutingConfig(AppConfig):
    name = "routing"

    def ready(self) -> None:
        from opengate import epoch
        from routing.models import Provider, Router, RouterName

        epoch.watch(Provider, Router, RouterName)
