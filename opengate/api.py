"""Where the frameworks meet: the Ninja API, one shape of errors for all, one OpenAPI document."""

import logging
import sys
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.utils.decorators import sync_and_async_middleware
from django.views import View
from drf_spectacular.generators import SchemaGenerator
from ninja import NinjaAPI
from ninja import Router as Routes
from ninja.errors import HttpError, ValidationError
from ninja.parser import Parser
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler

from inference.api import routes as inference_routes
from inference.monitoring import routes as monitoring_routes
from inference.openapi import consumer_paths
from inference.schemas import object_of
from knowledge.api import routes as knowledge_routes
from opengate import pages
from opengate.database import is_away
from opengate.errors import APIError, DatabaseAway, InvalidBody, openai_error
from opengate.openapi import SCHEME, open_objects
from opengate.rows import faults_of

logger = logging.getLogger(__name__)

MAX_FAULTS = 20  # of a body, that are told

# The order of the contract's tags.
TAGS = (
    "Admin",
    "Audio",
    "Auth",
    "Chat",
    "Chunks",
    "Collections",
    "Documents",
    "Embeddings",
    "Me",
    "Models",
    "OCR",
    "Parse",
    "Rerank",
    "Search",
    "Monitoring",
)


class StrictParser(Parser):
    """JSON as the chat reads it."""

    def parse_body(self, request: HttpRequest) -> Any:
        return object_of(request.body)


def error_response(error: APIError) -> JsonResponse:
    """The body of a refusal outside Django REST framework: `detail`, and `error` for OpenAI's clients."""
    content = {"detail": error.detail, "error": openai_error(error.status, error.detail)}
    return JsonResponse(content, status=error.status, headers=error.headers)


def _refused(request: HttpRequest, error: APIError) -> HttpResponse:
    return error_response(error)


def _invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    return error_response(InvalidBody([_fault(fault) for fault in error.errors[:MAX_FAULTS]]))


def _fault(fault: dict[str, Any]) -> dict[str, Any]:
    """An entry of `detail`; Ninja also says the name of our parameter, which the caller does not know."""
    source, *path = fault["loc"]
    where = "body" if source in ("body", "form", "file") else source
    known = path[1:] if source == "body" else path
    return {"type": fault["type"], "loc": [where, *known], "msg": fault["msg"]}


def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    if isinstance(error.__cause__, APIError):
        return error_response(error.__cause__)  # of the body, which Ninja wraps
    return error_response(APIError(str(error), status=error.status_code))


def _unreadable(request: HttpRequest, error: Exception) -> HttpResponse:
    return error_response(APIError("The form cannot be read.", status=400))


def _unplanned(request: HttpRequest, error: Exception) -> HttpResponse:
    if is_away(error):
        return error_response(DatabaseAway())
    logger.error("Request %s failed.", request.id, exc_info=error)  # type: ignore[attr-defined]
    return error_response(APIError("An unexpected error occurred"))


HANDLERS: dict[type[Exception], Any] = {
    APIError: _refused,
    ValidationError: _invalid,
    HttpError: _http_error,
    MultiPartParserError: _unreadable,
    SuspiciousOperation: _unreadable,
    Exception: _unplanned,
}


def _api(name: str, *parts: Routes) -> NinjaAPI:
    made = NinjaAPI(title=name, docs_url=None, openapi_url=None, urls_namespace=name, parser=StrictParser())
    for routes in parts:
        made.add_router("", routes)
    for kind, handler in HANDLERS.items():
        made.add_exception_handler(kind, handler)
    return made


calls = _api("calls", inference_routes, knowledge_routes)  # under /v1/
monitoring = _api("monitoring", monitoring_routes)


@sync_and_async_middleware
def refuse_methods(get_response: Any) -> Any:
    """Middleware: Ninja's answer to a method that a path does not have, in the shape of all other refusals."""

    def shaped(response: HttpResponse) -> HttpResponse:
        if response.status_code == 405 and "json" not in response.headers.get("Content-Type", ""):
            allow = {"Allow": response.headers["Allow"]} if "Allow" in response.headers else {}
            return error_response(APIError("Method Not Allowed", status=405, headers=allow))
        return response

    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> HttpResponse:
            return shaped(await get_response(request))

        return answer
    return lambda request: shaped(get_response(request))


def drf_exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """The same shape for Django REST framework; an unplanned exception stays one."""
    if is_away(error):
        error = DatabaseAway()
    if isinstance(error, exceptions.ValidationError):
        error = InvalidBody(faults_of(error.detail, ["body"]))
    if isinstance(error, APIError):
        return Response({"detail": error.detail, **error.extra}, status=error.status, headers=error.headers)
    return exception_handler(error, context)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _refusal(request, APIError("Not Found", status=404))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _refusal(request, APIError("Bad Request", status=400))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _refusal(request, APIError("Insufficient rights.", status=403))


def server_error(request: HttpRequest) -> HttpResponse:
    """Django asks for it while it handles the exception."""
    is_ours = not is_away(sys.exception())
    return _refusal(request, APIError("An unexpected error occurred") if is_ours else DatabaseAway())


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return _refusal(request, APIError("Insufficient rights.", status=403))


def _refusal(request: HttpRequest, error: APIError) -> HttpResponse:
    return pages.refusal(request, error.status, error.headers) if pages.is_page(request) else error_response(error)


class OpenAPIView(View):
    """`/openapi.json`: rows from drf-spectacular, calls from Ninja, and those of the consumers."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return JsonResponse(openapi_document())


def openapi_document() -> dict[str, Any]:
    document: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    others = (
        calls.get_openapi_schema(path_prefix="/v1/"),
        monitoring.get_openapi_schema(path_prefix="/"),
        consumer_paths(),
    )
    document.setdefault("paths", {})
    components = document.setdefault("components", {})
    for other in others:
        document["paths"] |= other["paths"]
        for kind, entries in other.get("components", {}).items():
            components[kind] = components.get(kind, {}) | entries
    components["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
    open_objects(components["schemas"])
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}
    document["tags"] = [{"name": tag} for tag in TAGS if tag in used]
    return document
