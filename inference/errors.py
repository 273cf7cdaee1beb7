"""What can go wrong with a provider, as the caller reads it."""

from collections.abc import Mapping
from typing import Any

from opengate.errors import APIError
from usage.accounting import UpstreamTrouble

__all__ = ["UnreadableAnswer", "UpstreamFailed", "UpstreamRefused", "UpstreamTrouble"]

RETRY_AFTER = {"Retry-After": "10"}


class UpstreamFailed(UpstreamTrouble):
    """The provider gave no answer: the next one may be tried."""

    status = 503

    def __init__(self, detail: str, *, status: int | None = None) -> None:
        super().__init__(detail, status=status, headers=RETRY_AFTER if status in (None, 503) else None)

    @property
    def is_outage(self) -> bool:
        return self.status == 503

    @property
    def in_short(self) -> str:
        return str(self.detail)  # ours, as it is with every one of these


class AddressNotAllowed(UpstreamFailed):
    """No provider may be where this one is: it was not asked."""

    def __init__(self) -> None:
        super().__init__("The model's address is not one that providers may have.")


class ProviderFull(UpstreamFailed):
    """This process has as many calls at the provider as it may: no fault of the provider's."""

    is_outage = False

    def __init__(self) -> None:
        super().__init__("Model is too busy, please try again later.")


class UpstreamRefused(UpstreamTrouble):
    """The provider answered with an error status, which the caller gets with its message."""

    OTHERS_MAY_DO_BETTER = frozenset({401, 402, 403, 404, 408, 409, 425, 429})
    # Another status, a 500 or a 429, may be the request's own doing: it must not close a provider to all others.
    OUTAGES = frozenset({502, 503, 504})

    def __init__(self, status: int, detail: Any, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, status=status, headers=headers)

    @property
    def is_worth_another_try(self) -> bool:
        """Not when the request itself is at fault."""
        return self.status >= 500 or self.status in self.OTHERS_MAY_DO_BETTER

    @property
    def is_outage(self) -> bool:
        return self.status in self.OUTAGES

    @property
    def in_short(self) -> str:
        return f"The provider answered with status {self.status}."


class ModelUnknown(UpstreamFailed):
    """The provider answers, and has no model of that name."""

    def __init__(self, model_name: str) -> None:
        super().__init__(f"The model {model_name} is not among those it lists.", status=404)


class UnreadableAnswer(UpstreamFailed):
    """The provider said 200, and something that is no answer."""

    def __init__(self) -> None:
        super().__init__("Response formatting failed.", status=500)


class FormatUnavailable(APIError):
    """The provider's dialect has no such form of an answer."""

    status = 422

    def __init__(self, response_format: str) -> None:
        super().__init__(f"Response format {response_format} is not available for this model.")


class DocumentRefused(APIError):
    """The document cannot be read; the sentence says why."""

    status = 422


class FeatureNotEnabled(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Feature not enabled, please contact an administrator.")
