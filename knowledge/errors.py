"""What can go wrong with a document, as its sender reads it."""

from opengate.errors import APIError


class Unreadable(APIError):
    """The file cannot be read; the sentence says why."""

    status = 422
