"""Bodies of the calls. What is validated is documented; what is unknown is the upstream's business and goes through."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from inference.audio import LANGUAGES
from knowledge.schemas import SearchTool
from opengate.bodies import json_of
from opengate.errors import InvalidBody
from opengate.fields import MAX_FAULTS

MAX_INPUT_ECHO = 200
MAX_PAGES = 1000  # of a document, read at a time

T = TypeVar("T", bound=BaseModel)


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
    tools: list[Any] | None = Field(
        None, description="Tools the model may call; one of type `search` has the gateway look into documents first."
    )
    tool_choice: Any = Field("none", description="Which tool to call.")
    parallel_tool_calls: StrictBool | None = Field(False, description="Whether tools may be called in parallel.")
    user: str | None = Field(None, description="The caller's own user.")
    search: StrictBool | None = Field(False, description="Deprecated: use the search tool.", deprecated=True)
    search_args: dict[str, Any] | None = Field(None, description="Deprecated: use the search tool.", deprecated=True)

    @classmethod
    def read(cls, raw: bytes) -> tuple["ChatCompletionRequest", dict[str, Any], SearchTool | None]:
        """The validated body; the payload for the upstream, what the caller sent less the gateway's own fields; and
        the search that the chat begins with.

        Defaults are documentation: they are not sent. Raises InvalidBody.
        """
        payload = object_of(raw)
        return _validated(cls, payload), payload, _search_tool(payload)


def _search_tool(payload: dict[str, Any]) -> SearchTool | None:
    """Take the search out of the payload, in whichever of its forms it is there; raises InvalidBody."""
    wanted, arguments = payload.pop("search", None), payload.pop("search_args", None)
    if wanted and arguments is None:
        message = "Value error, search_args is required when search is True"
        raise InvalidBody([{"type": "value_error", "loc": ["body"], "msg": message}])
    tools = payload.get("tools") or []
    asked = [(["tools", number], tool) for number, tool in enumerate(tools) if _is_search(tool)]
    if wanted:
        asked.append((["search_args"], {"type": "search"} | arguments))
    payload["tools"] = [tool for tool in tools if not _is_search(tool)]
    if not payload["tools"]:
        del payload["tools"]
        if asked:  # what says how to use tools means nothing without one, and some providers refuse it
            payload.pop("tool_choice", None)
            payload.pop("parallel_tool_calls", None)
    if not asked:
        return None
    place, given = asked[0]
    try:
        return SearchTool.model_validate(given)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False)[:MAX_FAULTS]]
        raise InvalidBody([fault | {"loc": ["body", *place, *fault["loc"][1:]]} for fault in faults]) from None


def _is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "search"


def _input(value: Any) -> Any:
    """A text, texts, a list of tokens or lists of tokens, nothing of it empty; one look at each, whatever is wrong."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, str) and item for item in value) or _are_tokens(value):
            return value
        if all(isinstance(item, list) and item and _are_tokens(item) for item in value):
            return value
    raise ValueError("input should be a text, a list of texts, a list of tokens or a list of such, and not be empty")


def _are_tokens(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < 2**63 for item in items)


TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
TEXT = {"type": "string", "minLength": 1}
INPUT = {"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": TEXT}, TOKENS]}
INPUT["anyOf"].append({"type": "array", "minItems": 1, "items": TOKENS})
NotBlank = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class CallRequest(BaseModel):
    """What is validated is documented, and what is unknown goes to the upstream as it is."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def read(cls, raw: bytes) -> tuple[Self, dict[str, Any]]:
        """The validated body, and what the caller sent: defaults are documentation, and nulls say nothing.

        Raises InvalidBody.
        """
        payload = object_of(raw)
        return _validated(cls, payload), {name: value for name, value in payload.items() if value is not None}


class EmbeddingRequest(CallRequest):
    """Texts to embed, as OpenAI defines it."""

    input: Annotated[Any, AfterValidator(_input), WithJsonSchema(INPUT)] = Field(
        description="A text, a list of texts, a list of tokens, or a list of lists of tokens."
    )
    model: str = Field(description="Name or alias of a model of `GET /v1/models`.", examples=["multilingual-e5-small"])
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="Numbers of a vector, if not all.")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="Numbers, or the base64 of 32-bit floats, which OpenAI's clients ask for."
    )


class RerankRequest(CallRequest):
    """Documents to put in the order of their relevance to a query."""

    query: NotBlank = Field(description="What is looked for.")
    documents: Annotated[list[NotBlank], Field(min_length=1, fail_fast=True)] = Field(description="Texts to rank.")
    model: str = Field(description="Name or alias of a model of `GET /v1/models`.", examples=["bge-reranker"])
    top_n: Annotated[StrictInt, Field(ge=1)] | None = Field(None, description="How many of the best; all without it.")


class DocumentURL(CallRequest):
    """A document by its address."""

    type: Literal["document_url"] = Field(description="Always `document_url`.")
    document_url: Annotated[str, Field(min_length=1)] = Field(
        description="`https://…`, which the model fetches, or `data:application/pdf;base64,…`."
    )
    document_name: str | None = Field(None, description="Its name.")

    @property
    def url(self) -> str:
        return self.document_url


class ImageAddress(CallRequest):
    """An image by its address."""

    url: Annotated[str, Field(min_length=1)] = Field(description="`https://…` or `data:image/png;base64,…`.")
    detail: str | None = Field(None, description="How closely to look at it.")


class ImageURL(CallRequest):
    """An image by its address."""

    type: Literal["image_url"] = Field(description="Always `image_url`.")
    image_url: Annotated[str, Field(min_length=1)] | ImageAddress = Field(
        description="`https://…`, which the model fetches, or `data:image/png;base64,…`."
    )

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class JsonSchema(CallRequest):
    """A schema that the annotation is to keep."""

    name: str = Field(description="Its name.")
    schema_definition: dict[str, Any] = Field(description="The JSON schema.")
    strict: StrictBool = Field(False, description="Whether to keep strictly to it.")
    description: str | None = Field(None, description="What it is for.")


class ResponseFormat(CallRequest):
    """The form of an annotation."""

    type: Literal["text", "json_object", "json_schema"] = Field("text", description="Text, JSON, or a schema's JSON.")
    json_schema: JsonSchema | None = Field(None, description="The schema, with `json_schema`.")


class OCRRequest(CallRequest):
    """A document to read, by Mistral's convention."""

    document: Annotated[DocumentURL | ImageURL, Field(discriminator="type")] = Field(description="What to read.")
    model: str | None = Field(
        None, description="Name or alias of a model of `GET /v1/models`; without one the gateway reads it itself."
    )
    pages: Annotated[list[Annotated[StrictInt, Field(ge=0, le=100_000)]], Field(fail_fast=True)] | None = Field(
        None, description="Which pages, counted from 0; all without it."
    )
    include_image_base64: StrictBool | None = Field(None, description="Whether to send the pictures in it.")
    image_limit: Annotated[StrictInt, Field(ge=0)] | None = Field(None, description="How many pictures at most.")
    image_min_size: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="Least height and width of a picture, in pixels."
    )
    bbox_annotation_format: ResponseFormat | None = Field(None, description="Form of what to say of each picture.")
    document_annotation_format: ResponseFormat | None = Field(None, description="Form of what to say of the whole.")


def _language(value: str) -> str:
    if value and value not in LANGUAGES:
        raise ValueError("language should be the code or the English name, in lower case, of a language")
    return value


class TranscriptionForm(BaseModel):
    """Speech to write down; further fields are forwarded."""

    model: str = Field(description="Name or alias of a model of `GET /v1/models`.", examples=["whisper"])
    language: Annotated[str, AfterValidator(_language), WithJsonSchema({"enum": ["", *sorted(LANGUAGES)]})] = Field(
        "", description="Code or English name of the language spoken."
    )
    prompt: str = Field("", description="What guides the model: names, or what was said before.")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = Field(
        "json", description="`verbose_json`, `srt` and `vtt` tell times, where the model knows them."
    )
    temperature: Annotated[float, Field(ge=0, le=1)] = Field(0, description="Sampling temperature.")


class ParseForm(BaseModel):
    """How to read a PDF."""

    page_range: str = Field("", description="Pages counted from 0, such as `0,5-10,20`; all without it.")
    force_ocr: bool = Field(False, description="Read the image of each page, whatever text it has.")


def object_of(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises InvalidBody or BodyTooLarge."""
    payload = json_of(raw)
    if not isinstance(payload, dict):
        raise InvalidBody([{"type": "model_attributes_type", "loc": ["body"], "msg": "Input should be a valid object"}])
    return payload


def _validated(model: type[T], payload: dict[str, Any]) -> T:
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise InvalidBody([_fault(fault) for fault in error.errors(include_url=False)[:MAX_FAULTS]]) from None


def chosen_pages(pages: list[int] | None) -> list[int] | None:
    """Each page once, in order; None, all, for none named. Raises InvalidBody for too many."""
    wanted = sorted(set(pages or ()))
    if len(wanted) > MAX_PAGES:
        raise InvalidBody([fault("pages", f"At most {MAX_PAGES} pages at a time.")])
    return wanted or None


def fault(field: str, message: str) -> dict[str, Any]:
    """An entry of a 422's `detail` for what no schema tells."""
    return {"type": "value_error", "loc": ["body", field], "msg": f"Value error, {message}"}


def _fault(fault: Any) -> dict[str, Any]:
    """One entry of a 422's `detail`; only a short input is sent back."""
    found = {"type": fault["type"], "loc": ["body", *fault["loc"]], "msg": fault["msg"]}
    given = fault["input"]
    if given is None or isinstance(given, int | float) or (isinstance(given, str) and len(given) <= MAX_INPUT_ECHO):
        found["input"] = given
    return found
