"""Paths of usage, under /v1/."""

from django.urls import path

from usage import api

urlpatterns = [path("me/usage", api.MyUsage.as_view())]
