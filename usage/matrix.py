"""Limits as a table to edit: a row for each role, or each router, and four cells in it that read words or numbers.

What is sent along is what a cell said when the page was made. Only cells that a person changed are written, so two who
edit the same table undo nothing of each other's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.forms.widgets import Script
from django.template import loader

from opengate.fields import MAX_ID
from usage.models import LimitType, in_words

TYPES: Final = (LimitType.RPM, LimitType.RPD, LimitType.TPM, LimitType.TPD)
HEADS: Final = ("requests a minute", "requests a day", "prompt tokens a minute", "prompt tokens a day")
UNLIMITED, CLOSED = in_words(None), in_words(0)
OPEN_ALL, CLOSE_ALL = "open", "close"
EMPTY: Final = ""  # a cell that somebody emptied: its limit goes

Values = Mapping[tuple[int, str], int | None]  # by the row's id and the type


@dataclass(frozen=True, slots=True)
class Heading:
    """Whose limits a row has."""

    id: int
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Typed:
    """A row as it came: what is in its cells, what was in them when the page was made, and what to do with all four."""

    cells: Sequence[str]
    before: Sequence[str]
    action: str = ""

    def wanted(self) -> Sequence[str]:
        """The cells as they are to be, those that nobody touched as they were."""
        if self.action == OPEN_ALL:
            return [UNLIMITED] * len(TYPES)
        if self.action == CLOSE_ALL:
            return [CLOSED] * len(TYPES)
        return self.cells


def value_of(text: str) -> int | None:
    """The limit that a cell says; raises ValidationError."""
    if text == UNLIMITED:
        return None
    if text == CLOSED:
        return 0
    # Not int() alone, which reads more than we would show: signs, underscores, the digits of other scripts.
    digits = text.replace(" ", "").replace(",", "")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19 or int(digits) > MAX_ID:
        raise ValidationError(f"Write {UNLIMITED}, {CLOSED} or a whole number up to {MAX_ID}.")
    return int(digits)


@dataclass(frozen=True, slots=True)
class Changes:
    """Cells that a person changed: what they are to be, and those whose limit goes."""

    cells: Values
    emptied: frozenset[tuple[int, str]]


class MatrixWidget(forms.Widget):
    template_name = "console/limits.html"
    use_fieldset = True
    headings: Sequence[Heading] = ()
    row_kind = "role"

    class Media:
        js = (Script("opengate/limits.js", defer=True),)
        css = {"all": ("opengate/models.css",)}

    def _render(self, template_name: str, context: dict[str, Any], renderer: Any = None) -> Any:
        return loader.render_to_string(template_name, context)  # from our templates, not those of forms

    def id_for_label(self, id_: str) -> str:
        return ""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Mapping[int, Typed]:
        found = {}
        for heading in self.headings:
            row = f"{name}-{heading.id}"
            before = data.get(f"{row}-was", "").split("|")
            if len(before) != len(TYPES):  # the row was not on the page
                continue
            cells = [
                " ".join(data.get(f"{row}-{type}", was).split()).lower()
                for type, was in zip(TYPES, before, strict=True)
            ]
            found[heading.id] = Typed(cells, before, data.get(f"{row}-all", ""))
        return found

    def value_omitted_from_data(self, data: Any, files: Any, name: str) -> bool:
        return False

    def get_context(self, name: str, value: Any, attrs: Any) -> dict[str, Any]:
        context = super().get_context(name, value, attrs)
        is_read_only = bool(context["widget"]["attrs"].get("disabled"))
        rows = [self._row(name, heading, value.get(heading.id), is_read_only) for heading in self.headings]
        context["widget"] |= {"rows": rows, "heads": list(zip(TYPES, HEADS, strict=True))}
        return context | {"is_read_only": is_read_only, "row_kind": self.row_kind}

    def _row(self, name: str, heading: Heading, typed: Typed | None, is_read_only: bool) -> Mapping[str, Any]:
        typed = typed or Typed([CLOSED] * len(TYPES), [CLOSED] * len(TYPES))
        cells = [
            {
                "name": f"{name}-{heading.id}-{type}",
                "label": f"{heading.name}, {head}",
                "text": text,
                "error": "" if is_read_only else _fault(text, was),
            }
            for type, head, text, was in zip(TYPES, HEADS, typed.cells, typed.before, strict=True)
        ]
        return {
            "heading": heading,
            "name": f"{name}-{heading.id}",
            "was": "|".join(typed.before),
            "action": typed.action,
            "cells": cells,
        }


def _fault(text: str, before: str) -> str:
    if text in (before, EMPTY):
        return ""
    try:
        value_of(text)
    except ValidationError as error:
        return str(error.messages[0])
    return ""


class MatrixField(forms.Field):
    """Its initial value are the limits as they are; its value, the changes."""

    widget = MatrixWidget

    def __init__(self, **how: Any) -> None:
        super().__init__(required=False, **how)

    def fill(self, headings: Iterable[Heading], row_kind: str) -> None:
        """Say what rows there are, and of what kind."""
        self.widget.headings = list(headings)
        self.widget.row_kind = row_kind

    def prepare_value(self, value: Any) -> Mapping[int, Typed]:
        if all(isinstance(row, Typed) for row in (value or {}).values()):
            return dict(value or {})
        shown = {}
        for heading in self.widget.headings:
            cells = [in_words(value[heading.id, type]) if (heading.id, type) in value else CLOSED for type in TYPES]
            shown[heading.id] = Typed(cells, cells)
        return shown

    def clean(self, value: Mapping[int, Typed]) -> Changes:
        if self.disabled:
            return Changes({}, frozenset())
        cells: dict[tuple[int, str], int | None] = {}
        emptied = set()
        faults = 0
        for id, typed in value.items():
            for type, text, before in zip(TYPES, typed.wanted(), typed.before, strict=True):
                if text == before:
                    continue
                if text == EMPTY:
                    emptied.add((id, str(type)))
                    continue
                try:
                    cells[id, str(type)] = value_of(text)
                except ValidationError:
                    faults += 1
        if faults:
            raise ValidationError(f"{faults} {'cell is' if faults == 1 else 'cells are'} no limit: see below.")
        return Changes(cells, frozenset(emptied))

    def has_changed(self, initial: Any, data: Any) -> bool:
        if self.disabled:
            return False
        return any(list(typed.wanted()) != list(typed.before) for typed in (data or {}).values())
