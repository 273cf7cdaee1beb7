"""Collections, documents and chunks as the API writes and reads them."""

from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from knowledge.models import Collection, Document, Language, Status, Visibility
from knowledge.schemas import MAX_NUMBER
from knowledge.splitting import Options, PresetSeparators
from opengate.bodies import json_of
from opengate.errors import BodyTooLarge, InvalidBody
from opengate.fields import ANY_TEXT, MAX_ID, TEXT, Constant, List, QueryInteger, Text, Timestamp, invalid, value_error
from opengate.pagination import ordered_query

MAX_ENTRIES = 10
MAX_WORD = 255
MAX_CHUNKS = 64
MAX_CONTENT = 20 * 1024 * 1024


@extend_schema_field(
    {
        "type": "object",
        "minProperties": 1,
        "maxProperties": MAX_ENTRIES,
        "propertyNames": {"maxLength": MAX_WORD, "pattern": TEXT},
        "additionalProperties": {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_WORD, "pattern": TEXT},
                {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
                {"type": "boolean"},
            ]
        },
    }
)
class Metadata(serializers.Field):
    """A flat JSON object: 1 to 10 entries with short names, and short texts, numbers or booleans as values."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            invalid("dict_type", "Input should be a valid dictionary")
        if not 1 <= len(data) <= MAX_ENTRIES:
            value_error(f"metadata must have 1 to {MAX_ENTRIES} entries")
        found: dict[str, Any] = {}
        for key, value in data.items():
            found[self._word(key, "metadata keys")] = self._value(value)
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._word(value, "metadata values")
        if not isinstance(value, bool | int | float):
            value_error("metadata values must be texts, numbers or booleans")
        if not abs(value) <= MAX_NUMBER:
            value_error(f"metadata numbers must be within ±{MAX_NUMBER}")
        return value

    def _word(self, text: str, what: str) -> str:
        word = text.strip()
        if not 1 <= len(word) <= MAX_WORD or "\x00" in word or any("\ud800" <= char <= "\udfff" for char in word):
            value_error(f"{what} must have 1 to {MAX_WORD} characters")
        return word

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field({"type": "string", "default": ""})
class FormMetadata(Metadata):
    """The same, as JSON in a field of a form; an empty one is none."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            value_error("metadata must be a JSON object")
        if not data.strip():
            return None
        try:
            found = json_of(data.encode("utf-8", "surrogatepass"))
        except (InvalidBody, BodyTooLarge):
            found = None
        if not isinstance(found, dict):
            value_error("metadata must be a JSON object")
        return super().to_internal_value(found)


@extend_schema_field({"type": "string", "format": "binary"})
class File(serializers.FileField):
    """A file in a form."""


class FormBoolean(serializers.BooleanField):
    """True or false, as forms spell it; one that is not sent has its default."""

    def get_value(self, dictionary: Any) -> Any:
        given = dictionary.get(self.field_name, "")
        return given if given != "" else serializers.empty

    def to_internal_value(self, data: Any) -> bool:
        try:
            return bool(super().to_internal_value(data.lower() if isinstance(data, str) else data))
        except ValidationError:
            invalid("bool_parsing", "Input should be a valid boolean, unable to interpret input")


def _optional_choice(choices: Any, help_text: str) -> serializers.ChoiceField:
    return serializers.ChoiceField(choices=choices, required=False, allow_null=True, help_text=help_text)


MODEL = "Name or alias of the model that embeds its documents; the gateway's default without one."
DESCRIPTION = "What it is about."


class CollectionRequestSerializer(serializers.Serializer):
    """A new collection."""

    name = Text(help_text="Its name; several may have the same.")
    description = Text(
        min_length=None, max_length=10_000, pattern=ANY_TEXT, allow_blank=True, allow_null=True, required=False,
        default=None, help_text=DESCRIPTION,
    )  # fmt: skip
    visibility = serializers.ChoiceField(
        choices=Visibility.choices,
        default=Visibility.PRIVATE,
        help_text="Who may read it: its owner, or everybody, which needs a permission.",
    )
    model = Text(required=False, allow_null=True, default=None, help_text=MODEL)
    language = serializers.ChoiceField(
        choices=Language.choices,
        required=False,
        allow_null=True,
        default=None,
        help_text="Language of its words, for lexical search; the gateway's default without one.",
    )


class CollectionUpdateRequestSerializer(serializers.Serializer):
    """What changes; what is null or missing stays."""

    name = Text(required=False, allow_null=True, help_text="Its name.")
    description = Text(
        min_length=None, max_length=10_000, pattern=ANY_TEXT, allow_blank=True, allow_null=True, required=False,
        help_text=DESCRIPTION,
    )  # fmt: skip
    visibility = _optional_choice(Visibility.choices, "Who may read it.")
    model = Text(
        required=False,
        allow_null=True,
        help_text="The model that embeds its documents. They are embedded anew, and searched as before until all are.",
    )


class CollectionSerializer(serializers.Serializer):
    """Documents that are searched together."""

    object = Constant("collection")
    id = serializers.IntegerField(help_text="Its id.")
    name = serializers.CharField(help_text="Its name.")
    owner = serializers.CharField(source="owner.email", help_text="E-mail of its owner.")
    description = serializers.CharField(allow_null=True, help_text=DESCRIPTION)
    visibility = serializers.ChoiceField(choices=Visibility.choices, help_text="Who may read it.")
    created = Timestamp(help_text="When it was made, in Unix seconds.")
    updated = Timestamp(help_text="When it was changed last, in Unix seconds.")
    documents = serializers.IntegerField(source="document_count", help_text="How many documents it has.")
    model = serializers.SerializerMethodField(help_text="The model that embeds its documents.")
    next_model = serializers.SerializerMethodField(help_text="The model that it is changing to.")
    language = serializers.ChoiceField(choices=Language.choices, help_text="Language of its words.")

    def get_model(self, collection: Collection) -> str | None:
        return collection.space.router.name if collection.space and collection.space.router else None

    def get_next_model(self, collection: Collection) -> str | None:
        space = collection.next_space
        return space.router.name if space and space.router else None


class CollectionQuery(ordered_query("id", "name", "created", "updated")):  # type: ignore[misc]
    """Which collections."""

    name = Text(required=False, help_text="Only those of this name.")
    visibility = serializers.ChoiceField(choices=Visibility.choices, required=False, help_text="Only these.")


class DocumentFormSerializer(serializers.Serializer):
    """A file to read, or a name to append chunks to; how to split it; what is known of it."""

    file = File(
        required=False,
        allow_empty_file=True,
        max_length=None,
        help_text="PDF, HTML, Markdown, text, DOCX, PPTX, XLSX, ODT, EPUB or e-mail; 20 MiB at most.",
    )
    name = Text(required=False, allow_blank=True, help_text="Its name, if not the file's.")
    collection_id = QueryInteger(min_value=1, max_value=MAX_ID, required=False, help_text="Where it goes.")
    collection = QueryInteger(
        min_value=1, max_value=MAX_ID, required=False, help_text="Deprecated: use `collection_id`."
    )
    disable_chunking = FormBoolean(default=False, help_text="Whether all of it is one chunk.")
    chunk_size = QueryInteger(min_value=0, max_value=MAX_CONTENT, default=2048, help_text="Most characters of a chunk.")
    chunk_min_size = QueryInteger(
        min_value=0, max_value=MAX_CONTENT, default=0, help_text="Shorter chunks are left out."
    )
    chunk_overlap = QueryInteger(
        min_value=0, max_value=MAX_CONTENT, default=0, help_text="Characters that neighbours share at most."
    )
    is_separator_regex = FormBoolean(default=False, help_text="Whether `separators` are regular expressions.")
    separators = List(
        child=Text(min_length=1, max_length=1000, pattern=ANY_TEXT, trim_whitespace=False),
        max_length=50,
        required=False,
        help_text="Where to split, the strongest first; in place of a preset.",
    )
    preset_separators = serializers.ChoiceField(
        choices=[preset.value for preset in PresetSeparators],
        default=PresetSeparators.MARKDOWN.value,
        help_text="Where texts of a kind are split.",
    )
    metadata = FormMetadata(required=False, default=None, help_text="Of each chunk: a JSON object.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs.get("file") is None and not attrs.get("name"):
            value_error("name is required when file is not provided")
        if attrs.get("collection_id") is None:
            if attrs.get("collection") is None:
                raise ValidationError({"collection_id": ["This field is required."]}, "required")
            attrs["collection_id"] = attrs["collection"]
        given = {name: attrs[name] for name in Options.__dataclass_fields__ if name in attrs}
        options = Options(**given)
        if fault := options.fault():
            value_error(fault)
        return attrs | {"options": options}


class DocumentSerializer(serializers.Serializer):
    """A document, and how far it is."""

    object = Constant("document")
    id = serializers.IntegerField(help_text="Its id.")
    name = serializers.CharField(help_text="Its name.")
    collection_id = serializers.IntegerField(help_text="Id of its collection.")
    created = Timestamp(help_text="When it came, in Unix seconds.")
    chunks = serializers.IntegerField(source="chunk_count", help_text="How many chunks it has.")
    status = serializers.ChoiceField(
        choices=[status.value for status in Status],
        help_text="`ready` can be searched; `failed` never will be, and `error` says why.",
    )
    progress = serializers.FloatField(help_text="How far it is, from 0 to 1.")
    error = serializers.SerializerMethodField(help_text="Why it failed, or what it waits for.")

    def get_error(self, document: Document) -> str | None:
        return document.error or None


class DocumentQuery(ordered_query("id", "name", "created")):  # type: ignore[misc]
    """Which documents."""

    name = Text(required=False, help_text="Only those of this name.")
    collection_id = QueryInteger(min_value=1, max_value=MAX_ID, required=False, help_text="Only of this collection.")
    status = serializers.ChoiceField(
        choices=[status.value for status in Status], required=False, help_text="Only those that are so far."
    )


class NewChunkSerializer(serializers.Serializer):
    """A chunk to append."""

    content = Text(max_length=MAX_CONTENT, help_text="Its text.")
    metadata = Metadata(required=False, allow_null=True, default=None, help_text="What is known of it.")


class CreateChunksSerializer(serializers.Serializer):
    """Chunks to append."""

    chunks = List(child=NewChunkSerializer(), min_length=1, max_length=MAX_CHUNKS, help_text="The chunks, in order.")

    def validate_chunks(self, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if sum(len(chunk["content"]) for chunk in chunks) > settings.MAX_FILE_BYTES:
            value_error("Chunks content total size exceeds 20MB")
        return chunks


class CreatedChunksSerializer(serializers.Serializer):
    """The chunks that were appended."""

    document_id = serializers.IntegerField(help_text="Id of their document.")
    ids = serializers.ListField(child=serializers.IntegerField(), help_text="Their numbers inside it.")


class ChunkSerializer(serializers.Serializer):
    """A piece of a document."""

    object = Constant("chunk")
    id = serializers.IntegerField(source="number", help_text="Its number inside the document, from 0.")
    collection_id = serializers.IntegerField(help_text="Id of its collection.")
    document_id = serializers.IntegerField(help_text="Id of its document.")
    content = serializers.CharField(help_text="Its text.")
    metadata = Metadata(allow_null=True, help_text="What is known of it; `page` counts from 1.")
    created = Timestamp(help_text="When it came, in Unix seconds.")
