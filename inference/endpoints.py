"""The calls that applications make all day: what each is asked, and how it answers."""

import re
from base64 import b64decode
from contextlib import aclosing
from typing import Any, ClassVar

from django.conf import settings

from accounts.principals import Principal
from inference import catalogue, gateway, local, prompting
from inference.consumers import CallConsumer
from inference.errors import DocumentRefused
from inference.schemas import ChatCompletionRequest, EmbeddingRequest, OCRRequest, RerankRequest, chosen_pages, fault
from knowledge import search
from knowledge.schemas import MAX_QUERY, SearchTool
from opengate.errors import BodyTooLarge, InvalidBody
from opengate.request_id import new_request_id
from routing.errors import ModelNotFound
from usage.accounting import Call

EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ChatCompletions(CallConsumer):
    """`POST /v1/chat/completions`, answered with JSON or with server-sent events."""

    endpoint = "/v1/chat/completions"

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        request, payload, tool = ChatCompletionRequest.read(body)
        call = self.call(principal)
        found: dict[str, Any] = {}
        if tool is not None:
            payload, found = await self._informed(call, payload, tool)
        if not request.stream:
            answer = await gateway.complete(call, payload)
            await self.send_json(200, answer | found, call.headers())
            return
        async with aclosing(gateway.stream(call, payload, beside=found)) as events:
            async for event in events:
                if not self.started:  # the first event decides between a stream and a status code
                    await self.send_headers(headers=EVENTS | call.headers())
                await self.send_body(event, more_body=True)
            await self.send_body(b"")

    async def _informed(
        self, call: Call, payload: dict[str, Any], tool: SearchTool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The payload with what was found for its last message, and that as the answer shows it."""
        question = prompting.question_of(payload["messages"])[:MAX_QUERY]
        if not question:
            return payload, {}
        results, usage = await search.find(call.principal, tool.query_for(question), new_request_id())
        call.before = [usage]
        if not results:
            return payload, {}
        payload = prompting.with_sources(payload, question, [result.content for result in results])
        return payload, {"search_results": [result.as_search() for result in results]}


class Embeddings(CallConsumer):
    """`POST /v1/embeddings`: a vector for each input, in order."""

    endpoint = "/v1/embeddings"

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        _, payload = EmbeddingRequest.read(body)
        call = self.call(principal)
        await self.send_json(200, await gateway.embed(call, payload), call.headers())


class Rerank(CallConsumer):
    """`POST /v1/rerank`: how relevant each document is to the query."""

    endpoint = "/v1/rerank"

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        _, payload = RerankRequest.read(body)
        call = self.call(principal)
        await self.send_json(200, await gateway.rerank(call, payload), call.headers())


class OCR(CallConsumer):
    """`POST /v1/ocr`: a document's pages as Markdown.

    Without a model the gateway reads PDFs and images, given as data URLs, itself.
    """

    endpoint = "/v1/ocr"
    is_admitted = False  # where no model is asked

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        request, payload = OCRRequest.read(body)
        call = self.call(principal)
        answer = await gateway.ocr(call, payload) if request.model is not None else await self._read(call, request)
        await self.send_json(200, answer, call.headers())

    async def _read(self, call: Call, request: OCRRequest) -> dict[str, Any]:
        if not local.is_enabled():
            raise ModelNotFound
        annotations = (request.bbox_annotation_format, request.document_annotation_format)
        if any(wanted and wanted.type != "text" for wanted in annotations):
            raise InvalidBody([fault("document_annotation_format", "Annotations need a model.")])
        document = _of_data_url(request.document.url)
        pages, usage = await gateway.read_pages(
            call,
            document,
            pages=chosen_pages(request.pages),
            with_images=bool(request.include_image_base64),
            image_limit=request.image_limit,
            image_min_size=request.image_min_size,
        )
        return {
            "pages": pages,
            "model": local.NAME,
            "id": f"request-{call.request_id}",
            "document_annotation": None,
            "usage_info": {"pages_processed": len(pages), "doc_size_bytes": len(document)},
            "usage": usage,
        }


class ListModels(CallConsumer):
    """`GET /v1/models`: models of the caller's role that a provider serves."""

    method = "GET"
    is_admitted = False

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        models = [catalogue.described(router) for router in await catalogue.visible(principal)]
        await self.send_json(200, {"object": "list", "data": models}, {})


class GetModel(CallConsumer):
    """`GET /v1/models/{model}`: a model by its name or an alias; names may hold slashes."""

    method = "GET"
    is_admitted = False
    prefix: ClassVar[str] = "/v1/models/"

    async def handle_call(self, principal: Principal, body: bytes) -> None:
        name = self.scope["path"].removeprefix(self.prefix)
        for router in await catalogue.visible(principal):
            if name == router.name or name in router.aliases:
                await self.send_json(200, catalogue.described(router), {})
                return
        raise ModelNotFound


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
