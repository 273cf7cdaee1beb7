"""Why a model cannot be called, and what routers and providers do not allow."""

import math
from collections.abc import Iterable

from opengate.errors import APIError, Conflict


class ModelNotFound(APIError):
    """Unknown, without a provider, or hidden from the caller's role: the caller learns no more than that."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Model not found.")


class WrongModelType(APIError):
    status = 422

    def __init__(self) -> None:
        super().__init__("Wrong model type.")


class RouterNotFound(APIError):
    status = 404

    def __init__(self, id: int) -> None:
        super().__init__(f"Model router {id} not found.")


class RouterExists(Conflict):
    """The name is another router's, or its alias."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Router {name} already exists.")


class AliasesExist(Conflict):
    def __init__(self, aliases: Iterable[str]) -> None:
        super().__init__(f"Following aliases already exist: '{', '.join(aliases)}'")


class ProviderNotFound(APIError):
    """With the id, the words that deleting uses."""

    status = 404

    def __init__(self, id: int | None = None) -> None:
        super().__init__("Model provider not found." if id is None else f"Model provider {id} not found.")


class ProviderExists(Conflict):
    def __init__(self, model_name: str, url: str, router_id: int) -> None:
        super().__init__(f"Model provider {model_name} for url {url} already exists for router {router_id}.")


class ProviderUnreachable(APIError):
    """The upstream does not answer, or does not know the model; `reason` is its status and its words, or ours.

    `cause` is for the command line alone: it tells what the network looks like from here.
    """

    status = 424

    def __init__(self, model_name: str, reason: str = "", cause: str = "") -> None:
        super().__init__(f"Model provider {model_name} not reachable.")
        self.reason = reason
        self.cause = cause
        self.extra = {"reason": reason}


class ModelTooBusy(APIError):
    """No provider had room for as long as a call waits."""

    status = 503

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Model is too busy after {seconds:g} seconds", headers={"Retry-After": "10"})


class ProvidersAway(APIError):
    """The circuits of all providers are open, for some seconds yet; or none is left to try."""

    status = 503

    def __init__(self, seconds: float = 10) -> None:
        retry_after = {"Retry-After": str(math.ceil(seconds))}
        super().__init__("Model is temporarily unavailable, please try again later.", headers=retry_after)


class InvalidProviderType(APIError):
    status = 400

    def __init__(self, provider_type: str, router_type: str) -> None:
        super().__init__(f"Invalid model provider type {provider_type} for {router_type} router.")


class InconsistentVectorSize(APIError):
    status = 403

    def __init__(self, router: str, expected: int, actual: int) -> None:
        super().__init__(f"Inconsistent vector size for {router}. Expected: {expected}. Actual: {actual}")


class InconsistentMaxContextLength(APIError):
    status = 403

    def __init__(self, router: str, expected: int, actual: int) -> None:
        super().__init__(f"Inconsistent max context length for {router}. Expected: {expected}. Actual: {actual}")


# The same faults, in the words that moving a provider to another router has in the contract.


class InvalidProviderTypeForNewRouter(APIError):
    status = 400

    def __init__(self) -> None:
        super().__init__("New router type is not compatible with the provider type.")


class InconsistentVectorSizeOfNewRouter(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Inconsistent model vector size.")


class InconsistentMaxContextLengthOfNewRouter(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Inconsistent model max context length.")


class ProviderExistsInNewRouter(Conflict):
    def __init__(self) -> None:
        super().__init__("provider already exists for the new router.")
