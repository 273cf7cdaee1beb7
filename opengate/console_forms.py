"""What forms of the console are made of."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib.admin.widgets import AutocompleteSelect
from django.db import models
from django.forms.utils import flatatt
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

ROW_ID = re.compile("[0-9]{1,18}")  # int() reads more than that


class PlainDecimal(forms.DecimalField):
    """Shows 0.54, and not 0.540000."""

    def prepare_value(self, value: Any) -> Any:
        return f"{value.normalize():f}" if isinstance(value, Decimal) and value.is_finite() else value


PLAIN_NUMBERS: Mapping[Any, Any] = {models.DecimalField: {"form_class": PlainDecimal}}


class RowSelect(AutocompleteSelect):
    """Shows the row that is chosen; of what is no row's id, an address's or a form's, it shows nothing."""

    def optgroups(self, name: str, value: Any, attr: Any = None) -> Any:
        return super().optgroups(name, [id for id in value if ROW_ID.fullmatch(str(id))], attr)


class LongSelect(forms.Select):
    """Hundreds of choices, written at once: Django renders a template for each."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        given = self.build_attrs(self.attrs, attrs)
        chosen = {str(one) for one in self.format_value(value)}
        rows = (
            (key, format_html(" selected{}", "") if str(key) in chosen else "", label) for key, label in self.choices
        )
        options = format_html_join("", '<option value="{}"{}>{}</option>', rows)
        return format_html('<select name="{}"{}>{}</select>', name, flatatt(given), options)


class MergingForm(forms.ModelForm):
    """Writes what a person changed since the page was opened; the rest stays as it is now, whoever changed it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self._columns():
            self.fields[name].show_hidden_initial = True

    def _columns(self) -> list[str]:
        columns = {column.name for column in self._meta.model._meta.fields}
        return [name for name in self.fields if name in columns]

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if self.instance.pk:
            for name in self._columns():
                if name in given and name not in self.changed_data:
                    given[name] = getattr(self.instance, name)
        return given
