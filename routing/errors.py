"""Why a model cannot be called."""

from opengate.errors import APIError


class ModelNotFound(APIError):
    """Unknown, without a provider, or hidden from the caller's role: the caller learns no more than that."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Model not found.")


class WrongModelType(APIError):
    status = 422

    def __init__(self) -> None:
        super().__init__("Wrong model type.")
