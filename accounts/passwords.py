"""Passwords: how they are hashed and checked, so that a flood of logins takes neither memory nor connections."""

import os
import threading
from typing import Any

from django.conf import settings
from django.contrib.auth.backends import AllowAllUsersModelBackend
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.db import close_old_connections
from django.http import HttpRequest

from accounts.models import User

_at_once = threading.BoundedSemaphore(os.cpu_count() or 1)


class PasswordHasher(Argon2PasswordHasher):
    """Argon2id with 19 MiB, two passes and one lane; as many at a time as there are processors.

    Source of the parameters: OWASP Password Storage Cheat Sheet, 2024. Hashes with others are still read.
    """

    time_cost = 2
    memory_cost = 19 * 1024
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        with _at_once:
            encoded: str = super().encode(password, salt)
            return encoded

    def verify(self, password: str, encoded: str) -> bool:
        with _at_once:
            return bool(super().verify(password, encoded))


class PasswordBackend(AllowAllUsersModelBackend):
    """E-mail and password, unless only single sign-on is open.

    An expired account signs in, too: who lets it in looks at `is_active`.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **others: Any
    ) -> User | None:
        if username is None or password is None or not settings.PASSWORD_LOGIN:
            return None
        user = User.objects.filter(email=username).first()
        close_old_connections()  # hashing waits its turn; a connection must not wait with it
        if user is None:
            User().set_password(password)  # a stranger takes as long as a user
            return None
        return user if user.check_password(password) else None

    def get_user(self, user_id: int) -> User | None:
        """The user of a session, with the role that every page asks."""
        return User.objects.select_related("role").filter(pk=user_id).first()
