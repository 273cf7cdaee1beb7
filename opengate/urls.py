"""Every path but the calls that `opengate.asgi` takes before Django."""

from typing import Any

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView

from opengate import health
from opengate.api import OpenAPIView, calls, monitoring

# Documentation is open to all.
PUBLIC: dict[str, Any] = {"authentication_classes": [], "permission_classes": []}
# Both put styles into their pages, and one works in a thread of its own.
documented = csp_update({"style-src": [SELF, UNSAFE_INLINE], "worker-src": ["blob:"]})

urlpatterns = [
    path("admin/", admin.site.urls),
    path("playground", include("opengate.playground.urls")),
    path("auth/oidc/", include("opengate.single_sign_on")),
    path("v1/", include("accounts.urls")),
    path("v1/", include("routing.urls")),
    path("v1/", include("usage.urls")),
    path("v1/", include("knowledge.urls")),
    path("v1/", calls.urls),
    path("health", health.live, name="health"),
    path("health/ready", health.ready, name="health-ready"),
    path("", monitoring.urls),
    path("openapi.json", OpenAPIView.as_view(), name="openapi"),
    path("docs", documented(SpectacularSwaggerSplitView.as_view(url_name="openapi", **PUBLIC)), name="docs"),
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}opengate/favicon.svg")),
    path("redoc", documented(SpectacularRedocView.as_view(url_name="openapi", **PUBLIC)), name="redoc"),
]

handler400 = "opengate.api.bad_request"
handler403 = "opengate.api.permission_denied"
handler404 = "opengate.api.not_found"
handler500 = "opengate.api.server_error"
