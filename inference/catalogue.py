"""The models that a caller may use, as the API lists them."""

from typing import Any

from django.conf import settings

from accounts.principals import Principal
from routing import snapshot
from routing.snapshot import Router
from usage import limits


async def visible(principal: Principal) -> list[Router]:
    """Routers with a provider and a limit that is not 0; authentication has just asked for the epoch in force."""
    shown = (await limits.grants()).visible
    routers = (await snapshot.current()).routers
    return [router for router in routers if router.providers and (principal.role_id, router.id) in shown]


def described(router: Router) -> dict[str, Any]:
    """An `inference.responses.Model`."""
    return {
        "object": "model",
        "id": router.name,
        "type": router.type,
        "aliases": router.aliases,
        "created": router.created,
        "owned_by": router.owned_by or settings.APP_TITLE,
        "max_context_length": router.max_context_length,
        "costs": {
            "prompt_tokens": float(router.cost_prompt_tokens),
            "completion_tokens": float(router.cost_completion_tokens),
        },
    }
