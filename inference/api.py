"""Calls other than chat, and the models there are: async, with Ninja."""

from typing import Annotated

from django.conf import settings
from django.http import HttpRequest
from ninja import Path
from ninja import Router as Routes

from accounts.authentication import HTTPBearer
from accounts.principals import Principal
from inference.schemas import CallError, Model, ModelCosts, Models
from routing import snapshot
from routing.errors import ModelNotFound
from routing.snapshot import Router
from usage import limits

routes = Routes(auth=HTTPBearer(), tags=["Models"])


REFUSED = {401: CallError, 503: CallError}


@routes.get(
    "/models",
    response={200: Models, **REFUSED},
    summary="List the models you may use",
    operation_id="list_models",
)
async def list_models(request: HttpRequest) -> Models:
    """Models of your role that a provider serves."""
    return Models(object="list", data=[_model(router) for router in await _visible(_caller(request))])


@routes.get(
    "/models/{path:model}",
    response={200: Model, **REFUSED, 404: CallError},
    summary="Get a model",
    operation_id="get_model",
)
async def get_model(request: HttpRequest, model: Annotated[str, Path(description="Name or alias.")]) -> Model:
    """A model by its name or an alias; names may hold slashes."""
    for router in await _visible(_caller(request)):
        if model == router.name or model in router.aliases:
            return _model(router)
    raise ModelNotFound


def _caller(request: HttpRequest) -> Principal:
    principal: Principal = request.auth  # type: ignore[attr-defined]
    return principal


async def _visible(principal: Principal) -> list[Router]:
    """Routers with a provider and a limit that is not 0; authentication has just asked for the epoch in force."""
    visible = (await limits.grants()).visible
    routers = (await snapshot.current()).routers
    return [router for router in routers if router.providers and (principal.role_id, router.id) in visible]


def _model(router: Router) -> Model:
    return Model(
        object="model",
        id=router.name,
        type=router.type,
        aliases=list(router.aliases),
        created=router.created,
        owned_by=router.owned_by or settings.APP_TITLE,
        max_context_length=router.max_context_length,
        costs=ModelCosts(
            prompt_tokens=float(router.cost_prompt_tokens), completion_tokens=float(router.cost_completion_tokens)
        ),
    )
