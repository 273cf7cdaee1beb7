"""Why a call is not admitted."""

from opengate.errors import APIError


class RouterClosed(APIError):
    """The role knows the router, but a limit of it is 0 or missing."""

    status = 403

    def __init__(self) -> None:
        super().__init__("Insufficient permissions to access the model.")


class RateLimitExceeded(APIError):
    status = 429


class InsufficientBudget(APIError):
    status = 400

    def __init__(self) -> None:
        super().__init__("Insufficient budget.")


class InsufficientCarbonBudget(APIError):
    status = 400

    def __init__(self) -> None:
        super().__init__("Insufficient carbon budget.")


class LimitsAway(APIError):
    """Redis is away, and the setting says that limits close then."""

    status = 503

    def __init__(self) -> None:
        super().__init__("Rate limits cannot be checked, please try again later.", headers={"Retry-After": "10"})
