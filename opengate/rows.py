"""What all row endpoints share: an operation says once what it takes, answers and refuses; the document repeats it."""

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from inspect import isawaitable
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from opengate.bodies import INCOMING, json_of
from opengate.database import in_thread
from opengate.errors import APIError, BodyTooLarge, DatabaseAway, InvalidBody
from opengate.fields import NO_INTEGER
from opengate.openapi import describe
from opengate.pagination import PageQuery, list_of, page

MAX_BODY_BYTES = 1024 * 1024
MAX_INPUT_ECHO = 200
SECRET_FIELDS = {"password", "current_password", "key"}
_ID = re.compile(r"[+-]?[0-9]{1,40}")

# Words of Django REST framework for faults, in pydantic's: one vocabulary for rows and calls.
FAULTS: Mapping[str, tuple[str, str | None]] = {
    "required": ("missing", "Field required"),
    "null": ("none_not_allowed", "Input should not be null"),
    "blank": ("string_too_short", "String should have at least 1 character"),
    "min_length": ("string_too_short", None),
    "max_length": ("string_too_long", None),
    "min_value": ("greater_than_equal", None),
    "max_value": ("less_than_equal", None),
    "invalid_choice": ("enum", None),
    "not_a_list": ("list_type", "Input should be a valid list"),
    "null_characters_not_allowed": ("string_unicode", None),
    "surrogate_characters_not_allowed": ("string_unicode", None),
}


class JSONParser(BaseParser):
    """The body as JSON, whatever it says it is. Bounded in size and depth; numbers without a JSON form are refused."""

    media_type = "application/json"

    @property
    def max_bytes(self) -> int:
        return MAX_BODY_BYTES

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        raw = stream.read(self.max_bytes + 1)
        if len(raw) > self.max_bytes:
            raise BodyTooLarge(f"Request size limit exceeded (max: {self.max_bytes} bytes).")
        return json_of(raw)


class LargeJSONParser(JSONParser):
    """As long as the server takes."""

    @property
    def max_bytes(self) -> int:
        return int(settings.MAX_BODY_BYTES)


class OnlyJSON(BaseContentNegotiation):
    """JSON comes in and JSON goes out."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class RowView(APIView):
    """A view of rows; closed until a subclass names its permission. `tag` is its heading in the document."""

    tag: str
    parser_classes: Sequence[type[BaseParser]] = (JSONParser,)
    renderer_classes = (JSONRenderer,)
    content_negotiation_class = OnlyJSON
    http_method_names = ("get", "post", "patch", "delete")

    @classmethod
    def refusals(cls) -> list[APIError]:
        """What each method may refuse before it is asked."""
        parts = (*cls.authentication_classes, *cls.permission_classes)
        return [refusal for part in parts for refusal in getattr(part, "REFUSALS", ())]


# A view asks who is calling, and that asks the database in a thread of its own: never of the same pool.
_views = ThreadPoolExecutor(max_workers=16, thread_name_prefix="view")


class WaitingView(RowView):
    """A view whose methods may answer a coroutine, which runs when the thread has gone back to others.

    So whoever waits for something else than rows, a model or a worker, holds up nobody.
    """

    @classmethod
    def as_view(cls, **options: Any) -> Any:
        view = super().as_view(**options)

        @wraps(view)  # with what drf-spectacular and Django read from it
        async def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            response: HttpResponseBase = await in_thread(view, _views)(request, *args, **kwargs)
            if isinstance(response, Unfinished):
                if body := getattr(request, "scope", {}).get(INCOMING):
                    body.release()  # it is stored, and takes no room from others while its caller waits
                await response.finish(request)
            return response

        return answer


@dataclass(frozen=True)
class Accepted:
    """What a method answers whose work goes on after the answer: status 202."""

    content: Any


class Unfinished(Response):
    """An answer whose content is still to come."""

    def __init__(self, work: Awaitable[Any], answered: Callable[[Any], Response]) -> None:
        super().__init__()
        self.work = work
        self.answered = answered

    async def finish(self, request: HttpRequest) -> None:
        try:
            found = self.answered(await self.work)
        except APIError as error:
            self.data = {"detail": error.detail, **error.extra}
            self.status_code, headers = error.status, error.headers
            for name, value in headers.items():
                self[name] = value
        else:
            self.data, self.status_code = found.data, found.status_code


Refusal = APIError | Callable[[], APIError]


def operation(
    summary: str,
    *,
    id: str,
    query: type[serializers.Serializer] | None = None,
    body: type[serializers.Serializer] | None = None,
    answer: type[serializers.Serializer] | None = None,
    status: int | None = None,
    refusals: Sequence[Refusal] = (),
    examples: Mapping[str, Any] | None = None,
    deprecated: bool = False,
    may_accept: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """A method of a RowView that gets path ids, `query` and `body` validated, and answers what `answer` serializes.

    Faults of path, query and body are answered together, as 422. `status` is 200, or 204 where there is no `answer`.
    `refusals` are documented; `examples` holds a `request` and a `response`. With `may_accept` some are answered 202.
    """
    code = status or (200 if answer else 204)

    def decorate(method: Callable[..., Any]) -> Callable[..., Response]:
        @wraps(method)
        def endpoint(view: RowView, request: Request, **path: str) -> Response:
            given = _validated(request, path, query, body)
            content = method(view, request, **given)
            return Unfinished(content, answered) if isawaitable(content) else answered(content)

        def answered(content: Any) -> Response:
            if isinstance(content, Accepted):
                return Response(None if answer is None else answer(content.content).data, status=202)
            return Response(None if answer is None else answer(content).data, status=code)

        return describe(
            id=id,
            summary=summary,
            description=method.__doc__ or "",
            query=query,
            body=body,
            answer=answer,
            status=code,
            refusals=_refusals(refusals, body),
            examples=examples or {},
            deprecated=deprecated,
            may_accept=may_accept,
        )(endpoint)

    return decorate


def listing(
    summary: str,
    *,
    id: str,
    item: type[serializers.Serializer],
    name: str,
    query: type[PageQuery] = PageQuery,
    refusals: Sequence[Refusal] = (),
    example: Mapping[str, Any] | None = None,
    deprecated: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """A method of a RowView that answers a QuerySet, of which the page asked for is sent. `name` is the list's."""
    envelope = list_of(item, name)
    content = {"object": "list", "total": 1, "offset": 0, "limit": 10, "data": [example]}
    examples = {"response": content} if example else {}

    def decorate(method: Callable[..., Any]) -> Callable[..., Response]:
        @wraps(method)
        def paged(view: RowView, request: Request, **given: Any) -> dict[str, Any]:
            total, rows = page(method(view, request, **given), given["query"])
            return {"total": total, "offset": given["query"]["offset"], "limit": given["query"]["limit"], "data": rows}

        return operation(
            summary,
            id=id,
            query=query,
            answer=envelope,
            refusals=refusals,
            examples=examples,
            deprecated=deprecated,
        )(paged)

    return decorate


def _validated(
    request: Request,
    path: Mapping[str, str],
    query: type[serializers.Serializer] | None,
    body: type[serializers.Serializer] | None,
) -> dict[str, Any]:
    """Arguments of the method; raises InvalidBody with the faults of all parts."""
    given: dict[str, Any] = {}
    faults: list[dict[str, Any]] = []
    for name, text in path.items():
        if _ID.fullmatch(text):
            given[name] = int(text)
        else:
            fault = {"type": "int_parsing", "loc": ["path", name], "msg": NO_INTEGER}
            faults.append(_with_input(fault, {name: text}))
    for where, serializer, data in (
        ("query", query, request.query_params.dict() if query else None),
        ("body", body, request.data if body else None),
    ):
        if serializer is not None:
            read = serializer(data=data)
            if read.is_valid():
                given[where] = read.validated_data
            else:
                faults += [_with_input(fault, data) for fault in faults_of(read.errors, [where])]
    if faults:
        raise InvalidBody(faults)
    return given


def faults_of(detail: Any, location: list[Any]) -> list[dict[str, Any]]:
    """Faults as Django REST framework nests them, as a flat list of {"type", "loc", "msg"}."""
    if isinstance(detail, dict):
        return [
            fault
            for name, inner in detail.items()
            for fault in faults_of(inner, location if name == "non_field_errors" else [*location, name])
        ]
    if isinstance(detail, list) and any(isinstance(inner, dict | list) for inner in detail):
        return [fault for index, inner in enumerate(detail) for fault in faults_of(inner, [*location, index])]
    return [_fault(message, location) for message in (detail if isinstance(detail, list) else [detail])]


def _fault(message: Any, location: list[Any]) -> dict[str, Any]:
    code = message.code if isinstance(message, ErrorDetail) else "value_error"
    if code == "invalid" and location == ["body"]:
        return {"type": "model_attributes_type", "loc": location, "msg": "Input should be a valid object"}
    type, text = FAULTS.get(str(code), (str(code), None))
    return {"type": type, "loc": location, "msg": text or str(message)}


def _with_input(fault: dict[str, Any], data: Any) -> dict[str, Any]:
    """The fault with what was given there, when that is short and no secret."""
    for step in fault["loc"][1:]:
        is_there = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if not is_there or step in SECRET_FIELDS:
            return fault
        data = data[step]
    is_short = data is None or isinstance(data, bool) or (isinstance(data, float) and math.isfinite(data))
    is_short |= isinstance(data, int) and data.bit_length() <= 64
    is_short |= isinstance(data, str) and len(data) <= MAX_INPUT_ECHO
    return fault | {"input": data} if is_short else fault


def _refusals(refusals: Sequence[Refusal], body: Any) -> list[APIError]:
    always = (DatabaseAway(), *((_too_large(),) if body else ()))
    return [*(refusal if isinstance(refusal, APIError) else refusal() for refusal in refusals), *always]


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"Request size limit exceeded (max: {MAX_BODY_BYTES} bytes).")
