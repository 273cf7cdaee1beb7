"""What can go wrong with documents, as their owner reads it."""

from inference.errors import FeatureNotEnabled
from opengate.errors import APIError, Conflict

# Statuses of a model that may answer another time.
HEALING = frozenset({408, 425, 429, 500, 502, 503, 504})


def may_heal(error: APIError) -> bool:
    """Whether to try again later: not what is said of the model or its answer for good."""
    return error.status in HEALING and not isinstance(error, VectorizationFailed | ModelAnswersOtherSize)


def sentence_of(error: APIError) -> str:
    """What a refusal says, out of whatever a provider nests it in."""
    detail = error.detail
    for name in ("error", "message", "detail"):  # as providers nest them
        if isinstance(detail, dict) and name in detail:
            detail = detail[name]
    return str(detail)[:1000].replace("\x00", "")


class CollectionNotFound(APIError):
    status = 404

    def __init__(self, id: int | None = None) -> None:
        super().__init__("Collection not found." if id is None else f"Collection {id} not found.")


class DocumentNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Document not found.")


class ChunkNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Chunk not found.")


class PublicCollectionForbidden(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Missing permission to update collection visibility to public.")


class DocumentUnfinished(Conflict):
    """Chunks come to a document that is ready, and to no other."""

    def __init__(self) -> None:
        super().__init__("The document is not ready: see its status.")


class Unreadable(APIError):
    """The document cannot be ingested, and never will be; the sentence says why."""

    status = 422


class StorageAway(APIError):
    """The storage of uploaded files neither takes nor gives any; it may heal."""

    status = 503

    def __init__(self) -> None:
        super().__init__("The storage of documents is away, please try again later.", headers={"Retry-After": "10"})


class NoChunks(APIError):
    status = 500

    def __init__(self) -> None:
        super().__init__("No chunks were extracted from the document.")


class VectorizationFailed(APIError):
    """The model of the collection did not embed the chunks."""

    status = 500

    def __init__(self, reason: str | APIError) -> None:
        """`reason` as a sentence, or the refusal itself, which may say when to come again."""
        sentence, headers = (sentence_of(reason), reason.headers) if isinstance(reason, APIError) else (reason, None)
        super().__init__(f"Vectorization failed: {sentence}", headers=headers)


class WrongSearchMethod(APIError):
    status = 400

    def __init__(self) -> None:
        super().__init__("Score threshold is only available for semantic search method")


class CollectionModelGone(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("The model of the collection is gone: give it another.")


class ModelAnswersOtherSize(APIError):
    """The router's model is another than it was: its vectors cannot be compared with those there are."""

    status = 500

    def __init__(self, size: int, expected: int) -> None:
        super().__init__(f"The model answers vectors of {size} numbers; those of the collection have {expected}.")


class NoEmbeddingModel(FeatureNotEnabled):
    """Neither the collection nor the gateway has a model that embeds."""
