"""Where the pages of the console and the playground are: what the URL configuration has, so that one that comes later
is among them by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from accounts.models import Key, User

# What is asked by scripts and forms, and not looked at.
NO_PAGES = {"admin:autocomplete", "admin:jsi18n", "admin:logout", "admin:view_on_site", "openapi"}
NO_PAGES |= {"admin:knowledge_collection_progress", "admin:knowledge_document_progress"}  # parts of pages
NO_PAGES |= {"docs", "redoc"}  # of the API: looked at by a test of their own
NO_PAGES |= {"health", "health-ready", "metrics"}
AGAIN = ("_auditlog",)  # the history under its other address
# Whose rows these pages show, where their name does not say it.
SHOWS: dict[str, type[Model]] = {"admin:auth_user_password_change": User, "playground:revoke": Key}
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "admin:app_list": [{"app_label": name} for name in ("accounts", "knowledge", "routing", "usage")],
}


@dataclass(frozen=True)
class Address:
    """Where a page is; `row` is the one that it is of."""

    name: str
    path: str
    model: type[Model] | None = None
    row: Model | None = None


def named(patterns: list[Any], space: str = "") -> Iterator[tuple[str, URLPattern]]:
    """All named addresses of the console and the playground, and those without a namespace."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            within = f"{space}{pattern.namespace}:" if pattern.namespace else space
            if within.split(":")[0] in ("", "admin", "playground") and not str(pattern.pattern).startswith("v1/"):
                yield from named(pattern.url_patterns, within)
        elif pattern.name:
            yield f"{space}{pattern.name}", pattern


def pages(row_of: Callable[[type[Model]], Model]) -> Iterator[Address]:
    """All of them; of the pages that show a row, that of the row which `row_of` chooses."""
    owners = {f"admin:{model._meta.app_label}_{model._meta.model_name}_": model for model in admin.site._registry}
    for name, pattern in named(get_resolver().url_patterns):
        if name in NO_PAGES or name.endswith(AGAIN):
            continue
        wanted = list(pattern.pattern.converters)
        model = SHOWS.get(name) or next((owners[prefix] for prefix in owners if name.startswith(prefix)), None)
        if name in PARAMETERS:
            for parameters in PARAMETERS[name]:
                yield Address(name, reverse(name, kwargs=parameters))
        elif not wanted:
            yield Address(name, reverse(name), model)
        else:
            told = f"Say in SHOWS or PARAMETERS what {name} is asked for: {wanted}."
            assert len(wanted) == 1, told
            assert model is not None, told
            row = row_of(model)
            yield Address(name, reverse(name, args=[row.pk]), model, row)
