"""The console's pages of collections, documents, chunks and embedding spaces."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from knowledge import indexing
from knowledge.models import Chunk, Collection, Document, DocumentQuerySet, Space
from opengate.console import ConsoleAdmin
from usage.admin import ReadOnlyAdmin


@admin.register(Collection)
class CollectionAdmin(ConsoleAdmin):
    """Whose documents are searched how. A model is changed by `manage.py reembed`, or by the owner."""

    list_display = ("name", "owner", "visibility", "document_count", "chunks", "language", "embedded_by", "changing_to")
    list_filter = ("visibility", "language", "space")
    list_select_related = ("owner", "space__router", "next_space__router")
    search_fields = ("name", "owner__email")
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

    def get_queryset(self, request: HttpRequest) -> QuerySet[Collection]:
        return Collection.objects.described()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # its owner makes it

    def save_model(self, request: HttpRequest, obj: Collection, form: Any, change: bool) -> None:
        """What was changed in the form: the rest has moved on meanwhile."""
        obj.save(update_fields=[*form.changed_data, "updated"])

    @admin.display(description="documents")
    def document_count(self, collection: Any) -> SafeString:
        address = reverse("admin:knowledge_document_changelist", query={"collection__id__exact": collection.pk})
        return format_html('<a href="{}">{}</a>', address, collection.document_count)

    @admin.display(description="model", empty_value="none")
    def embedded_by(self, collection: Collection) -> str | None:
        return str(collection.space.router or "a deleted one") if collection.space else None

    @admin.display(description="changing to", empty_value="")
    def changing_to(self, collection: Collection) -> str | None:
        return str(collection.next_space.router) if collection.next_space else None


@admin.register(Document)
class DocumentAdmin(ConsoleAdmin):
    """How far each document is, and why it is not further."""

    list_display = ("name", "collection", "state", "chunk_count", "kind", "file_size", "error", "created")
    list_filter = ("status", "kind")
    list_select_related = ("collection",)
    search_fields = ("name", "collection__name", "collection__owner__email")
    actions = ("retry",)
    fields = readonly_fields = (
        *("name", "collection", "state", "error", "chunk_count", "kind", "file_size", "options", "metadata"),
        *("tries", "deaths", "due", "lease_expires", "created"),
    )
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Document]:
        return Document.objects.described()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    @admin.display(description="status", ordering="status")
    def state(self, document: Document) -> str:
        return document.status if document.is_finished else f"{document.status}, {document.progress:.0%}"

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
    search_help_text = "The id of a document."
    fields = readonly_fields = ("document", "collection", "number", "content", "metadata", "created")

    @admin.display(description="content")
    def beginning(self, chunk: Chunk) -> str:
        return chunk.content[:120]


@admin.register(Space)
class SpaceAdmin(ReadOnlyAdmin):
    """Where vectors are compared, and how much of the truly nearest is found there."""

    list_display = ("id", "router", "dimensions", "vectors", "index", "found", "probed", "created")
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
