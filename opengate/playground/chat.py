"""The chat, which the browser leads and nobody stores."""

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from opengate.playground.catalogue import offered_collections, open_models
from opengate.playground.pages import Page, signed_in
from opengate.playground.texts import chat_texts
from routing.models import CHAT_TYPES


class Chat(Page):
    template = "chat"
    menu = "chat"

    def get(self, request: HttpRequest) -> HttpResponse:
        user = signed_in(request)
        models = open_models(user, CHAT_TYPES)
        names = {model.name for model in models}
        told = {
            "user": user.pk,
            "texts": chat_texts(),
            "addresses": {
                "chat": "/playground/chat",
                "login": reverse("playground:login"),
                "limits": reverse("playground:limits"),
            },
        }
        return self.render(
            request,
            models=models,
            chosen=wanted if (wanted := request.GET.get("model", "")) in names else "",
            collections=offered_collections(user),
            told=told,
        )


class ToChat(Page):
    """An address with a slash too many."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponseRedirect(reverse("playground:chat"))
