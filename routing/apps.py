from django.apps import AppConfig


class RoutingConfig(AppConfig):
    name = "routing"
    verbose_name = "Models"

    def ready(self) -> None:
        from opengate import audit, epoch
        from routing.models import Provider, Router, RouterName

        epoch.watch(Provider, Router, RouterName)
        costs = ("cost_prompt_tokens", "cost_completion_tokens")
        audit.watch(Router, "name", "user", "type", "load_balancing_strategy", *costs)
        audit.watch(RouterName, "value", "router")
        hosting = ("model_hosting_zone", "model_total_params", "model_active_params")
        found = ("max_context_length", "vector_size")
        served = ("router", "user", "type", "url", "timeout", "model_name", "qos_metric", "qos_limit")
        audit.watch(Provider, *served, *costs, *hosting, *found, secrets=["key"])
