"""What the user may still use: limits, budgets, and until when."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from accounts.models import User
from opengate.playground.catalogue import limits_of
from opengate.playground.pages import Page, signed_in
from usage import budgets, limits
from usage.models import Account, LimitType

TYPES = (LimitType.RPM, LimitType.RPD, LimitType.TPM, LimitType.TPD)  # the order of the columns


class Limits(Page):
    template = "limits"
    menu = "limits"

    def get(self, request: HttpRequest) -> HttpResponse:
        user, now = signed_in(request), timezone.now()
        budgets.refill_due(now, user_id=user.pk)
        account = Account.objects.filter(user=user).first() or Account(user=user)
        return self.render(request, models=rows_of(user), types=TYPES, account=account)


def rows_of(user: User) -> list[dict[str, Any]]:
    """Each model with its four limits, and what of them is left now, where that is known."""
    held = limits_of(user)
    asked = [(router.pk, type, value) for router, values in held.items() for type, value in values.items() if value]
    left = limits.remaining(user.pk, asked)
    return [
        {
            "router": router,
            "is_open": len(values) == len(TYPES) and 0 not in values.values(),
            "limits": [
                {"type": type, "value": values.get(type, 0), "left": left.get((router.pk, type.value))}
                for type in TYPES
            ],
        }
        for router, values in held.items()
    ]
