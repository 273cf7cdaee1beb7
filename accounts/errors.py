"""Who may not come in, and why."""

from opengate.errors import APIError

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class NotAuthenticated(APIError):
    status = 401

    def __init__(self) -> None:
        super().__init__("Not authenticated", headers=CHALLENGE)


class InvalidKey(APIError):
    """Unknown, deleted or expired key, or expired account: the caller learns no more than that."""

    status = 401

    def __init__(self) -> None:
        super().__init__("Invalid API key.", headers=CHALLENGE)
