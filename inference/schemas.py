"""Bodies of the calls. What is validated is documented; what is unknown is the upstream's business and goes through."""

from typing import Annotated, Any, Literal

from ninja import Schema
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError
from pydantic_core import from_json

from inference.errors import SearchNotEnabled
from opengate.errors import InvalidBody

MAX_INPUT_ECHO = 200


class ChatCompletionRequest(BaseModel):
    """A chat completion as OpenAI defines it; further fields are forwarded untouched.

    No field checks the items of a list or mapping beyond the first fault: a body of a million faults must stay cheap.
    """

    model_config = ConfigDict(extra="allow")

    messages: list[Any] = Field(description="The conversation so far; forwarded as it is.")
    model: str = Field(description="Name or alias of a model of `GET /v1/models`.")
    frequency_penalty: StrictFloat | None = Field(0, description="Penalty for tokens by how often they occurred.")
    logit_bias: dict[str, Any] | None = Field(None, description="Bias by token id.")
    logprobs: StrictBool | None = Field(False, description="Whether to return log probabilities.")
    top_logprobs: StrictInt | None = Field(None, description="How many alternatives with their log probabilities.")
    presence_penalty: StrictFloat | None = Field(0, description="Penalty for tokens that occurred.")
    max_completion_tokens: StrictInt | None = Field(None, description="Most tokens to generate.")
    n: StrictInt | None = Field(1, description="How many answers.")
    response_format: Any = Field(None, description="Form of the answer, such as a JSON schema.")
    seed: StrictInt | None = Field(None, description="For reproducible sampling.")
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(None, description="Where to stop.")
    stream: StrictBool | None = Field(False, description="Whether to answer with server-sent events.")
    stream_options: Any = Field(None, description="Options of the stream; usage is always sent.")
    temperature: StrictFloat | None = Field(0.7, description="Sampling temperature.")
    top_p: StrictFloat | None = Field(1, description="Nucleus sampling.")
    tools: list[Any] | None = Field(None, description="Tools the model may call.")
    tool_choice: Any = Field("none", description="Which tool to call.")
    parallel_tool_calls: StrictBool | None = Field(False, description="Whether tools may be called in parallel.")
    user: str | None = Field(None, description="The caller's own user.")
    search: StrictBool | None = Field(False, description="Deprecated: use the search tool.", deprecated=True)
    search_args: dict[str, Any] | None = Field(None, description="Deprecated: use the search tool.", deprecated=True)

    @classmethod
    def read(cls, raw: bytes) -> tuple["ChatCompletionRequest", dict[str, Any]]:
        """The validated body, and the payload for the upstream: what the caller sent, less the gateway's own fields.

        Defaults are documentation: they are not sent. Raises InvalidBody.
        """
        payload = _object(raw)
        try:
            body = cls.model_validate(payload)
        except ValidationError as error:
            raise InvalidBody([_fault(fault) for fault in error.errors(include_url=False)]) from None
        searches = payload.pop("search", None), payload.pop("search_args", None)
        if searches[0] and searches[1] is None:
            message = "Value error, search_args is required when search is True"
            raise InvalidBody([{"type": "value_error", "loc": ["body"], "msg": message}])
        if searches[0] or any(isinstance(tool, dict) and tool.get("type") == "search" for tool in body.tools or ()):
            raise SearchNotEnabled
        if payload.get("tools") == []:
            del payload["tools"]
        return body, payload


class CallError(Schema):
    """Why the call was refused."""

    detail: Any = Field(description="A sentence, the faults of a body that does not validate, or the upstream's words.")
    error: dict[str, Any] | None = Field(None, description="The same, as OpenAI's clients read it.")


class ModelCosts(Schema):
    """What a model's tokens cost."""

    prompt_tokens: float = Field(description="Price of a million prompt tokens.")
    completion_tokens: float = Field(description="Price of a million completion tokens.")


class Model(Schema):
    """A model that the caller may use."""

    object: Literal["model"] = Field("model", description="Always `model`.")
    id: str = Field(description="The router's name.")
    type: str = Field(description="What the model does.")
    aliases: list[str] = Field(description="Other names of the model.")
    created: int = Field(description="Unix seconds.")
    owned_by: str = Field(description="The organization whose member made the router, else the application.")
    max_context_length: int | None = Field(description="Tokens, where known.")
    costs: ModelCosts = Field(description="What its tokens cost.")


class Models(Schema):
    """The models that the caller may use."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Model] = Field(description="The models.")


def _object(raw: bytes) -> dict[str, Any]:
    try:
        payload = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidBody(
            [{"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "ctx": {"error": str(error)}}]
        ) from None
    if not isinstance(payload, dict):
        raise InvalidBody([{"type": "model_attributes_type", "loc": ["body"], "msg": "Input should be a valid object"}])
    return payload


def _fault(fault: Any) -> dict[str, Any]:
    """One entry of a 422's `detail`; only a short input is sent back."""
    found = {"type": fault["type"], "loc": ["body", *fault["loc"]], "msg": fault["msg"]}
    given = fault["input"]
    if given is None or isinstance(given, int | float) or (isinstance(given, str) and len(given) <= MAX_INPUT_ECHO):
        found["input"] = given
    return found
