"""The chat operation in the OpenAPI document, from the schema that the consumer validates with."""

from typing import Any

from pydantic.json_schema import models_json_schema

from inference.responses import CallError
from inference.schemas import ChatCompletionRequest

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


def chat_paths() -> dict[str, Any]:
    """`paths` and `components` of the chat operation."""
    models = [(ChatCompletionRequest, "validation"), (CallError, "serialization")]
    _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    error = {"application/json": {"schema": {"$ref": REF.format(model="CallError")}}}
    operation = {
        "operationId": "create_chat_completion",
        "summary": "Create a chat completion",
        "description": "As OpenAI's. With `stream` the answer is server-sent events, the last but `[DONE]` with usage.",
        "tags": ["Chat"],
        "security": [{"HTTPBearer": []}],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": REF.format(model="ChatCompletionRequest")}, "example": EXAMPLE}
            },
        },
        "responses": {
            "200": {
                "description": "The completion.",
                "content": {
                    "application/json": {"schema": {"$ref": REF.format(model="ChatCompletion")}},
                    "text/event-stream": {"schema": EVENT},
                },
            },
            **{status: {"description": text, "content": error} for status, text in REFUSALS.items()},
        },
    }
    schemas = {**definitions["$defs"], "ChatCompletion": COMPLETION}
    return {"paths": {"/v1/chat/completions": {"post": operation}}, "components": {"schemas": schemas}}
