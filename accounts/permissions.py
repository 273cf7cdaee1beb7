"""What a view of Django REST framework asks of the principal; views are closed unless they name one of these."""

from typing import TYPE_CHECKING, ClassVar

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.authentication import caller
from accounts.errors import InsufficientRights
from accounts.models import Permission
from opengate.errors import APIError

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


class Administers(BasePermission):
    """Who holds the admin permission."""

    permission: ClassVar[Permission] = Permission.ADMIN
    REFUSALS: ClassVar[tuple[APIError, ...]] = (InsufficientRights(),)

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if not caller(request).grants(self.permission):
            raise InsufficientRights(self.REFUSALS[0].detail)
        return True


class AdministersModels(Administers):
    """The same, refused in the words that routers and providers have in the contract."""

    REFUSALS = (InsufficientRights("User has no admin rights."),)
