"""Sessions in the database, looked up under names that can be one."""

import re
from typing import Any

from django.contrib.sessions.backends import db

KEY = re.compile("[a-z0-9]{32}")


class SessionStore(db.SessionStore):
    """A cookie may say anything, also what Postgres takes in no text: what is no key of ours asks no database."""

    def _validate_session_key(self, key: Any) -> bool:
        return isinstance(key, str) and KEY.fullmatch(key) is not None


class SessionOfACall(SessionStore):
    """For what answers without a cookie: a session keeps its key, even where the secret of cookies was changed."""

    @property
    def key_salt(self) -> str:
        """It reads what pages write."""
        return SessionStore().key_salt

    def cycle_key(self) -> None:
        """The next page does it, and tells the browser."""
