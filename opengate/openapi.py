"""How rows are described in the OpenAPI document: by the operations themselves, and what their views ask for."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerFieldExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.fields import empty

from opengate.errors import APIError
from opengate.fields import NO_INTEGER

SCHEME = "HTTPBearer"
FAULTS = {"detail": [{"type": "int_parsing", "loc": ["query", "limit"], "msg": NO_INTEGER, "input": "ten"}]}
# The schemas that are closed in the contract; every other object may hold more than it names.
CLOSED = {"Model", "ModelCosts", "HTTPValidationError", "ValidationError"}


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "accounts.authentication.KeyAuthentication"
    name = SCHEME

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer"}


class ConstantExtension(OpenApiSerializerFieldExtension):
    target_class = "opengate.fields.Constant"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        return {"type": "string", "const": self.target.value, "default": self.target.value}


class ErrorSerializer(serializers.Serializer):
    """Why the request was refused."""

    detail = serializers.CharField(help_text="A sentence.")
    reason = serializers.CharField(required=False, help_text="With 424: what the upstream said.")


class ValidationErrorSerializer(serializers.Serializer):
    """One fault of a request."""

    type = serializers.CharField(help_text="The machine's word for the fault.")
    loc = serializers.ListField(
        child=serializers.JSONField(), help_text="Where: `body`, `query` or `path`, then names and positions."
    )
    msg = serializers.CharField(help_text="A sentence.")
    input = serializers.JSONField(required=False, help_text="What was given, when it is short and no secret.")
    ctx = serializers.DictField(required=False, help_text="More about the fault.")


class HTTPValidationErrorSerializer(serializers.Serializer):
    """The request does not validate."""

    detail = ValidationErrorSerializer(many=True, help_text="Its faults, one entry each.")


# Where a 422 may also be a sentence.
UNPROCESSABLE = PolymorphicProxySerializer(
    component_name="Unprocessable",
    serializers=[HTTPValidationErrorSerializer, ErrorSerializer],
    resource_type_field_name=None,
)


class RowSchema(AutoSchema):
    """The description of one method of a RowView: its tag, its ids, and what every method of the view may refuse."""

    def get_tags(self) -> list[str]:
        return [self.view.tag]  # type: ignore[attr-defined]

    def _get_serializer_field_meta(self, field: Any, direction: Any) -> dict[str, Any]:
        """With the defaults that drf-spectacular leaves out: null, and an empty list."""
        meta: dict[str, Any] = super()._get_serializer_field_meta(field, direction)
        default = getattr(field, "default", empty)
        if default is None or default is list:
            meta["default"] = None if default is None else []
        return meta

    def _resolve_path_parameters(self, variables: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "in": "path",
                "name": name,
                "required": True,
                "schema": {"type": "integer"},
                "description": f"Id of the {'key' if name == 'token' else name}.",
            }
            for name in variables
        ]

    def _get_response_bodies(self, direction: Any = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        for status, response in refused(self.view.refusals()).items():  # type: ignore[attr-defined]
            found = self._get_response_for_code(response, str(status))
            if str(status) in bodies:  # the method has its own refusals of that status
                known = bodies[str(status)]["content"]["application/json"]["examples"]
                found["content"]["application/json"]["examples"] |= known
            bodies[str(status)] = found
        return dict(sorted(bodies.items()))


def describe(
    *,
    id: str,
    summary: str,
    description: str,
    query: type[serializers.Serializer] | None,
    body: type[serializers.Serializer] | None,
    answer: type[serializers.Serializer] | None,
    status: int,
    refusals: Iterable[APIError],
    examples: Mapping[str, Any],
    deprecated: bool,
    may_accept: bool,
) -> Any:
    """A decorator that attaches the description to a method; `examples` holds a `request` and a `response`."""
    accepted = {202: OpenApiResponse(answer, description="It goes on after the answer.")} if may_accept else {}
    done = OpenApiResponse(answer, description="Done." if answer is None else "The answer.")
    refusals = list(refusals)
    sentences = [refusal for refusal in refusals if refusal.status == 422]
    invalid = OpenApiResponse(
        UNPROCESSABLE if sentences else HTTPValidationErrorSerializer,
        description="The request does not validate.",
        examples=[
            OpenApiExample("Faults", value=FAULTS, response_only=True, status_codes=["422"]),
            *(
                OpenApiExample(one.detail, value={"detail": one.detail}, response_only=True, status_codes=["422"])
                for one in sentences
            ),
        ],
    )
    shown = []
    if "request" in examples:
        shown.append(OpenApiExample("Request", value=examples["request"], request_only=True))
    if "response" in examples:
        shown.append(
            OpenApiExample("Response", value=examples["response"], response_only=True, status_codes=[str(status)])
        )
    return extend_schema(
        operation_id=id,
        summary=summary,
        deprecated=deprecated,
        description=description or f"{summary}.",
        parameters=[query] if query else None,
        request=body,
        responses={status: done, **accepted, **refused(refusals), 422: invalid},
        examples=shown,
    )


def refused(refusals: Iterable[APIError]) -> dict[int, OpenApiResponse]:
    """A response a status, with the texts of its refusals as examples."""
    texts: dict[int, list[str]] = {}
    for refusal in refusals:
        texts.setdefault(refusal.status, []).append(refusal.detail)
    return {
        status: OpenApiResponse(
            ErrorSerializer,
            description=HTTPStatus(status).phrase,
            examples=[
                OpenApiExample(text, value={"detail": text}, response_only=True, status_codes=[str(status)])
                for text in found
            ],
        )
        for status, found in texts.items()
    }


def open_objects(schemas: dict[str, Any]) -> None:
    """Say of every schema of an object, but the closed ones, that it may hold further fields."""
    if "Unprocessable" in schemas:
        schemas["Unprocessable"]["description"] = "Faults of the request, or why it cannot be done."
    for name, schema in schemas.items():
        if schema.get("type") == "object" and name not in CLOSED:
            schema.setdefault("additionalProperties", True)
