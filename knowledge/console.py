"""What administrators do with documents in the console: upload, look on, embed anew, try a search."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.forms import HiddenInput
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts import principals
from accounts.principals import Principal
from knowledge import lexical, reembedding, search, uploads
from knowledge.api import embedding_router_id
from knowledge.errors import sentence_of
from knowledge.forms import ReembedForm, SearchForm, UploadForm
from knowledge.models import UNFINISHED, Collection, Document
from knowledge.queries import Asked, Query, Scope, SearchMethod, whole_scope
from knowledge.tasks import ingest_document, reembed_collection, send
from opengate.database import commit
from opengate.errors import APIError
from opengate.request_id import new_request_id
from routing.errors import ModelNotFound
from routing.models import Router
from usage import accounting
from usage.errors import RouterClosed

KEY_NAME = "console"  # in place of a key's, in usage records
SHOWN = 20  # documents on a collection's page, the newest
TOLD = 20  # files that were refused, each with a message
EXCERPT = 420  # characters
BEFORE = 80  # of these, before the first word that was found
MARKED_IN = 20_000  # characters of a chunk in which words are looked for
WORDS = 20_000  # that a dictionary is asked for
WORD = re.compile(r"\w{1,100}")


def allowed(request: HttpRequest, *permissions: str) -> bool:
    return all(request.user.has_perm(f"knowledge.{permission}") for permission in permissions)


def demand(request: HttpRequest, *permissions: str) -> None:
    if not allowed(request, *permissions):
        raise PermissionDenied


def _collection(id: int) -> Collection:
    return get_object_or_404(Collection.objects.select_related("owner", "space__router", "next_space__router"), pk=id)


def page_of(collection: Collection) -> str:
    return reverse("admin:knowledge_collection_change", args=[collection.pk])


# upload


class Refused(NamedTuple):
    """A file that was not taken, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"“{self.name}”: {self.reason}"


def received(form: UploadForm) -> tuple[int, list[Refused]]:
    """How many files of a valid form are on their way, and those that are not: one does not stop the others."""
    given, came, refused = form.cleaned_data, 0, []
    for file in given["file"]:
        try:
            uploads.receive(
                given["collection"],
                file,
                given["options"],
                metadata=given["metadata"],
                queue=partial(send, ingest_document),
            )
        except APIError as error:
            refused.append(Refused((file.name or "")[:255], sentence_of(error)))
        else:
            came += 1
    return came, refused


def upload(request: HttpRequest) -> HttpResponse:
    """A form with files. It answers as soon as they are stored; how far they are, the collection's page shows."""
    demand(request, "add_document")
    if request.method != "POST":
        return _upload_page(request, UploadForm(initial={"collection": _asked_for(request)}))
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return _upload_page(request, form)
    came, refused = received(form)
    if not came:
        for refusal in refused[:TOLD]:
            form.add_error("file", str(refusal))
        return _upload_page(request, form)
    for refusal in refused[:TOLD]:
        messages.error(request, str(refusal))
    if len(refused) > TOLD:
        messages.error(request, f"{len(refused) - TOLD} more were refused.")
    messages.success(request, "1 document is on its way." if came == 1 else f"{came} documents are on their way.")
    collection = form.cleaned_data["collection"]
    if allowed(request, "view_collection"):
        return HttpResponseRedirect(f"{page_of(collection)}#documents")
    return HttpResponseRedirect(reverse("admin:knowledge_document_changelist"))


def _asked_for(request: HttpRequest) -> Collection | None:
    id = request.GET.get("collection", "")
    return Collection.objects.filter(pk=int(id)).first() if id.isascii() and id.isdigit() and len(id) < 19 else None


def _upload_page(request: HttpRequest, form: UploadForm) -> HttpResponse:
    context = admin.site.each_context(request) | {
        "title": "Add documents",
        "opts": Document._meta,
        "form": form,
        "errors": form.errors,
        "most": settings.MAX_FILE_BYTES,
    }
    return render(request, "admin/knowledge/document/upload.html", context)


# how far things are


def collection_context(request: HttpRequest, collection: Collection) -> dict[str, Any]:
    """What a collection's page shows beneath its form."""
    shown: dict[str, Any] = progress_of(collection)
    if allowed(request, "add_document"):
        form = UploadForm(initial={"collection": collection.pk})
        form.fields["collection"].widget = HiddenInput()
        shown |= {"upload_form": form, "most": settings.MAX_FILE_BYTES}
    if allowed(request, "change_collection"):
        shown["model_form"] = ReembedForm(initial={"model": collection.space and collection.space.router_id})
    return shown | {"may_search": allowed(request, "view_collection", "view_chunk")}


def progress_of(collection: Collection) -> dict[str, Any]:
    """Its newest documents, how many are under way, and how far another model is with it."""
    documents = Document.objects.filter(collection=collection)
    shown = {
        "collection": collection,
        "documents": documents.described().defer("options", "metadata").order_by("-id")[:SHOWN],
        "unfinished": documents.filter(status__in=UNFINISHED).count(),
        "now": timezone.now(),
    }
    if collection.next_space is not None:
        shown |= {"embedded": reembedding.embedded(collection.pk), "obstacle": _obstacle(collection)}
    return shown


def _obstacle(collection: Collection) -> str:
    """Why another model cannot go on, as far as the tables know."""
    assert collection.next_space is not None  # it is on its way there
    router = collection.next_space.router
    if router is None:
        return "The model was deleted: choose another."
    if not router.providers.exists():
        return f"No provider serves {router}."
    owner = collection.owner
    if owner.expires is not None and owner.expires <= timezone.now():
        return f"The account of {owner}, who pays for it, has expired."
    return ""


@require_GET
def collection_progress(request: HttpRequest, id: int) -> HttpResponse:
    demand(request, "view_collection", "view_document")
    return render(request, "admin/knowledge/collection/progress.html", progress_of(_collection(id)))


@require_GET
def document_progress(request: HttpRequest, id: int) -> HttpResponse:
    demand(request, "view_document")
    document = get_object_or_404(Document.objects.described().select_related("collection"), pk=id)
    return render(request, "admin/knowledge/document/progress.html", {"document": document, "now": timezone.now()})


@require_POST
def retry(request: HttpRequest, id: int) -> HttpResponse:
    demand(request, "change_document")
    document = get_object_or_404(Document, pk=id)
    if Document.objects.filter(pk=document.pk).retry():
        send(ingest_document, document.pk)
        messages.success(request, "The document begins anew.")
    else:
        messages.warning(request, "Only a document that failed begins anew.")
    return HttpResponseRedirect(reverse("admin:knowledge_document_change", args=[document.pk]))


# another model


@require_POST
def reembed(request: HttpRequest, id: int) -> HttpResponse:
    """What `PATCH /v1/collections/{id}` does with a model: its owner pays, and must be allowed to use it."""
    demand(request, "change_collection")
    collection = _collection(id)
    form = ReembedForm(request.POST)
    if not form.is_valid():
        messages.error(request, "Choose a model that embeds.")
        return HttpResponseRedirect(page_of(collection))
    router: Router = form.cleaned_data["model"]

    def begin() -> bool:
        locked = Collection.objects.locked(collection.pk)
        if locked is None or not reembedding.begin(locked, router):
            return False
        transaction.on_commit(partial(send, reembed_collection, collection.pk))
        return True

    try:
        embedding_router_id(router.name, async_to_sync(principals.of_user)(collection.owner_id))
        is_on_its_way = commit(begin)
    except APIError as error:
        messages.error(request, f"The owner, {collection.owner}, pays for it, and cannot: {sentence_of(error)}")
    else:
        told = "is being embedded anew with" if is_on_its_way else "is embedded by"
        messages.success(request, f"“{collection}” {told} {router}.")
    return HttpResponseRedirect(page_of(collection))


# the search tester


class Part(NamedTuple):
    """A piece of an excerpt; marked when it is a word of the query."""

    text: str
    is_marked: bool


@dataclass(slots=True)
class Found:
    """A chunk in a column, and where the other columns have it."""

    rank: int
    result: search.Result
    document: str
    parts: Sequence[Part] = ()
    elsewhere: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def page(self) -> Any:
        return (self.result.metadata or {}).get("page")


@dataclass(slots=True)
class Column:
    """What one method finds, or why it cannot."""

    method: str
    score: str
    found: list[Found] = field(default_factory=list)
    trouble: str = ""
    latency_ms: float | None = None


@dataclass(slots=True)
class Comparison:
    """A query by the three methods; what embedding it took, and who paid for that."""

    columns: list[Column]
    payer: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    embedding_ms: float | None = None


SCORES = {
    SearchMethod.SEMANTIC: "(1 + cosine) / 2, from 0 to 1",
    SearchMethod.LEXICAL: "BM25, unbounded",
    SearchMethod.HYBRID: "Σ 1 / (rff_k + rank)",
}


def compare(user_id: int, collection: Collection, asks: Mapping[str, Any], request_id: str) -> Comparison:
    """What each method finds in a collection, whoever owns it."""
    scope = whole_scope(collection)
    columns = {method: Column(method, score) for method, score in SCORES.items()}
    comparison = Comparison(list(columns.values()))
    asked = Asked()
    started = time.perf_counter()
    try:
        asked, payer = async_to_sync(_ask)(user_id, collection, asks["query"], scope, request_id)
    except APIError as error:
        for method in (SearchMethod.SEMANTIC, SearchMethod.HYBRID):
            columns[method].trouble = sentence_of(error)
    else:
        comparison.payer = payer.email
        comparison.usage = accounting.total(asked.usages)
        comparison.embedding_ms = 1000 * (time.perf_counter() - started)
    for method, column in columns.items():
        if not column.trouble:
            threshold = asks["score_threshold"] if method == SearchMethod.SEMANTIC else 0
            query = Query(asks["query"], method, limit=asks["limit"], rff_k=asks["rff_k"], score_threshold=threshold)
            started = time.perf_counter()
            results = search.run(query, scope, asked)
            column.latency_ms = 1000 * (time.perf_counter() - started)
            column.found = [Found(rank, result, "") for rank, result in enumerate(results, 1)]
    _describe(columns, collection, asks["query"])
    return comparison


async def _ask(
    user_id: int, collection: Collection, text: str, scope: Scope, request_id: str
) -> tuple[Asked, Principal]:
    """The query as the collection's model has it, and who pays: the administrator, or where that one's role may not use
    the model the owner, as of documents."""
    query = Query(text, SearchMethod.HYBRID, collection_ids=[collection.pk])
    payer = replace(await principals.of_user(user_id), key_name=KEY_NAME)
    try:
        return await search.ask(payer, query, scope, request_id), payer
    except (RouterClosed, ModelNotFound):
        if collection.owner_id == user_id:
            raise
    payer = replace(await principals.of_user(collection.owner_id), key_name=KEY_NAME)
    return await search.ask(payer, query, scope, new_request_id()), payer


def _describe(columns: Mapping[SearchMethod, Column], collection: Collection, text: str) -> None:
    """Names of the documents, places in the other columns, and excerpts with the query's words."""
    all_found = [found for column in columns.values() for found in column.found]
    names = dict(
        Document.objects.filter(id__in={found.result.document_id for found in all_found}).values_list("id", "name")
    )
    ranks = {
        method: {found.result.chunk_id: found.rank for found in column.found} for method, column in columns.items()
    }
    words = {word for found in all_found for word in WORD.findall(found.result.content[:MARKED_IN])}
    meant = lexical.words_meant(text, collection.language, sorted(words)[:WORDS]) if words else set()
    for method, column in columns.items():
        for found in column.found:
            id = found.result.chunk_id
            found.document = names.get(found.result.document_id, "a deleted document")
            found.parts = list(excerpt(found.result.content, meant))
            found.elsewhere = {str(other): ranks[other].get(id) for other in columns if other != method}


def excerpt(content: str, meant: set[str]) -> Iterator[Part]:
    """A piece of a text around the first of the words, each of them marked."""
    places = [match.span() for match in WORD.finditer(content, 0, MARKED_IN) if match.group() in meant]
    start = max(places[0][0] - BEFORE, 0) if places else 0
    while 0 < start < len(content) and not content[start - 1].isspace() and places and start < places[0][0]:
        start += 1  # to the beginning of a word
    end = min(start + EXCERPT, len(content))
    if start:
        yield Part("… ", False)
    at = start
    for begin, stop in places:
        if stop > end:
            break
        if begin > at:
            yield Part(content[at:begin], False)
        yield Part(content[begin:stop], True)
        at = stop
    yield Part(content[at:end] + (" …" if end < len(content) else ""), False)


def try_search(request: HttpRequest, id: int) -> HttpResponse:
    """A form; posted, since it asks a model, and since what is looked for belongs into no log of addresses."""
    demand(request, "view_collection", "view_chunk")
    collection = _collection(id)
    form = SearchForm(request.POST) if request.method == "POST" else SearchForm()
    comparison = None
    if form.is_bound and form.is_valid():
        request_id: str = request.id  # type: ignore[attr-defined]
        comparison = compare(int(request.user.pk or 0), collection, form.cleaned_data, request_id)
    context = admin.site.each_context(request) | {
        "title": f"Search in {collection}",
        "opts": Collection._meta,
        "collection": collection,
        "form": form,
        "errors": form.errors,
        "comparison": comparison,
        "is_own": comparison is not None and comparison.payer == getattr(request.user, "email", ""),
    }
    return render(request, "admin/knowledge/collection/search.html", context)
