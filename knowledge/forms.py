"""What the console's forms about documents ask, judged by the words of the API."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.files.uploadedfile import UploadedFile

from knowledge.models import Collection, Document, Space
from knowledge.schemas import MAX_QUERY
from knowledge.serializers import DocumentFormSerializer
from knowledge.splitting import Options, PresetSeparators
from opengate.console_forms import RowSelect
from opengate.rows import faults_of
from routing.models import ModelType, Router


class FilesInput(forms.ClearableFileInput):
    allow_multiple_selected = True


class FilesField(forms.Field):
    """One file or several. What each of them is worth, `uploads.receive` says."""

    widget = FilesInput

    def clean(self, value: Any) -> list[UploadedFile]:
        given = [file for file in value or () if file]
        if not given:
            raise forms.ValidationError("Choose at least one file.")
        return given


def _select(choices: Sequence[str]) -> forms.Select:
    return forms.Select(choices=[(choice, choice) for choice in choices])


def _number(initial: int, help_text: str) -> forms.CharField:
    return forms.CharField(
        required=False, initial=initial, help_text=help_text, widget=forms.NumberInput(attrs={"min": 0})
    )


DEFAULTS = Options()


def _choice(model: Any, name: str, **options: Any) -> Any:
    """The form's field of a foreign key."""
    return model._meta.get_field(name).formfield(**options)


class UploadForm(forms.Form):
    """Files for a collection, and what the API asks beside them: it is the API's serializer that judges the values."""

    collection = _choice(Document, "collection", queryset=Collection.objects.select_related("space__router"))
    file = FilesField(label="Files")
    chunk_size = _number(DEFAULTS.chunk_size, "Most characters of a chunk.")
    chunk_min_size = _number(DEFAULTS.chunk_min_size, "Shorter chunks are left out.")
    chunk_overlap = _number(DEFAULTS.chunk_overlap, "Characters that neighbours share at most.")
    disable_chunking = forms.BooleanField(required=False, label="Do not split: all of a file is one chunk")
    preset_separators = forms.CharField(
        required=False,
        initial=DEFAULTS.preset_separators,
        widget=_select([preset.value for preset in PresetSeparators]),
        help_text="Where texts of a kind are split.",
    )
    separators = forms.CharField(
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="In place of a preset: one a line, the strongest first; \\n is a new line, \\t a tab.",
    )
    is_separator_regex = forms.BooleanField(required=False, label="Separators are regular expressions")
    metadata = forms.CharField(
        required=False,
        label="Metadata",
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": '{"year": 2026}'}),
        help_text="Of each chunk: a flat JSON object.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        collection: Any = self.fields["collection"]
        collection.widget = RowSelect(Document._meta.get_field("collection"), admin.site, choices=collection.choices)
        self.fields["file"].widget.attrs |= {
            "data-most": settings.MAX_FILE_BYTES,
            "data-most-together": settings.MAX_BODY_BYTES - 64 * 1024,  # less what stands around them
            "data-most-files": settings.DATA_UPLOAD_MAX_NUMBER_FILES,
        }

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        asked = {name: given[name] for name in ("preset_separators", "metadata") if given.get(name)}
        asked |= {name: given[name] for name in ("chunk_size", "chunk_min_size", "chunk_overlap") if given.get(name)}
        for name in ("disable_chunking", "is_separator_regex"):
            asked[name] = str(given.get(name, False))
        if separators := given.get("separators"):
            lines = [line for line in separators.splitlines() if line]
            is_regex = given.get("is_separator_regex")
            asked["separators"] = lines if is_regex else [_unescaped(line) for line in lines]
        read = DocumentFormSerializer(data=asked | {"name": "-", "collection_id": "1"})
        if read.is_valid():
            return given | {"options": read.validated_data["options"], "metadata": read.validated_data["metadata"]}
        for fault in faults_of(read.errors, []):
            field = fault["loc"][0] if fault["loc"] and fault["loc"][0] in self.fields else None
            self.add_error(field, str(fault["msg"]).removeprefix("Value error, "))
        return given


def _unescaped(line: str) -> str:
    return line.replace("\\n", "\n").replace("\\t", "\t")


class ReembedForm(forms.Form):
    model = _choice(
        Space,
        "router",
        label="Model",
        queryset=Router.objects.filter(type=ModelType.TEXT_EMBEDDINGS_INFERENCE, providers__isnull=False).distinct(),
        help_text="All chunks are embedded anew in the background, on the account of the owner, and searched as "
        "before until all are.",
    )


class SearchForm(forms.Form):
    query = forms.CharField(max_length=MAX_QUERY, widget=forms.TextInput(attrs={"autofocus": True}))
    limit = forms.IntegerField(min_value=1, max_value=100, initial=10)
    score_threshold = forms.FloatField(
        min_value=0, max_value=1, initial=0, required=False, label="Least score (semantic)"
    )
    rff_k = forms.IntegerField(min_value=0, max_value=16384, initial=60, required=False, label="rff_k (hybrid)")

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        for name in ("score_threshold", "rff_k"):
            if name in given and given[name] is None:
                given[name] = self.fields[name].initial
        return given
