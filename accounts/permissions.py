"""What a view of Django REST framework asks of the principal; views are closed unless they name one of these."""

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

if TYPE_CHECKING:  # its module reads the settings that name this one
    from rest_framework.views import APIView


class Nobody(BasePermission):
    """The default: a view that declares no permission answers nobody."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return False


class AnyKey(BasePermission):
    """Any valid key; authentication has already refused everything else."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return bool(request.auth)
