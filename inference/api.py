"""Calls other than chat, and the models there are: async, with Ninja."""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadedfile import UploadedFile as DjangoFile
from django.http import HttpRequest, HttpResponse
from ninja import File, Form, Path, UploadedFile
from ninja import Router as Routes
from pydantic_core import to_json

from accounts.authentication import HTTPBearer
from accounts.principals import Principal
from inference import gateway, local
from inference.audio import LANGUAGES, TEXT_FORMATS, Transcription
from inference.errors import DocumentRefused, FeatureNotEnabled
from inference.responses import (
    OCR,
    AudioTranscription,
    CallError,
    Embeddings,
    Model,
    ModelCosts,
    Models,
    ParsedDocument,
    Reranks,
)
from inference.schemas import (
    EmbeddingRequest,
    OCRRequest,
    ParseForm,
    RerankRequest,
    TranscriptionForm,
)
from opengate.errors import BodyTooLarge, InvalidBody
from routing import snapshot
from routing.errors import ModelNotFound
from routing.snapshot import Router
from usage import limits
from usage.accounting import Call

routes = Routes(auth=HTTPBearer())
form = HTTPBearer(form=True)

REFUSED = {401: CallError, 503: CallError}
CALL_REFUSED = dict.fromkeys((400, 401, 403, 404, 413, 422, 429, 500, 503), CallError)
MAX_PAGES = 1000


@routes.post(
    "/embeddings",
    response={200: Embeddings, **CALL_REFUSED},
    summary="Create embeddings",
    operation_id="create_embeddings",
    tags=["Embeddings"],
)
async def create_embeddings(request: HttpRequest, body: EmbeddingRequest) -> HttpResponse:
    """A vector for each input, in order."""
    call = _call(request)
    return _answer(await gateway.embed(call, body.payload()), call)


@routes.post(
    "/rerank",
    response={200: Reranks, **CALL_REFUSED},
    summary="Rank documents",
    operation_id="rerank",
    tags=["Rerank"],
)
async def rerank(request: HttpRequest, body: RerankRequest) -> HttpResponse:
    """How relevant each document is to the query."""
    call = _call(request)
    return _answer(await gateway.rerank(call, body.payload()), call)


@routes.post(
    "/audio/transcriptions",
    response={200: AudioTranscription, **CALL_REFUSED},
    auth=form,
    summary="Transcribe speech",
    operation_id="create_transcription",
    tags=["Audio"],
    openapi_extra={"responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}},
)
async def create_transcription(
    request: HttpRequest,
    fields: Form[TranscriptionForm],
    file: Annotated[UploadedFile, File(description="Speech, in a format that the model reads.")],
) -> HttpResponse:
    """What is said in a file, as JSON; as plain text with `text`, `srt` or `vtt`."""
    _check_file(file)
    given = {name: request.POST[name] for name in TranscriptionForm.model_fields if request.POST.get(name)}
    if request.POST.get("stream", "").lower() == "true":
        raise InvalidBody([_fault("stream", "Transcriptions are not streamed.")])
    call = _call(request)
    asked = Transcription(
        open=_opener(file),
        filename=file.name or "audio",
        content_type=_content_type(file),
        response_format=given.get("response_format", ""),
        language=LANGUAGES.get(fields.language, ""),
        prompt=fields.prompt,
        temperature=fields.temperature if "temperature" in given else None,
        others=_others(request),
    )
    answer = await gateway.transcribe(call, fields.model, asked)
    if fields.response_format in TEXT_FORMATS:
        return HttpResponse(answer["text"], content_type="text/plain; charset=utf-8", headers=call.headers())
    return _answer(answer, call)


@routes.post(
    "/ocr",
    response={200: OCR, **CALL_REFUSED},
    summary="Read a document",
    operation_id="ocr",
    tags=["OCR"],
)
async def ocr(request: HttpRequest, body: OCRRequest) -> HttpResponse:
    """A document's pages as Markdown. Without a model the gateway reads PDFs and images, given as data URLs, itself."""
    call = _call(request)
    if body.model is not None:
        return _answer(await gateway.ocr(call, body.payload()), call)
    if not local.is_enabled():
        raise ModelNotFound
    if any(
        wanted and wanted.type != "text" for wanted in (body.bbox_annotation_format, body.document_annotation_format)
    ):
        raise InvalidBody([_fault("document_annotation_format", "Annotations need a model.")])
    document = _of_data_url(body.document.url)
    pages, usage = await gateway.read_pages(
        call,
        document,
        pages=_some(body.pages),
        with_images=bool(body.include_image_base64),
        image_limit=body.image_limit,
        image_min_size=body.image_min_size,
    )
    read = {"pages_processed": len(pages), "doc_size_bytes": len(document)}
    answer = {"pages": pages, "model": local.NAME, "id": f"request-{call.request_id}", "document_annotation": None}
    return _answer(answer | {"usage_info": read, "usage": usage}, call)


@routes.post(
    "/parse-beta",
    response={200: ParsedDocument, **CALL_REFUSED},
    auth=form,
    summary="Parse a PDF",
    operation_id="parse",
    tags=["Parse"],
    deprecated=True,
)
async def parse(
    request: HttpRequest, fields: Form[ParseForm], file: Annotated[UploadedFile, File(description="A PDF.")]
) -> HttpResponse:
    """A PDF's pages as Markdown, read by the gateway itself."""
    if not local.is_enabled():
        raise FeatureNotEnabled
    _check_file(file)
    call = _call(request)
    pages, usage = await gateway.read_pages(
        call,
        file.read(),
        pages=_some(_page_range(fields.page_range)),
        force_ocr=fields.force_ocr,
        only_pdf=True,
        with_images=True,
    )
    rows = [
        {
            "object": "documentPage",
            "content": page["markdown"],
            "images": {image["id"]: image["image_base64"] for image in page["images"] if image["image_base64"]},
            "metadata": {"document_name": file.name, "page": page["index"]},
        }
        for page in pages
    ]
    return _answer({"object": "list", "data": rows, "usage": usage}, call)


@routes.get(
    "/models",
    response={200: Models, **REFUSED},
    summary="List the models you may use",
    operation_id="list_models",
    tags=["Models"],
)
async def list_models(request: HttpRequest) -> Models:
    """Models of your role that a provider serves."""
    return Models(object="list", data=[_model(router) for router in await visible(caller(request))])


@routes.get(
    "/models/{path:model}",
    response={200: Model, **REFUSED, 404: CallError},
    summary="Get a model",
    operation_id="get_model",
    tags=["Models"],
)
async def get_model(request: HttpRequest, model: Annotated[str, Path(description="Name or alias.")]) -> Model:
    """A model by its name or an alias; names may hold slashes."""
    for router in await visible(caller(request)):
        if model == router.name or model in router.aliases:
            return _model(router)
    raise ModelNotFound


async def visible(principal: Principal) -> list[Router]:
    """Routers with a provider and a limit that is not 0; authentication has just asked for the epoch in force."""
    shown = (await limits.grants()).visible
    routers = (await snapshot.current()).routers
    return [router for router in routers if router.providers and (principal.role_id, router.id) in shown]


def caller(request: HttpRequest) -> Principal:
    principal: Principal = request.auth  # type: ignore[attr-defined]
    return principal


def _call(request: HttpRequest) -> Call:
    return Call(caller(request), request.path, request.id)  # type: ignore[attr-defined]


def _answer(content: Mapping[str, Any], call: Call) -> HttpResponse:
    """The answer as it is: what a provider adds to the schema stays in it."""
    return HttpResponse(to_json(content, inf_nan_mode="null"), content_type="application/json", headers=call.headers())


def _fault(field: str, message: str) -> dict[str, Any]:
    return {"type": "value_error", "loc": ["body", field], "msg": f"Value error, {message}"}


# Files


def _check_file(file: DjangoFile) -> None:
    if (file.size or 0) > settings.MAX_FILE_BYTES:
        raise BodyTooLarge(f"File size limit exceeded (max: {settings.MAX_FILE_BYTES} bytes).")
    if not file.size:
        raise InvalidBody([_fault("file", "The file is empty.")])


def _opener(file: DjangoFile) -> Callable[[], BinaryIO]:
    """A handle for each provider that is tried: who sends a file closes it. Small files lie in memory."""
    if isinstance(file, TemporaryUploadedFile):
        path = FilePath(file.temporary_file_path())
        return lambda: path.open("rb")
    return partial(BytesIO, file.read())


def _content_type(file: DjangoFile) -> str:
    """What the caller says the file is, where that can stand in a header."""
    given = file.content_type or ""
    return given if re.fullmatch(r"[\w.+-]{1,100}/[\w.+-]{1,100}", given, re.ASCII) else "application/octet-stream"


def _others(request: HttpRequest) -> dict[str, list[str]]:
    """Fields of the form that the gateway does not know, as long as their names are plain."""
    known = {*TranscriptionForm.model_fields, "stream", "file"}
    return {
        name: [str(value) for value in values]
        for name, values in request.POST.lists()
        if name not in known and re.fullmatch(r"[\w.\[\]-]{1,100}", name, re.ASCII)
    }


def _of_data_url(url: str) -> bytes:
    match = re.match(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,", url)
    if match is None:
        raise DocumentRefused("Without a model, documents are read from data URLs in base64 only.")
    try:
        document = b64decode(url[match.end() :], validate=True)
    except ValueError:
        raise DocumentRefused("The data URL is not base64.") from None
    if len(document) > settings.MAX_FILE_BYTES:
        raise BodyTooLarge(f"File size limit exceeded (max: {settings.MAX_FILE_BYTES} bytes).")
    return document


def _some(pages: list[int] | None) -> list[int] | None:
    """Each page once, in order; None, all, for none named."""
    wanted = sorted(set(pages or ()))
    if len(wanted) > MAX_PAGES:
        raise InvalidBody([_fault("pages", f"At most {MAX_PAGES} pages at a time.")])
    return wanted or None


def _page_range(text: str) -> list[int]:
    """`0,5-10,20`: pages from 0, ranges with their ends."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise InvalidBody([_fault("page_range", "page_range should be like 0,5-10,20.")])
        if int(match[2] or match[1]) - int(match[1]) > MAX_PAGES:
            raise InvalidBody([_fault("page_range", f"At most {MAX_PAGES} pages at a time.")])
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def _model(router: Router) -> Model:
    return Model(
        object="model",
        id=router.name,
        type=router.type,
        aliases=list(router.aliases),
        created=router.created,
        owned_by=router.owned_by or settings.APP_TITLE,
        max_context_length=router.max_context_length,
        costs=ModelCosts(
            prompt_tokens=float(router.cost_prompt_tokens), completion_tokens=float(router.cost_completion_tokens)
        ),
    )
