"""The console's pages of collections, documents, chunks and embedding spaces."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.db.models.functions import Left, Length
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from knowledge import console, indexing
from knowledge.kinds import Kind
from knowledge.models import Chunk, Collection, Document, DocumentQuerySet, Space, Status
from opengate.console import ConsoleAdmin
from opengate.console_forms import ROW_ID
from usage.admin import CappedPaginator, ReadOnlyAdmin

BEGINNING = 120  # characters of a chunk in a list
SHOWN = 100_000  # and on its page


class SpaceFilter(admin.SimpleListFilter):
    """One query for all names; Django's own filter asks for each."""

    title = "model"
    parameter_name = "space"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(space.pk), str(space)) for space in Space.objects.select_related("router")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value() or ""
        return queryset.filter(space=int(chosen)) if ROW_ID.fullmatch(chosen) else queryset


@admin.register(Collection)
class CollectionAdmin(ConsoleAdmin):
    """Whose documents are searched how; files are added there, a model is changed, and a search is tried."""

    change_form_template = "admin/knowledge/collection/change_form.html"
    list_display = (
        *("name", "owner", "visibility", "document_count", "chunks", "language", "models"),
        "search_link",
    )
    list_filter = ("visibility", "language", SpaceFilter)
    list_select_related = ("owner", "space__router", "next_space__router")
    search_fields = ("name", "owner__email")
    search_help_text = "A part of the name, or of the owner's e-mail."
    empty_help = "Users make collections in the playground or with POST /v1/collections; here you look after them."
    autocomplete_fields = ("owner",)
    readonly_fields = (
        "language",
        "embedded_by",
        "changing_to",
        "document_count",
        "chunks",
        "words",
        "created",
        "updated",
    )
    fields = (
        ("name", "owner", "visibility"),
        "description",
        ("language", "embedded_by", "changing_to"),
        ("document_count", "chunks", "words"),
        ("created", "updated"),
    )
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator

    def get_urls(self) -> list[Any]:
        pages = {"search": console.try_search, "progress": console.collection_progress, "reembed": console.reembed}
        return _pages_of_one("collection", pages) + super().get_urls()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Collection]:
        return Collection.objects.described().select_related("next_space__router")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # its owner makes it

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        collection = kwargs.get("obj")
        if collection is not None:
            context |= console.collection_context(request, collection)
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Collection, form: Any, change: bool) -> None:
        """What was changed in the form: the rest has moved on meanwhile."""
        obj.save(update_fields=[*form.changed_data, "updated"])

    @admin.display(description="documents")
    def document_count(self, collection: Any) -> SafeString:
        address = reverse("admin:knowledge_document_changelist", query={"collection__id__exact": collection.pk})
        return format_html('<a href="{}">{}</a>', address, collection.document_count)

    @admin.display(description="model")
    def embedded_by(self, collection: Collection) -> str:
        return str(collection.space.router or "a deleted one") if collection.space else "none"

    @admin.display(description="changing to")
    def changing_to(self, collection: Collection) -> str:
        return self._next_model(collection) or "–"

    def _next_model(self, collection: Collection) -> str | None:
        return str(collection.next_space.router or "a deleted one") if collection.next_space else None

    @admin.display(description="model")
    def models(self, collection: Collection) -> str:
        now, next = self.embedded_by(collection), self._next_model(collection)
        return f"{now} → {next}" if next else now

    @admin.display(description="search")
    def search_link(self, collection: Collection) -> SafeString:
        address = reverse("admin:knowledge_collection_search", args=[collection.pk])
        return format_html('<a href="{}" aria-label="Try a search in {}">Try</a>', address, collection.name)


def _pages_of_one(model: str, pages: Mapping[str, Any]) -> list[Any]:
    """Addresses beneath one row's."""
    return [
        path(f"<int:id>/{name}/", admin.site.admin_view(view), name=f"knowledge_{model}_{name}")
        for name, view in pages.items()
    ]


class KindFilter(admin.SimpleListFilter):
    """All kinds there can be; Django's own filter reads the whole table for those there are."""

    title = parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind.value, kind.value) for kind in Kind]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(Document)
class DocumentAdmin(ConsoleAdmin):
    """How far each document is, and why it is not further."""

    change_form_template = "admin/knowledge/document/change_form.html"
    list_display = ("name", "collection", "state", "chunk_count", "file_size", "error", "created")
    list_filter = ("status", KindFilter)
    list_select_related = ("collection",)
    search_fields = ("name", "collection__name", "collection__owner__email")
    search_help_text = "A part of the name, of the collection's name, or of its owner's e-mail."
    empty_help = "Documents are the files of a collection: add some here, or on the collection's page."
    ordering = ("-id",)
    sortable_by = ("name", "created")
    actions = ("retry",)
    fields = readonly_fields = (
        *("name", "collection", "chunk_count", "kind", "file_size", "options", "metadata"),
        *("crashes", "created"),
    )
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = CappedPaginator

    def get_urls(self) -> list[Any]:
        pages = {"progress": console.document_progress, "retry": console.retry}
        return _pages_of_one("document", pages) + super().get_urls()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Document]:
        return Document.objects.described()

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        return console.upload(request)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Nothing of it is edited: there is nothing to save."""
        nothing = {"show_save": False, "show_save_and_continue": False, "show_save_and_add_another": False}
        context |= nothing | {"document": kwargs.get("obj"), "now": timezone.now()}
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="status", ordering="status")
    def state(self, document: Document) -> SafeString:
        level = {Status.READY: "good", Status.FAILED: "bad"}.get(Status(document.status), "")
        words = document.status if document.is_finished else f"{document.status}, {document.progress:.0%}"
        return format_html('<span class="badge {}">{}</span>', level, words)

    @admin.display(description="crashes in a row")
    def crashes(self, document: Document) -> int:
        return document.deaths

    @admin.display(description="chunks")
    def chunk_count(self, document: Any) -> SafeString:
        address = reverse("admin:knowledge_chunk_changelist", query={"document__id__exact": document.pk})
        return format_html('<a href="{}">{}</a>', address, document.chunk_count)

    @admin.display(description="size", ordering="size")
    def file_size(self, document: Document) -> str:
        return filesizeformat(document.size)

    @admin.action(description="Try again those that failed", permissions=["change"])
    def retry(self, request: HttpRequest, queryset: DocumentQuerySet) -> None:
        self.message_user(request, f"{queryset.retry()} documents begin anew.", messages.SUCCESS)


@admin.register(Chunk)
class ChunkAdmin(ReadOnlyAdmin):
    """What is found. Read-only."""

    list_display = ("number", "document", "collection", "beginning", "metadata")
    list_select_related = ("document", "collection")
    sortable_by = ()
    search_fields = ("=document__id",)
    search_help_text = "The id of a document. A document's page leads to its chunks."
    empty_help = "Chunks are the pieces of documents that a search finds."
    fields = readonly_fields = ("document", "collection", "number", "text", "metadata", "created")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Chunk]:
        """A chunk may have megabytes, of which nobody reads more than the beginning."""
        texts = {"beginning": Left("content", BEGINNING), "text": Left("content", SHOWN), "length": Length("content")}
        return super().get_queryset(request).defer("content").annotate(**texts)

    @admin.display(description="content")
    def beginning(self, chunk: Any) -> str:
        return str(chunk.beginning)

    @admin.display(description="content")
    def text(self, chunk: Any) -> SafeString:
        rest = f"{chunk.length - SHOWN} more characters are not shown." if chunk.length > SHOWN else ""
        return format_html('<div class="as-is">{}</div><p class="quiet">{}</p>', chunk.text, rest)


@admin.register(Space)
class SpaceAdmin(ReadOnlyAdmin):
    """Where vectors are compared, and how much of the truly nearest is found there."""

    list_display = ("id", "router", "dimensions", "vectors", "index", "found", "probed", "created")
    empty_help = "The first collection that a model embeds makes its space."
    list_select_related = ("router",)
    sortable_by = ()
    actions = ("probe",)
    fields = readonly_fields = list_display

    @admin.display
    def vectors(self, space: Space) -> int:
        return indexing.rows_of(space)

    @admin.display
    def index(self, space: Space) -> str:
        return {True: "ready", False: "being built", None: "none: compared one by one"}[indexing.state_of(space)]

    @admin.display(description="recall of the nearest 10", empty_value="")
    def found(self, space: Space) -> str | None:
        """All are found where all are compared."""
        if indexing.state_of(space) is None:
            return "100 %"
        return None if space.recall is None else f"{space.recall:.1%}"

    @admin.action(description="Probe the recall now", permissions=["view"])
    def probe(self, request: HttpRequest, queryset: QuerySet[Space]) -> None:
        for space in queryset:
            share = indexing.probe(space)
            told = "nothing to probe" if share is None else f"{share:.1%} of the nearest 10 are found"
            self.message_user(request, f"{space}: {told}.", messages.SUCCESS)
