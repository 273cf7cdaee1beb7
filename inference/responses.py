"""Answers of the calls, as they are documented. What a provider adds to them stays in them."""

from typing import Any, Literal

from ninja import Schema
from pydantic import Field


class Usage(Schema):
    """What the call used."""

    prompt_tokens: int = Field(0, description="Tokens in.")
    completion_tokens: int = Field(0, description="Tokens out.")
    total_tokens: int = Field(0, description="Their sum.")
    cost: float = Field(0, description="By the router's prices.")
    carbon: dict[str, Any] = Field(description="Energy and carbon, least and most.")
    impacts: dict[str, Any] = Field(description="kWh and kgCO2eq.")
    requests: int = Field(1, description="Calls of models that this request made.")


class Embedding(Schema):
    """One vector."""

    object: Literal["embedding"] = Field("embedding", description="Always `embedding`.")
    index: int = Field(description="Which input it is of.")
    embedding: list[float] | str = Field(description="Numbers, or the base64 of 32-bit floats.")


class Embeddings(Schema):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[Embedding] = Field(description="One for each input.")
    model: str = Field(description="The name that the caller used.")
    usage: Usage = Field(description="Tokens, cost and carbon of the call.")
    id: str = Field(description="The provider's id of the answer, else one of ours.")


class Rank(Schema):
    """How relevant one document is."""

    relevance_score: float = Field(description="More is more relevant.")
    index: int = Field(description="Which document.")


class Reranks(Schema):
    """The documents by their relevance."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    id: str = Field(description="The provider's id of the answer, else one of ours.")
    results: list[Rank] = Field(description="As the model ranked them.")
    model: str = Field(description="The name that the caller used.")
    usage: Usage = Field(description="Tokens, cost and carbon of the call.")


class AudioTranscription(Schema):
    """What was said. `verbose_json` has segments and more beside it."""

    id: str = Field(description="The provider's id of the answer, else one of ours.")
    text: str = Field(description="What was said.")
    model: str = Field(description="The name that the caller used.")
    usage: Usage = Field(description="Tokens, cost and carbon of the call.")


class OCRImage(Schema):
    """A picture in a page; corners in pixels from the top left."""

    id: str = Field(description="Its name in the Markdown.")
    top_left_x: int | None = Field(None, description="Left.")
    top_left_y: int | None = Field(None, description="Top.")
    bottom_right_x: int | None = Field(None, description="Right.")
    bottom_right_y: int | None = Field(None, description="Bottom.")
    image_base64: str | None = Field(None, description="The picture, as a data URL.")
    image_annotation: str | None = Field(None, description="What the model says of it.")


class OCRDimensions(Schema):
    """The size of a page's image."""

    dpi: int = Field(description="Pixels an inch.")
    height: int = Field(description="Pixels.")
    width: int = Field(description="Pixels.")


class OCRPage(Schema):
    """One page."""

    index: int = Field(description="Counted from 0.")
    markdown: str | None = Field(None, description="Its text.")
    images: list[OCRImage] = Field(description="Pictures in it.")
    dimensions: OCRDimensions | None = Field(None, description="Its size.")


class OCRUsage(Schema):
    """What was read."""

    pages_processed: int = Field(description="Pages.")
    doc_size_bytes: int | None = Field(None, description="Bytes of the document.")


class OCR(Schema):
    """The document's pages."""

    pages: list[OCRPage] = Field(description="In order.")
    model: str | None = Field(None, description="The name that the caller used; `local` without one.")
    id: str | None = Field(None, description="The provider's id of the answer, else one of ours.")
    document_annotation: str | None = Field(None, description="What the model says of the document, as JSON.")
    usage_info: OCRUsage | None = Field(None, description="How much was read.")
    usage: Usage | None = Field(None, description="Tokens, cost and carbon of the call.")


class PageMetadata(Schema):
    """Where a page is from."""

    document_name: str = Field(description="Name of the file.")
    page: int = Field(description="Counted from 0.")


class DocumentPage(Schema):
    """One page."""

    object: Literal["documentPage"] = Field("documentPage", description="Always `documentPage`.")
    content: str = Field(description="Its text as Markdown.")
    images: dict[str, str] = Field(description="Pictures as data URLs, by their names in the text.")
    metadata: PageMetadata = Field(description="Its document and number.")


class ParsedDocument(Schema):
    """The pages of a PDF."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[DocumentPage] = Field(description="In order.")
    usage: Usage = Field(description="Tokens, cost and carbon of the call.")


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
