"""Search in the collections that the user may read."""

from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts import principals
from accounts.models import PLAYGROUND, User
from knowledge import search
from knowledge.errors import CollectionNotFound
from knowledge.models import Collection, Document
from knowledge.queries import Query, SearchMethod
from opengate.errors import APIError
from opengate.playground.catalogue import offered_collections
from opengate.playground.pages import Page, signed_in
from routing.errors import ModelNotFound
from usage.errors import (
    InsufficientBudget,
    InsufficientCarbonBudget,
    RateLimitExceeded,
    RouterClosed,
)

MAX_WORDS = 10_000  # characters that are looked for
RESULTS = (5, 10, 20, 50)

METHODS = (
    (SearchMethod.SEMANTIC.value, gettext_lazy("by meaning")),
    (SearchMethod.LEXICAL.value, gettext_lazy("by words")),
    (SearchMethod.HYBRID.value, gettext_lazy("by both")),
)


class SearchForm(forms.Form):
    query = forms.CharField(
        label=gettext_lazy("What are you looking for?"),
        max_length=MAX_WORDS,
        widget=forms.TextInput(attrs={"type": "search"}),
    )
    method = forms.ChoiceField(label=gettext_lazy("Method"), choices=METHODS, initial=SearchMethod.SEMANTIC.value)
    limit = forms.TypedChoiceField(
        label=gettext_lazy("Results"), choices=[(number, number) for number in RESULTS], coerce=int, initial=10
    )
    collections = forms.TypedMultipleChoiceField(
        label=gettext_lazy("Collections"),
        required=False,
        coerce=int,
        widget=forms.CheckboxSelectMultiple,
        help_text=gettext_lazy("Without a choice all that you may read are searched."),
    )

    def __init__(self, offered: list[dict[str, Any]], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = [(one["id"], one["name"] if one["is_own"] else f"{one['name']} ({_('public')})") for one in offered]
        self.fields["collections"].choices = choices  # type: ignore[attr-defined]


class Search(Page):
    template = "search"
    menu = "search"

    def get(self, request: HttpRequest) -> HttpResponse:
        offered = offered_collections(signed_in(request))
        return self.render(request, form=SearchForm(offered), collections=offered)

    def post(self, request: HttpRequest) -> HttpResponse:
        user = signed_in(request)
        offered = offered_collections(user)
        form = SearchForm(offered, request.POST)
        results = None
        if form.is_valid():
            try:
                results = found(user, form.cleaned_data, request.id)  # type: ignore[attr-defined]
            except APIError as error:
                form.add_error(None, words_of(error))
        return self.render(request, form=form, collections=offered, results=results)


def found(user: User, wanted: dict[str, Any], request_id: str) -> list[dict[str, Any]]:
    """What is found, best first, with the names of document and collection."""
    query = Query(
        text=wanted["query"],
        method=SearchMethod(wanted["method"]),
        collection_ids=wanted["collections"],
        limit=wanted["limit"],
    )

    async def results() -> list[search.Result]:
        principal = await principals.of_user(user.pk, PLAYGROUND)
        return (await search.find(principal, query, request_id))[0]

    rows = async_to_sync(results)()
    documents = Document.objects.visible_to(user.pk).in_bulk({row.document_id for row in rows})
    collections = Collection.objects.visible_to(user.pk).in_bulk({row.collection_id for row in rows})
    return [
        {
            "score": row.score,
            "content": row.content,
            "page": (row.metadata or {}).get("page"),
            "document": documents.get(row.document_id),
            "collection": collections.get(row.collection_id),
        }
        for row in rows
    ]


def words_of(error: APIError) -> str:
    """A refusal in the reader's language, as far as there are words for it."""
    wait = error.headers.get("Retry-After")
    again = " " + _("Try again in %(seconds)s s.") % {"seconds": wait} if wait else ""
    known = {
        CollectionNotFound: _("This collection is not there any more."),
        ModelNotFound: _("You may not use the model that these collections are embedded with."),
        RouterClosed: _("You may not use the model that these collections are embedded with."),
        RateLimitExceeded: _("You have reached a limit of the model that embeds what you look for."),
        InsufficientBudget: _("Your budget does not suffice for this call."),
        InsufficientCarbonBudget: _("Your carbon budget does not suffice for this call."),
    }
    if type(error) in known:
        return known[type(error)] + again
    if error.status >= 500:
        return _("The search is not available at the moment.") + again
    return str(error.detail) + again
