"""The playground's chat: that of the API for who is signed in to the site, with a session in place of a key."""

from io import BytesIO
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.core.exceptions import SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from accounts import principals
from accounts.errors import InvalidKey
from accounts.models import PLAYGROUND
from accounts.principals import Principal
from inference.endpoints import ChatCompletions
from knowledge.models import Document
from knowledge.schemas import SearchTool
from opengate.database import in_thread
from opengate.errors import APIError
from opengate.sessions import SessionOfACall
from usage.accounting import Call


class SignedOut(APIError):
    """Nobody is signed in, or the account is closed."""

    status = 401

    def __init__(self) -> None:
        super().__init__("You are signed out.")


class ForeignForm(APIError):
    """The request does not come from a page of ours, or from one of a former session."""

    status = 403

    def __init__(self) -> None:
        super().__init__("Please load the page again.")


class PlaygroundChat(ChatCompletions):
    """`POST /playground/chat`: as `/v1/chat/completions`, and each thing found tells the name of its document."""

    async def _caller(self) -> Principal:
        self._require_method()
        user_id = await in_thread(signed_in)(self.scope)
        try:
            return await principals.of_user(user_id, PLAYGROUND)
        except InvalidKey:
            raise SignedOut from None

    async def _informed(
        self, call: Call, payload: dict[str, Any], tool: SearchTool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        payload, found = await super()._informed(call, payload, tool)
        if found:
            await in_thread(name_documents)(call.principal.user_id, found["search_results"])
        return payload, found


def signed_in(scope: dict[str, Any]) -> int:
    """Whose session the request carries; raises SignedOut, or ForeignForm without the token of one of our pages.

    Django's own code decides both, on a request without its body: so the token must be in the header, which no
    form of another site can send.
    """
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
    request = ASGIRequest({**scope, "headers": headers}, BytesIO())
    request.session = SessionOfACall(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = auth.get_user(request)
    if not user.is_authenticated:
        raise SignedOut
    csrf = CsrfViewMiddleware(_nothing)
    try:
        request.get_host()
        csrf.process_request(request)
        refusal = csrf.process_view(request, _nothing, (), {})
    except SuspiciousOperation:
        raise APIError("Bad Request", status=400) from None
    if refusal is not None:
        raise ForeignForm
    return int(user.pk)


def _nothing(request: Any) -> HttpResponse:
    return HttpResponse()


def name_documents(user_id: int, results: list[dict[str, Any]]) -> None:
    """Put the names of their documents beside results; one that is gone meanwhile has none."""
    ids = {result["chunk"]["document_id"] for result in results}
    names = dict(Document.objects.visible_to(user_id).filter(id__in=ids).values_list("id", "name"))
    for result in results:
        result["document"] = names.get(result["chunk"]["document_id"])
