"""Who is calling: one small object for every entrance, remembered for one epoch."""

import logging
import time
from dataclasses import dataclass, replace

from django.db import DatabaseError

from accounts import keys
from accounts.errors import InvalidKey
from accounts.models import Key, Permission, User
from opengate import epoch, work
from opengate.epoch import Replica

logger = logging.getLogger(__name__)

GATEWAY = "gateway"  # in place of a key's name


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the owner of a valid key; without digests, a user for whom the gateway works. Times: Unix seconds."""

    digests: tuple[str, ...]
    key_id: int | None
    key_name: str
    user_id: int
    email: str
    organization_id: int | None
    organization_name: str | None
    role_id: int
    permissions: frozenset[str]
    priority: int
    key_expires: float | None
    user_expires: float | None

    @property
    def is_authenticated(self) -> bool:
        """What Django REST framework asks of a user."""
        return True

    def grants(self, permission: Permission) -> bool:
        return permission in self.permissions

    def is_valid(self, now: float, *, expired_account: bool = False) -> bool:
        """Whether key and account are open; with `expired_account` the key alone counts."""
        return (self.key_expires is None or now < self.key_expires) and (
            expired_account or self.user_expires is None or now < self.user_expires
        )


def _load(digests: tuple[str, ...]) -> Principal | None:
    key = Key.objects.select_related("user__role", "user__organization").filter(digest__in=digests).first()
    if key is None:
        return None
    secret = keys.fingerprints()[0]
    if key.digest != digests[0] or key.digest_secret != secret:
        _renew(key, digests[0], secret)
    return _principal(key.user, digests, key)


def _renew(key: Key, digest: str, secret: str) -> None:
    """A key made under a former secret is from now on under the current one. Where that fails it opens all the same."""
    try:
        Key.objects.filter(id=key.id, digest=key.digest).update(digest=digest, digest_secret=secret)
    except DatabaseError:
        logger.warning("Key %s stays under a former secret; its next use tries again.", key.id, exc_info=True)


def _load_user(id: int) -> Principal | None:
    user = User.objects.select_related("role", "organization").filter(id=id).first()
    return None if user is None else _principal(user)


def _principal(user: User, digests: tuple[str, ...] = (), key: Key | None = None) -> Principal:
    return Principal(
        digests=digests,
        key_id=key.id if key else None,
        key_name=key.name if key else GATEWAY,
        user_id=user.id,
        email=user.email,
        organization_id=user.organization_id,
        organization_name=user.organization.name if user.organization else None,
        role_id=user.role_id,
        permissions=frozenset(user.role.permissions),
        priority=user.priority,
        key_expires=key.expires.timestamp() if key and key.expires else None,
        user_expires=user.expires.timestamp() if user.expires else None,
    )


_principals = Replica(_load)
_users = Replica(_load_user)


async def find(text: str, *, expired_account: bool = False) -> Principal:
    """The principal of a key; raises InvalidKey only after a look at what is in force now, DatabaseAway if none can.

    A known key is answered from memory: the admission of the call finds out whether that memory is old. With
    `expired_account` an account that has expired is no reason to refuse.
    """
    if not keys.is_well_formed(text):
        raise InvalidKey
    digests = keys.digests(text)
    principal = await _principals.get(digests)
    if principal is None or not principal.is_valid(time.time(), expired_account=expired_account):
        await epoch.refresh()
        principal = await _principals.get(digests)
    return _checked(principal, expired_account)


async def of_user(id: int, key_name: str = GATEWAY) -> Principal:
    """A user for whom the gateway itself calls a model, or who calls it without a key: `key_name` stands for one.

    Raises InvalidKey when the account is closed or gone.
    """
    await epoch.refresh()
    return replace(_checked(await _users.get(id)), key_name=key_name)


async def again(principal: Principal) -> Principal:
    """The same caller as of the epoch now known; raises InvalidKey when the key no longer opens."""
    if principal.digests:
        return _checked(await _principals.get(principal.digests))
    return replace(_checked(await _users.get(principal.user_id)), key_name=principal.key_name)


def _checked(principal: Principal | None, expired_account: bool = False) -> Principal:
    if principal is None or not principal.is_valid(time.time(), expired_account=expired_account):
        raise InvalidKey
    noted = work.current()
    noted.user_id, noted.key_id = principal.user_id, principal.key_id
    return principal
