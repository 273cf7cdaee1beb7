"""Collections of documents, their chunks, and the vectors that stand for them."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Self
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex, OpClass
from django.contrib.postgres.search import SearchVectorField
from django.db import connection, models
from django.db.models import Count, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Now
from django.utils import timezone
from pgvector.django import HalfVectorField

from routing.models import ModelType, Router


class Visibility(models.TextChoices):
    PRIVATE = "private", "private"
    PUBLIC = "public", "public"


class Language(models.TextChoices):
    """Languages whose words lexical search knows; each has a text search configuration, `opengate_<language>`."""

    ENGLISH = "english", "english"
    FRENCH = "french", "french"
    GERMAN = "german", "german"
    ITALIAN = "italian", "italian"
    PORTUGUESE = "portuguese", "portuguese"
    SPANISH = "spanish", "spanish"
    SWEDISH = "swedish", "swedish"


class Status(models.TextChoices):
    PENDING = "pending", "Waits for a worker"
    PARSING = "parsing", "Is being read"
    EMBEDDING = "embedding", "Is being embedded"
    READY = "ready", "Can be searched"
    FAILED = "failed", "Cannot be read"


UNFINISHED = frozenset({Status.PENDING, Status.PARSING, Status.EMBEDDING})


class SpaceQuerySet(models.QuerySet["Space"]):
    def of(self, router: Router) -> "Space":
        """The router's newest space; made when it has none."""
        return self.filter(router=router).order_by("-id").first() or self.create(router=router)

    def default(self) -> "Space | None":
        """The space of the setting's model, without one of the first model that embeds; None where there is none."""
        routers = Router.objects.filter(type=ModelType.TEXT_EMBEDDINGS_INFERENCE, providers__isnull=False)
        if settings.EMBEDDING_MODEL:
            routers = routers.filter(names__value=settings.EMBEDDING_MODEL)
        router = routers.order_by("id").first()
        return self.of(router) if router else None


class Space(models.Model):
    """Where vectors can be compared: those of one model, all of `dimensions` numbers; null until the first is known.

    A router whose model changes gets another space, so that what was embedded before never meets what comes after.
    """

    router = models.ForeignKey(Router, on_delete=models.SET_NULL, null=True, related_name="spaces")
    dimensions = models.PositiveIntegerField(null=True)
    recall = models.FloatField(
        null=True, help_text="Share of the truly nearest that the index finds, when last probed."
    )
    probed = models.DateTimeField(null=True)
    created = models.DateTimeField(auto_now_add=True)

    objects = SpaceQuerySet.as_manager()

    class Meta:
        ordering: ClassVar[list[str]] = ["id"]

    def __str__(self) -> str:
        return f"{self.router or 'a deleted model'}, {self.dimensions or 'unknown'} dimensions"


class CollectionQuerySet(models.QuerySet["Collection"]):
    def visible_to(self, user_id: int) -> Self:
        """What a user may read: the user's own, and public ones."""
        return self.filter(Q(owner_id=user_id) | Q(visibility=Visibility.PUBLIC))

    def editable_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)

    def locked(self, id: int) -> "Collection | None":
        """One of them, held until the transaction ends; before any of its documents, so that no two wait for ever."""
        return self.select_for_update(no_key=True, of=("self",)).filter(id=id).first()

    def described(self) -> Self:
        """With `document_count`, counted for the rows that are shown."""
        counts = Document.objects.filter(collection=OuterRef("pk")).order_by().values("collection")
        counted = counts.annotate(count=Count("pk")).values("count")
        return self.select_related("owner", "space__router").annotate(document_count=Coalesce(Subquery(counted), 0))


class Collection(models.Model):
    """Documents of one owner that are searched together.

    `chunks` and `words` are what lexical ranking needs to know of the whole; a trigger of the database keeps them.
    """

    name = models.CharField(max_length=255)
    description = models.TextField(null=True, blank=True)
    visibility = models.CharField(max_length=16, choices=Visibility.choices, default=Visibility.PRIVATE)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="collections")
    language = models.CharField(max_length=16, choices=Language.choices)
    space = models.ForeignKey(
        Space, on_delete=models.PROTECT, null=True, blank=True, related_name="collections", help_text="Searched now."
    )
    next_space = models.ForeignKey(
        Space, on_delete=models.PROTECT, null=True, blank=True, related_name="+", help_text="Being filled."
    )
    previous_space = models.ForeignKey(
        Space, on_delete=models.PROTECT, null=True, editable=False, related_name="+", help_text="Until searches ended."
    )
    lease_expires = models.DateTimeField(null=True, editable=False, help_text="Whoever fills the next space holds it.")
    switched = models.DateTimeField(null=True, editable=False, help_text="When the space changed last.")
    chunks = models.PositiveBigIntegerField(default=0, editable=False)
    words = models.PositiveBigIntegerField(default=0, editable=False, help_text="Of all chunks, without stop words.")
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    objects = CollectionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar[list[str]] = ["id"]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["visibility"], condition=Q(visibility="public"), name="collection_public")
        ]

    def __str__(self) -> str:
        return self.name


class DocumentQuerySet(models.QuerySet["Document"]):
    def visible_to(self, user_id: int) -> Self:
        return self.filter(Q(collection__owner_id=user_id) | Q(collection__visibility=Visibility.PUBLIC))

    def editable_by(self, user_id: int) -> Self:
        return self.filter(collection__owner_id=user_id)

    def described(self) -> Self:
        """With `chunk_count`, counted for the rows that are shown."""
        counts = Chunk.objects.filter(document=OuterRef("pk")).order_by().values("document")
        counted = counts.annotate(count=Count("pk")).values("count")
        return self.annotate(chunk_count=Coalesce(Subquery(counted), 0))

    def due(self, now: datetime) -> Self:
        """Unfinished ones that nobody works on and that need not wait."""
        return self.filter(status__in=UNFINISHED, due__lte=now).filter(
            Q(lease_expires__isnull=True) | Q(lease_expires__lt=now)
        )

    def claim(self, id: int, now: datetime) -> "Document | None":
        """The document, leased to the caller; None when it is gone, finished, waiting or another's."""
        lease = uuid4()
        changes = {"lease": lease, "lease_expires": now + lease_time(), "deaths": F("deaths") + 1}
        claimed = self.filter(id=id).due(now).update(**changes)
        return self.filter(id=id, lease=lease).first() if claimed else None

    def keep(self, document: "Document", *, seconds: float = 0, **changes: Any) -> bool:
        """Store changes and renew the lease, for work that takes `seconds` more than its time; False when it is no
        longer this holder's, or the document is gone."""
        changes["lease_expires"] = timezone.now() + timedelta(seconds=seconds) + lease_time()
        # Nobody waits for the disk: what is lost with the machine is done again.
        return self._change(document, changes, "set_config('synchronous_commit', 'off', true) = 'off'")

    def release(self, document: "Document", **changes: Any) -> bool:
        """Store changes and give the lease back; False when it is no longer this holder's, or the document is gone."""
        return self._change(document, {**changes, "lease": None, "lease_expires": None})

    @staticmethod
    def _change(document: "Document", changes: dict[str, Any], condition: str = "true") -> bool:
        """By hand: it is done some times for each document, and the ORM takes longer than Postgres."""
        fields = ", ".join(f"{name} = %({name})s" for name in changes)
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE knowledge_document SET {fields} WHERE id = %(_id)s AND lease = %(_lease)s AND {condition}",  # noqa: S608
                {**changes, "_id": document.pk, "_lease": document.lease},
            )
            return bool(cursor.rowcount)

    def retry(self) -> int:
        """Have those that failed begin anew; how many these are."""
        return self.filter(status=Status.FAILED).update(
            status=Status.PENDING, error="", failure=None, tries=0, deaths=0, progress=0, due=timezone.now()
        )


def lease_time() -> timedelta:
    return timedelta(seconds=settings.INGESTION_LEASE_SECONDS)


class Document(models.Model):
    """A file, or a name without one, on its way into a collection or in it.

    Whoever works on it holds a lease, and does nothing without. `options` say how it is split, as the upload did.
    """

    collection = models.ForeignKey(
        Collection, on_delete=models.DO_NOTHING, db_constraint=False, related_name="documents"
    )
    name = models.CharField(max_length=255)
    kind = models.CharField(max_length=16, blank=True, editable=False)
    file = models.CharField(max_length=255, blank=True, editable=False, help_text="Its name in the storage.")
    size = models.PositiveBigIntegerField(default=0, editable=False, help_text="Bytes.")
    fingerprint = models.CharField(max_length=64, blank=True, editable=False)
    options = models.JSONField(default=dict, editable=False)
    metadata = models.JSONField(null=True, editable=False)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.PENDING)
    progress = models.FloatField(default=0, editable=False, help_text="From 0 to 1.")
    error = models.TextField(blank=True, help_text="Why it failed, or what it waits for.")
    failure = models.PositiveSmallIntegerField(null=True, editable=False, help_text="Status code of what failed.")
    edited = models.BooleanField(default=False, editable=False, help_text="Its chunks are no longer those of its file.")
    tries = models.PositiveIntegerField(default=0, editable=False, help_text="How often it was put off.")
    deaths = models.PositiveIntegerField(default=0, editable=False, help_text="How often its worker vanished in a row.")
    due = models.DateTimeField(default=timezone.now, editable=False)
    lease: "models.UUIDField[UUID | None, UUID | None]" = models.UUIDField(null=True, editable=False)
    lease_expires = models.DateTimeField(null=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)

    objects = DocumentQuerySet.as_manager()

    class Meta:
        ordering: ClassVar[list[str]] = ["id"]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                fields=["due"], condition=Q(status__in=["pending", "parsing", "embedding"]), name="document_due"
            ),
            models.Index(fields=["collection", "fingerprint"], name="document_same"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED


class Chunk(models.Model):
    """A piece of a document that is found as one. `number` counts inside the document, from 0."""

    document = models.ForeignKey(
        Document, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="chunks"
    )
    collection = models.ForeignKey(Collection, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+")
    number = models.PositiveIntegerField()
    content = models.TextField()
    metadata = models.JSONField(null=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar[list[str]] = ["document_id", "number"]
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["document", "number"], name="chunk_number_once")
        ]

    def __str__(self) -> str:
        return f"{self.number}: {self.content[:80]}"


class Embedding(models.Model):
    """The vector of a chunk in a space, of unit length; narrow, so that a collection is read through quickly.

    One that came after the space's index was built is not in it, so that nobody waits for that, but for those that a
    worker took in since: `in_index`.
    """

    pk = models.CompositePrimaryKey("chunk_id", "space_id")
    chunk = models.ForeignKey(
        Chunk, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="embeddings"
    )
    space = models.ForeignKey(Space, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    collection = models.ForeignKey(Collection, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    embedding = HalfVectorField()
    in_index = models.BooleanField(default=False, db_default=False)

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["collection", "space"], name="embedding_collection"),
            models.Index(fields=["space", "chunk"], condition=Q(in_index=False), name="embedding_not_in_index"),
        ]

    def __str__(self) -> str:
        return f"{self.chunk_id} in {self.space_id}"


class Lexemes(models.Model):
    """The words of a chunk as its collection's language knows them; `length` counts all, the tsvector each with places.

    Ingestion writes them; of chunks that come without, a trigger of the database does.
    """

    chunk = models.OneToOneField(
        Chunk, on_delete=models.DO_NOTHING, db_constraint=False, primary_key=True, related_name="lexemes"
    )
    collection = models.ForeignKey(Collection, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+")
    language = models.CharField(max_length=16, choices=Language.choices)
    length = models.PositiveIntegerField()
    lexemes = SearchVectorField()

    class Meta:
        indexes: ClassVar[list[Any]] = [GinIndex(fields=["lexemes"], name="lexemes_words")]

    def __str__(self) -> str:
        return str(self.lexemes)


class Vocabulary(models.Model):
    """The words of a language as one thing: whoever adds some shares its row, whoever takes some away has it alone.

    Another `edition` tells those who remember its words that some were forgotten.
    """

    language = models.CharField(max_length=16, choices=Language.choices, primary_key=True)
    edition: "models.UUIDField[UUID, UUID]" = models.UUIDField(default=uuid4)

    class Meta:
        verbose_name_plural = "vocabularies"

    def __str__(self) -> str:
        return self.language


class Word(models.Model):
    """That some chunk of a language has a word: where a query's word is in none, the nearest are looked for here.

    Whose chunk that is, a search asks for itself.
    """

    pk = models.CompositePrimaryKey("language", "word")
    language = models.CharField(max_length=16, choices=Language.choices)
    word = models.TextField()

    class Meta:
        indexes: ClassVar[list[Any]] = [GinIndex(OpClass("word", "gin_trgm_ops"), name="word_alike")]

    def __str__(self) -> str:
        return self.word


class LostWords(models.Model):
    """A note of the database: chunks of a language went, and some words may be in none any more."""

    language = models.CharField(max_length=16, choices=Language.choices)

    class Meta:
        verbose_name_plural = "lost words"

    def __str__(self) -> str:
        return self.language


class Draft(models.Model):
    """A chunk of a document under way: kept, so that whoever goes on need not read the file again.

    Its words are known to a language, or to none: then the database reads them when the chunk comes.
    """

    pk = models.CompositePrimaryKey("document_id", "number")
    document = models.ForeignKey(
        Document, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="drafts"
    )
    number = models.PositiveIntegerField()
    content = models.TextField()
    metadata = models.JSONField(null=True)
    language = models.CharField(max_length=16, choices=Language.choices, null=True)
    length = models.PositiveIntegerField(null=True)
    lexemes = SearchVectorField(null=True)

    def __str__(self) -> str:
        return f"{self.number}: {self.content[:80]}"


class DraftEmbedding(models.Model):
    """The vector of a draft: kept, so that nothing is paid for twice."""

    pk = models.CompositePrimaryKey("document_id", "number")
    document = models.ForeignKey(
        Document, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+"
    )
    number = models.PositiveIntegerField()
    space = models.ForeignKey(Space, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    embedding = HalfVectorField()

    def __str__(self) -> str:
        return f"{self.number} in {self.space_id}"


class DiscardedFile(models.Model):
    """A file to delete: of a document that is gone, noted by the database as it goes; or of one that never came."""

    file = models.CharField(max_length=255)
    due = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.file
