"""What the consumers answer, in the OpenAPI document: from the schemas that they validate with."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from inference.responses import OCR, CallError, Embeddings, Model, Models, Reranks
from inference.schemas import ChatCompletionRequest, EmbeddingRequest, OCRRequest, RerankRequest

REF = "#/components/schemas/{model}"
EXAMPLE = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}]}
COMPLETION = {
    "type": "object",
    "description": "A `chat.completion` as the provider sent it, with the caller's model name and our `usage`.",
    "additionalProperties": True,
    "properties": {
        "id": {"type": "string", "description": "The provider's id of the completion, else one of ours."},
        "object": {"type": "string", "description": "Always `chat.completion`."},
        "created": {"type": "integer", "description": "Unix seconds."},
        "model": {"type": "string", "description": "The name that the caller used."},
        "choices": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": True},
            "description": "The answers.",
        },
        "usage": {
            "type": "object",
            "description": "What the call used.",
            "additionalProperties": True,
            "properties": {
                "prompt_tokens": {"type": "integer", "description": "Tokens in."},
                "completion_tokens": {"type": "integer", "description": "Tokens out."},
                "total_tokens": {"type": "integer", "description": "Their sum."},
                "cost": {"type": "number", "description": "By the router's prices."},
                "carbon": {"type": "object", "additionalProperties": True, "description": "Least and most."},
                "impacts": {"type": "object", "additionalProperties": True, "description": "kWh and kgCO2eq."},
                "requests": {"type": "integer", "description": "Calls of models that this request made."},
            },
        },
    },
}
EVENT = {
    "type": "object",
    "description": "One server-sent event.",
    "additionalProperties": True,
    "properties": {
        "data": {
            "type": "string",
            "description": "A `chat.completion.chunk` as JSON; `[DONE]` after the last; `detail` when it broke off.",
        }
    },
    "required": ["data"],
}
REFUSALS = {
    "400": "Insufficient budget, or the provider's own refusal.",
    "401": "No key, or one that does not open.",
    "403": "The model is closed for the caller's role.",
    "404": "Unknown model.",
    "413": "The body is too large.",
    "422": "The body does not validate, or the model is of another type.",
    "429": "A rate limit is reached.",
    "500": "The provider's answer cannot be read, or the gateway failed.",
    "503": "The provider, or the database, is away.",
}
MODEL = {
    "in": "path",
    "name": "model",
    "required": True,
    "schema": {"type": "string"},
    "description": "Name or alias.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What a consumer is asked and answers; schemas by their models, or by a name of one written here."""

    path: str
    id: str
    summary: str
    description: str
    tag: str
    answer: type[BaseModel] | str
    body: type[BaseModel] | None = None
    example: dict[str, Any] | None = None
    parameters: Sequence[dict[str, Any]] = ()
    streams: bool = False
    refusals: Collection[str] = frozenset(REFUSALS)

    def described(self) -> dict[str, Any]:
        answer = self.answer if isinstance(self.answer, str) else self.answer.__name__
        content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(model=answer)}}}
        if self.streams:
            content["text/event-stream"] = {"schema": EVENT}
        error = {"application/json": {"schema": {"$ref": REF.format(model="CallError")}}}
        found: dict[str, Any] = {
            "operationId": self.id,
            "summary": self.summary,
            "description": self.description,
            "tags": [self.tag],
            "security": [{"HTTPBearer": []}],
            "responses": {
                "200": {"description": "The answer.", "content": content},
                **{status: {"description": REFUSALS[status], "content": error} for status in sorted(self.refusals)},
            },
        }
        if self.parameters:
            found["parameters"] = list(self.parameters)
        if self.body is not None:
            asked: dict[str, Any] = {"schema": {"$ref": REF.format(model=self.body.__name__)}}
            if self.example is not None:
                asked["example"] = self.example
            found["requestBody"] = {"required": True, "content": {"application/json": asked}}
        return found


OPERATIONS = (
    Operation(
        path="/v1/chat/completions",
        id="create_chat_completion",
        summary="Create a chat completion",
        description="As OpenAI's. With `stream` the answer is server-sent events, the last but `[DONE]` with usage.",
        tag="Chat",
        body=ChatCompletionRequest,
        example=EXAMPLE,
        answer="ChatCompletion",
        streams=True,
    ),
    Operation(
        path="/v1/embeddings",
        id="create_embeddings",
        summary="Create embeddings",
        description="A vector for each input, in order.",
        tag="Embeddings",
        body=EmbeddingRequest,
        answer=Embeddings,
    ),
    Operation(
        path="/v1/rerank",
        id="rerank",
        summary="Rank documents",
        description="How relevant each document is to the query.",
        tag="Rerank",
        body=RerankRequest,
        answer=Reranks,
    ),
    Operation(
        path="/v1/ocr",
        id="ocr",
        summary="Read a document",
        description="A document's pages as Markdown. Without a model the gateway reads PDFs and images, given as data"
        " URLs, itself.",
        tag="OCR",
        body=OCRRequest,
        answer=OCR,
    ),
    Operation(
        path="/v1/models",
        id="list_models",
        summary="List the models you may use",
        description="Models of your role that a provider serves.",
        tag="Models",
        answer=Models,
        refusals={"401", "503"},
    ),
    Operation(
        path="/v1/models/{model}",
        id="get_model",
        summary="Get a model",
        description="A model by its name or an alias; names may hold slashes.",
        tag="Models",
        answer=Model,
        parameters=[MODEL],
        refusals={"401", "404", "503"},
    ),
)


def consumer_paths() -> dict[str, Any]:
    """`paths` and `components` of what the consumers answer."""
    asked = {operation.body for operation in OPERATIONS if operation.body is not None}
    answered = {operation.answer for operation in OPERATIONS if not isinstance(operation.answer, str)}
    models = [(model, "validation") for model in asked] + [(model, "serialization") for model in answered | {CallError}]
    _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    paths = {
        operation.path: {"get" if operation.body is None else "post": operation.described()} for operation in OPERATIONS
    }
    return {"paths": paths, "components": {"schemas": {**definitions["$defs"], "ChatCompletion": COMPLETION}}}
