from django.apps import AppConfig


class KnowledgeConfig(AppConfig):
    name = "knowledge"
    verbose_name = "Documents"

    def ready(self) -> None:
        from knowledge.models import Collection
        from opengate import audit

        audit.watch(Collection, "name", "description", "visibility", "owner", "language", "space", "next_space")
