"""What quickstart needs in an empty database: the first admin with a key, the local models as providers."""

import json
import secrets
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from accounts.models import Key, Permission, Role, User
from routing.models import ModelType, Provider, ProviderType, Router
from usage.models import Limit

EMAIL = "admin@opengate.local"
CHAT_ROUTER = "smollm2"
EMBEDDINGS_ROUTER = "multilingual-e5-small"


class Command(BaseCommand):
    help = "Makes the first admin and registers the local models; later only their addresses are brought up to date."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
        for model in ("chat", "embeddings"):
            parser.add_argument(f"--{model}-url", help=f"Address of the local {model} server.")
            parser.add_argument(f"--{model}-model", help="Name of its model.")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        created = not User.objects.exists()
        made: dict[str, Any] = {"created": created, "admin_email": EMAIL, "admin_password": None, "api_key": None}
        if created:
            role, _ = Role.objects.get_or_create(name="admin", defaults={"permissions": Permission.values})
            password = secrets.token_urlsafe(18)
            user = User.objects.create_user(EMAIL, password, role, name="Administrator")
            _, key = Key.objects.issue(user, "quickstart")
            made |= {"admin_password": password, "api_key": key}
        made["chat_model"] = self._register(
            CHAT_ROUTER, ModelType.TEXT_GENERATION, options["chat_url"], options["chat_model"], created
        )
        self._register(
            EMBEDDINGS_ROUTER,
            ModelType.TEXT_EMBEDDINGS_INFERENCE,
            options["embeddings_url"],
            options["embeddings_model"],
            created,
        )
        if options["json"]:
            self.stdout.write(json.dumps(made))
        else:
            for name, value in made.items():
                self.stdout.write(f"{name:15} {value}")

    def _register(self, name: str, type: ModelType, url: str | None, model: str | None, created: bool) -> str | None:
        """The router's name when it serves the local model. An administrator who removed it is not overruled."""
        if not url or not model:
            return None
        if not created:
            local = Provider.objects.filter(
                router__name=name, type=ProviderType.OPENAI, model_name=model, url__startswith="http://127.0.0.1:"
            )
            former = list(local.values_list("url", flat=True))
            for provider in Provider.objects.filter(url__in=former, model_name=model):  # those of other routers, too
                provider.url = url
                provider.save()
            return name if former else None
        router = Router.objects.create(name=name, type=type, user=User.objects.get(email=EMAIL))
        Provider.objects.create(router=router, type=ProviderType.OPENAI, url=url, model_name=model, user=router.user)
        Limit.objects.open_router(Role.objects.get(name="admin"), router)
        return name
