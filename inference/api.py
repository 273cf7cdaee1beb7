"""Calls with a file: async, with Ninja, which reads their forms."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadedfile import UploadedFile as DjangoFile
from django.http import HttpRequest, HttpResponse
from ninja import File, Form, UploadedFile
from ninja import Router as Routes
from pydantic_core import to_json

from accounts.authentication import HTTPBearer
from accounts.principals import Principal
from inference import gateway, local
from inference.audio import LANGUAGES, TEXT_FORMATS, Transcription
from inference.errors import FeatureNotEnabled
from inference.responses import AudioTranscription, CallError, ParsedDocument
from inference.schemas import MAX_PAGES, ParseForm, TranscriptionForm, chosen_pages, fault
from opengate.errors import BodyTooLarge, InvalidBody
from usage.accounting import Call

routes = Routes(auth=HTTPBearer())
form = HTTPBearer(form=True)

CALL_REFUSED = dict.fromkeys((400, 401, 403, 404, 413, 422, 429, 500, 503), CallError)


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
        raise InvalidBody([fault("stream", "Transcriptions are not streamed.")])
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
        pages=chosen_pages(_page_range(fields.page_range)),
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


def caller(request: HttpRequest) -> Principal:
    principal: Principal = request.auth  # type: ignore[attr-defined]
    return principal


def _call(request: HttpRequest) -> Call:
    return Call(caller(request), request.path, request.id)  # type: ignore[attr-defined]


def _answer(content: Mapping[str, Any], call: Call) -> HttpResponse:
    """The answer as it is: what a provider adds to the schema stays in it."""
    return HttpResponse(to_json(content, inf_nan_mode="null"), content_type="application/json", headers=call.headers())


# Files


def _check_file(file: DjangoFile) -> None:
    if (file.size or 0) > settings.MAX_FILE_BYTES:
        raise BodyTooLarge(f"File size limit exceeded (max: {settings.MAX_FILE_BYTES} bytes).")
    if not file.size:
        raise InvalidBody([fault("file", "The file is empty.")])


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


def _page_range(text: str) -> list[int]:
    """`0,5-10,20`: pages from 0, ranges with their ends."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else ():
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part, re.ASCII)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise InvalidBody([fault("page_range", "page_range should be like 0,5-10,20.")])
        if int(match[2] or match[1]) - int(match[1]) > MAX_PAGES:
            raise InvalidBody([fault("page_range", f"At most {MAX_PAGES} pages at a time.")])
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)
