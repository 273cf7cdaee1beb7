"""Paths of routers and providers, under /v1/."""

from django.urls import path

from routing import api

urlpatterns = [
    path("admin/routers", api.Routers.as_view()),
    path("admin/routers/<str:router>", api.OneRouter.as_view()),
    path("admin/providers", api.Providers.as_view()),
    path("admin/providers/<str:provider>", api.OneProvider.as_view()),
]
