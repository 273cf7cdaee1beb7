"""`django.conf.settings` for what runs in every call: a look at a value is a look into a dictionary, and no more.

Django's own object runs Python at each look, and a call takes some twenty-five. It keeps the values that were asked for
in a dictionary, and empties that when one is changed, as tests do: here the same dictionary is looked into.
"""

from typing import Any, cast

from django.conf import LazySettings
from django.conf import settings as django_settings


class _Settings:
    def __init__(self, kept: dict[str, Any]) -> None:
        self.__dict__ = kept

    def __getattr__(self, name: str) -> Any:
        """What is not there yet; Django puts it there."""
        return getattr(django_settings, name)


settings = cast(LazySettings, _Settings(vars(django_settings)))
