"""Who may not come in, and what people and keys do not allow."""

from collections.abc import Iterable
from enum import StrEnum

from opengate.errors import APIError, Conflict

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


class InvalidCurrentPassword(APIError):
    status = 401

    def __init__(self) -> None:
        super().__init__("Invalid current password.")


class TooManyLogins(APIError):
    """The password of this account was mistaken too often from this address; `seconds` until the next try."""

    status = 429

    def __init__(self, seconds: int = 300) -> None:
        super().__init__("Too many failed logins, please try again later.", headers={"Retry-After": str(seconds)})


class InsufficientRights(APIError):
    status = 403

    def __init__(self, detail: str = "Insufficient rights.") -> None:
        super().__init__(detail)


class ReservedEmail(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Reserved email.")


class OrganizationNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Organization not found.")


class RoleNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Role not found.")


class UserNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("User not found.")


class PasswordNotSet(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Password not set, please contact an administrator.")


class TokenNotFound(APIError):
    status = 404

    def __init__(self) -> None:
        super().__init__("Token not found.")


class KeyLivesTooLong(APIError):
    status = 400

    def __init__(self, days: int) -> None:
        super().__init__(f"Token expiration timestamp cannot be greater than {days} days from now.")


class OrganizationExists(Conflict):
    def __init__(self) -> None:
        super().__init__("Organization already exists.")


class OrganizationNameTaken(Conflict):
    def __init__(self) -> None:
        super().__init__("Organization name already taken. Please, choose another one.")


class OrganizationHasUsers(Conflict):
    def __init__(self) -> None:
        super().__init__("Delete organization with users is not allowed.")


class RoleExists(Conflict):
    def __init__(self) -> None:
        super().__init__("Role already exists.")


class RoleHasUsers(Conflict):
    def __init__(self) -> None:
        super().__init__("Delete role with users is not allowed.")


class UserExists(Conflict):
    def __init__(self) -> None:
        super().__init__("User already exists.")


class UserOwns(Conflict):
    """The user made routers or providers: they would go with it. `what` is the plural, `names` some of theirs."""

    def __init__(self, what: str, names: Iterable[str]) -> None:
        super().__init__(f"User cannot be deleted because the user owns {what}: [{', '.join(names)}].")


class LastAdministrator(Conflict):
    def __init__(self) -> None:
        super().__init__("Nobody could administer any more: give another open account a role with admin first.")


class PasswordLoginClosed(APIError):
    status = 403

    def __init__(self) -> None:
        super().__init__("Signing in with a password is switched off here: use single sign-on.")


class Reason(StrEnum):
    """Why nobody came in by single sign-on."""

    AWAY = "away"  # the identity provider
    NOT_GENUINE = "not_genuine"
    NO_EMAIL = "no_email"
    UNVERIFIED = "unverified"
    OTHER_DOMAIN = "other_domain"
    UNKNOWN = "unknown"  # no account, and none is made
    AMBIGUOUS = "ambiguous"  # accounts that differ in upper and lower case alone
    LINKED = "linked"  # the account of this e-mail is somebody else's there
    EXPIRED = "expired"
    NOT_SET_UP = "not_set_up"  # the role or organization of new people


class SignInRefused(Exception):
    """Nobody came in; the page has the words."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason
