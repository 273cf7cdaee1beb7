"""How far this web process is on its way to its end, for whoever answers calls."""

from opengate.errors import APIError

# Probes and monitoring go on to the last, so that who watches sees an orderly end.
ANSWERED_TO_THE_LAST = ("/health", "/health/ready", "/metrics")

_is_draining = False
_refuses = False


class Stopping(APIError):
    """The process ends: another one, or the same a little later, takes the call."""

    status = 503

    def __init__(self) -> None:
        super().__init__("The server is stopping, please try again.", headers={"Retry-After": "2"})


def begin() -> None:
    """From now on the process is not ready; it takes calls until it refuses them."""
    global _is_draining
    _is_draining = True


def refuse_calls() -> None:
    global _refuses
    _refuses = True


def has_begun() -> bool:
    return _is_draining


def refuses(path: str) -> bool:
    return _refuses and path not in ANSWERED_TO_THE_LAST
