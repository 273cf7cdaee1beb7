"""Refusals that a caller should read."""

from collections.abc import Mapping, Sequence
from typing import Any


class APIError(Exception):
    """A refusal the caller should read: sent as {"detail": ...} with this status.

    `detail` is a sentence, or for a body that does not validate a list of {"type", "loc", "msg"}; what an
    upstream answered may be any JSON value.
    """

    status = 500
    extra: Mapping[str, Any] = {}  # further fields of the answer, where there is more to say than the contract's words

    def __init__(self, detail: Any, *, headers: Mapping[str, str] | None = None, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        if status is not None:
            self.status = status


class InvalidBody(APIError):
    """The request does not validate: one entry {"type", "loc", "msg"} a fault."""

    status = 422

    def __init__(self, faults: Sequence[Mapping[str, Any]]) -> None:
        super().__init__([dict(fault) for fault in faults])


class Conflict(APIError):
    """The rows as they are do not allow it."""

    status = 409


class BodyTooLarge(APIError):
    status = 413


class DatabaseAway(APIError):
    """Postgres did not answer, so that nobody can know: never a 401."""

    status = 503

    def __init__(self) -> None:
        super().__init__("The database is away, please try again later.", headers={"Retry-After": "10"})


OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def openai_error(status: int, detail: Any) -> dict[str, Any]:
    """The `error` object that OpenAI's clients read, beside our own `detail`."""
    param: str | None = None
    if isinstance(detail, str):
        message = detail
    elif isinstance(detail, dict) and isinstance(detail.get("error"), dict):
        return dict(detail["error"])
    elif isinstance(detail, list) and detail and isinstance(detail[0], dict):
        message = "; ".join(str(fault.get("msg", fault)) for fault in detail if isinstance(fault, dict))
        location = detail[0].get("loc") or ()
        param = ".".join(str(part) for part in location[1:]) or None
    else:
        message = str(detail)
    kind = OPENAI_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "code": str(status), "param": param}
