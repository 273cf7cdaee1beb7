"""Paths of people and keys, under /v1/."""

from django.urls import path

from accounts import api

urlpatterns = [
    path("admin/organizations", api.Organizations.as_view()),
    path("admin/organizations/<str:organization>", api.OneOrganization.as_view()),
    path("admin/roles", api.Roles.as_view()),
    path("admin/roles/<str:role>", api.OneRole.as_view()),
    path("admin/users", api.Users.as_view()),
    path("admin/users/<str:user>", api.OneUser.as_view()),
    path("admin/tokens", api.Tokens.as_view()),
    path("admin/tokens/<str:token>", api.OneToken.as_view()),
    path("me/info", api.MyInfo.as_view()),
    path("me/keys", api.MyKeys.as_view()),
    path("me/keys/<str:key>", api.OneKey.as_view()),
    path("auth/login", api.Login.as_view()),
]
