"""Routers and providers."""

from typing import Any

from asgiref.sync import async_to_sync
from django.db import close_old_connections
from django.db.models import QuerySet
from rest_framework.request import Request

from accounts.authentication import caller
from accounts.permissions import AdministersModels
from inference import discovery
from opengate.database import commit, found, locked
from opengate.errors import InvalidBody
from opengate.rows import RowView, listing, operation
from routing import serializers as shapes
from routing.errors import (
    AliasesExist,
    InconsistentMaxContextLength,
    InconsistentMaxContextLengthOfNewRouter,
    InconsistentVectorSize,
    InconsistentVectorSizeOfNewRouter,
    InvalidProviderType,
    InvalidProviderTypeForNewRouter,
    ProviderExists,
    ProviderExistsInNewRouter,
    ProviderNotFound,
    ProviderUnreachable,
    RouterExists,
    RouterNotFound,
)
from routing.models import Provider, Router

NEW_ROUTER = {
    "name": "smollm2",
    "type": "text-generation",
    "aliases": ["small"],
    "load_balancing_strategy": "shuffle",
    "cost_prompt_tokens": 0.2,
    "cost_completion_tokens": 0.6,
}
CREATED = 1_772_500_000
ROUTER = NEW_ROUTER | {"object": "router", "id": 1, "user_id": 1, "vector_size": None, "max_context_length": 8192}
ROUTER |= {"providers": 1, "created": CREATED, "updated": CREATED}
NEW_PROVIDER = {
    "router": 1,
    "type": "vllm",
    "url": "http://vllm:8000/",
    "key": "upstream-key",
    "timeout": 120,
    "model_name": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "model_hosting_zone": "FRA",
    "model_total_params": 2,
    "model_active_params": 2,
    "cost_prompt_tokens": 0.1,
    "cost_completion_tokens": 0.3,
    "qos_metric": "inflight",
    "qos_limit": 20,
}
PROVIDER = {name: value for name, value in NEW_PROVIDER.items() if name != "router"} | {
    "id": 1,
    "router_id": 1,
    "user_id": 1,
    "key": "...",
    "created": CREATED,
    "updated": CREATED,
}


CLEARABLE = ("qos_metric", "qos_limit", "cost_prompt_tokens", "cost_completion_tokens")


class Routers(RowView):
    tag = "Admin"
    permission_classes = (AdministersModels,)

    @operation(
        "Create a router",
        id="create_router",
        body=shapes.CreateRouterSerializer,
        answer=shapes.CreatedRouterSerializer,
        status=201,
        refusals=(RouterExists("smollm2"), AliasesExist(["small"])),
        examples={"request": NEW_ROUTER, "response": {"id": 1} | NEW_ROUTER},
    )
    def post(self, request: Request, body: dict[str, Any]) -> Router:
        """A name for a model. It can be called once a provider serves it and a role opens it."""
        aliases = body.pop("aliases")

        def create() -> Router:
            router = Router(user_id=caller(request).user_id, **body)
            router.rename(body["name"], aliases)
            return router

        return commit(create, taken=lambda: Router().name_conflict(body["name"], aliases))

    @listing(
        "List routers",
        id="list_routers",
        item=shapes.RouterSerializer,
        name="Routers",
        query=shapes.RouterQuery,
        example=ROUTER,
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Router]:
        return Router.objects.described()


class OneRouter(RowView):
    tag = "Admin"
    permission_classes = (AdministersModels,)

    @operation(
        "Get a router",
        id="get_router",
        answer=shapes.RouterSerializer,
        refusals=(RouterNotFound(1),),
        examples={"response": ROUTER},
    )
    def get(self, request: Request, router: int) -> Router:
        return found(Router.objects.described(), router, RouterNotFound(router))

    @operation(
        "Change a router",
        id="update_router",
        body=shapes.RouterUpdateRequestSerializer,
        refusals=(
            RouterNotFound(1),
            RouterExists("smollm2"),
            AliasesExist(["small"]),
            InvalidProviderType("openai", "text-classification"),
        ),
        examples={"request": {"aliases": ["small", "tiny"], "cost_prompt_tokens": 0.3}},
    )
    def patch(self, request: Request, router: int, body: dict[str, Any]) -> None:
        """Aliases that are given replace all former ones."""
        given = {name: value for name, value in body.items() if value is not None}
        aliases = given.pop("aliases", None)

        def change() -> None:
            row = locked(Router.objects.all(), router, RouterNotFound(router))
            for name, value in given.items():
                setattr(row, name, value)
            if "type" in given:
                for provider in row.providers.all():
                    row.require_fit(provider)
            row.rename(row.name, aliases)

        def conflict() -> Any:
            row = found(Router.objects.all(), router, RouterNotFound(router))
            return row.name_conflict(given.get("name", row.name), aliases or ())

        commit(change, taken=conflict)

    @operation(
        "Delete a router",
        id="delete_router",
        answer=shapes.RouterSerializer,
        refusals=(RouterNotFound(1),),
        examples={"response": ROUTER},
    )
    def delete(self, request: Request, router: int) -> Router:
        """Its providers, aliases and limits go too; usage stays. Answers what it was."""

        def remove() -> Router:
            row = found(Router.objects.described(), router, RouterNotFound(router))
            row.delete()
            row.pk = router
            return row

        return commit(remove)


class Providers(RowView):
    tag = "Admin"
    permission_classes = (AdministersModels,)

    @operation(
        "Create a provider",
        id="create_provider",
        body=shapes.CreateProviderSerializer,
        answer=shapes.CreatedProviderSerializer,
        status=201,
        refusals=(
            RouterNotFound(1),
            InvalidProviderType("tei", "text-generation"),
            ProviderUnreachable("SmolLM2"),
            InconsistentVectorSize("e5", 384, 1024),
            InconsistentMaxContextLength("smollm2", 8192, 4096),
            ProviderExists("SmolLM2", "http://vllm:8000/", 1),
        ),
        examples={"request": NEW_PROVIDER, "response": PROVIDER},
    )
    def post(self, request: Request, body: dict[str, Any]) -> Provider:
        """The upstream is asked first: for the model's context length, and for the size of its vectors."""
        router_id = body.pop("router")
        router = found(Router.objects.all(), router_id, RouterNotFound(router_id))
        provider = Provider(router=router, user_id=caller(request).user_id, **body)
        if not router.serves(provider.type):
            raise InvalidProviderType(provider.type, router.type)
        close_old_connections()  # an upstream may be slow, and connections are few
        model = async_to_sync(discovery.discover)(provider, router.type)
        body |= {"max_context_length": model.max_context_length, "vector_size": model.vector_size}

        def create() -> Provider:
            router = locked(Router.objects.all(), router_id, RouterNotFound(router_id))
            row = Provider(router=router, user_id=caller(request).user_id, **body)
            router.require_fit(row)
            row.save()
            return row

        return commit(create, taken=lambda: ProviderExists(body["model_name"], body["url"], router_id))

    @listing(
        "List providers",
        id="list_providers",
        item=shapes.ProviderSerializer,
        name="Providers",
        query=shapes.ProviderQuery,
        example=PROVIDER | {"object": "provider"},
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Provider]:
        return Provider.objects.filter(router=query["router"]) if "router" in query else Provider.objects.all()


class OneProvider(RowView):
    tag = "Admin"
    permission_classes = (AdministersModels,)

    @operation(
        "Get a provider",
        id="get_provider",
        answer=shapes.ProviderSerializer,
        refusals=(ProviderNotFound,),
        examples={"response": PROVIDER | {"object": "provider"}},
    )
    def get(self, request: Request, provider: int) -> Provider:
        return found(Provider.objects.all(), provider, ProviderNotFound())

    @operation(
        "Change a provider",
        id="update_provider",
        body=shapes.ProviderUpdateRequestSerializer,
        refusals=(
            ProviderNotFound,
            RouterNotFound(1),
            InvalidProviderTypeForNewRouter,
            InconsistentVectorSizeOfNewRouter,
            InconsistentMaxContextLengthOfNewRouter,
            ProviderExistsInNewRouter,
        ),
        examples={"request": {"timeout": 60, "qos_metric": None, "qos_limit": None}},
    )
    def patch(self, request: Request, provider: int, body: dict[str, Any]) -> None:
        """Type, address, key and model stay: for others, make another provider."""
        cleared = {name: None for name in CLEARABLE if name in body and body[name] is None}
        given = {name: value for name, value in body.items() if value is not None} | cleared
        moves_to = given.pop("router", None)

        def change() -> None:
            row = locked(Provider.objects.all(), provider, ProviderNotFound())
            for name, value in given.items():
                setattr(row, name, value)
            if row.qos_metric and row.qos_limit is None:
                message = f"Value error, {shapes.QOS_NEEDS_LIMIT}"
                raise InvalidBody([{"type": "value_error", "loc": ["body"], "msg": message}])
            if moves_to not in (None, row.router_id):
                row.router = locked(Router.objects.all(), moves_to, RouterNotFound(moves_to))
                row.router.require_fit(row, moving=True)
            row.save()

        commit(change, taken=ProviderExistsInNewRouter)

    @operation(
        "Delete a provider",
        id="delete_provider",
        answer=shapes.ProviderSerializer,
        refusals=(ProviderNotFound(1),),
        examples={"response": PROVIDER | {"object": "provider"}},
    )
    def delete(self, request: Request, provider: int) -> Provider:
        """Answers what it was."""

        def remove() -> Provider:
            row = found(Provider.objects.all(), provider, ProviderNotFound(provider))
            row.delete()
            row.pk = provider
            return row

        return commit(remove)
