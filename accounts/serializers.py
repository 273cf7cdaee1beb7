"""Organizations, roles, users and keys as the API reads and writes them."""

from typing import Any

from rest_framework import serializers

from accounts.models import Permission
from opengate.fields import (
    MAX_INTEGER,
    Amount,
    Constant,
    FreeText,
    FutureTimestamp,
    Id,
    Integer,
    List,
    QueryInteger,
    Secret,
    Text,
    Timestamp,
)
from opengate.pagination import ordered_query
from usage.serializers import LimitSerializer, distinct_limits

MAX_EMAIL = 254
MAX_PASSWORD = 72
MAX_PERMISSIONS = 100
MAX_LIMITS = 10_000

NamedQuery = ordered_query("id", "name", "created", "updated")
KeyQuery = ordered_query("id", "name", "created")


class CreatedSerializer(serializers.Serializer):
    """The row that was made."""

    id = serializers.IntegerField(help_text="Its id.")


# Organizations


class OrganizationRequestSerializer(serializers.Serializer):
    """An organization to make."""

    name = Text(help_text="Unique.")


class OrganizationUpdateRequestSerializer(serializers.Serializer):
    """What to change of an organization; null or absent is unchanged."""

    name = Text(required=False, allow_null=True, help_text="Unique.")


class OrganizationSerializer(serializers.Serializer):
    """A group of users."""

    object = Constant("organization")
    id = serializers.IntegerField(help_text="Id of the organization.")
    name = serializers.CharField(help_text="Unique.")
    users = serializers.IntegerField(source="user_count", help_text="How many users it has.")
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")


# Roles


def _permissions(**options: Any) -> List:
    return List(
        child=serializers.ChoiceField(choices=Permission.choices),
        max_length=MAX_PERMISSIONS,
        help_text="What users of the role may do besides calling models.",
        **options,
    )


def _limits(**options: Any) -> List:
    help_text = "Which routers the role opens, and how wide."
    return List(child=LimitSerializer(), max_length=MAX_LIMITS, help_text=help_text, **options)


class CreateRoleSerializer(serializers.Serializer):
    """A role to make."""

    name = Text(help_text="Unique.")
    permissions = _permissions(allow_null=True, default=list)
    limits = _limits(default=list)

    def validate_permissions(self, permissions: list[str] | None) -> list[str]:
        return list(dict.fromkeys(permissions or ()))

    def validate_limits(self, limits: list[dict[str, Any]]) -> Any:
        return distinct_limits(limits)


class RoleUpdateRequestSerializer(serializers.Serializer):
    """What to change of a role; null or absent is unchanged, a list replaces the whole former one."""

    name = Text(required=False, allow_null=True, help_text="Unique.")
    permissions = _permissions(required=False, allow_null=True)
    limits = _limits(required=False, allow_null=True)

    def validate_permissions(self, permissions: list[str] | None) -> list[str] | None:
        return None if permissions is None else list(dict.fromkeys(permissions))

    def validate_limits(self, limits: list[dict[str, Any]] | None) -> Any:
        return distinct_limits(limits)


class RoleSerializer(serializers.Serializer):
    """What its users may do, and which routers they may call."""

    object = Constant("role")
    id = serializers.IntegerField(help_text="Id of the role.")
    name = serializers.CharField(help_text="Unique.")
    permissions = _permissions()
    limits = _limits(source="limits.all")
    users = serializers.IntegerField(source="user_count", help_text="How many users have it.")
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")


# Users

BUDGET = "What is left to spend, in the currency of the costs; null is unlimited."
EXPIRES = "Unix seconds when the account closes; null is never."
PRIORITY = "Higher goes first among calls that wait."


def _budget() -> serializers.FloatField:
    return serializers.FloatField(source="account.budget", allow_null=True, help_text=BUDGET)


class CreateUserSerializer(serializers.Serializer):
    """A user to make."""

    email = Text(max_length=MAX_EMAIL, help_text="Unique; what the user signs in with.")
    name = FreeText(allow_null=True, default=None, help_text="What the user is called.")
    password = Secret(max_length=MAX_PASSWORD, help_text="For the console and the playground.")
    role = Id(help_text="Id of the role.")
    organization = Id(allow_null=True, default=None, help_text="Id of the organization.")
    budget = Amount(allow_null=True, default=None, help_text=BUDGET)
    expires = FutureTimestamp(allow_null=True, default=None, help_text=EXPIRES)
    priority = Integer(min_value=0, max_value=MAX_INTEGER, allow_null=True, default=0, help_text=PRIORITY)

    def validate_priority(self, priority: int | None) -> int:
        return priority or 0


class UserUpdateRequestSerializer(serializers.Serializer):
    """What to change of a user. Mind the three fields that are cleared by leaving them out."""

    email = Text(max_length=MAX_EMAIL, required=False, allow_null=True, help_text="Null or absent is unchanged.")
    name = FreeText(required=False, allow_null=True, help_text="Null or absent is unchanged.")
    current_password = FreeText(
        max_length=MAX_PASSWORD,
        required=False,
        allow_null=True,
        help_text="Where it is given it must be right.",
    )
    password = Secret(max_length=MAX_PASSWORD, required=False, allow_null=True, help_text="The new one, if any.")
    role = Id(required=False, allow_null=True, help_text="Null or absent is unchanged.")
    organization = Id(allow_null=True, default=None, help_text="Null or absent takes the user out of it.")
    budget = Amount(allow_null=True, default=None, help_text="Null or absent is unlimited.")
    expires = FutureTimestamp(allow_null=True, default=None, help_text="Unix seconds; null or absent is never.")
    priority = Integer(
        min_value=0, max_value=MAX_INTEGER, required=False, allow_null=True, help_text="Null or absent is unchanged."
    )


class UserSerializer(serializers.Serializer):
    """Who may call, with what rights and means."""

    object = Constant("user")
    id = serializers.IntegerField(help_text="Id of the user.")
    email = serializers.CharField(help_text="Unique.")
    name = serializers.CharField(allow_null=True, help_text="What the user is called.")
    sub = serializers.CharField(allow_null=True, help_text="Subject at the identity provider.")
    iss = serializers.CharField(allow_null=True, help_text="Issuer at the identity provider.")
    role = serializers.IntegerField(source="role_id", help_text="Id of the role.")
    organization = serializers.IntegerField(
        source="organization_id", allow_null=True, help_text="Id of the organization."
    )
    budget = _budget()
    expires = Timestamp(allow_null=True, help_text=EXPIRES)
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")
    priority = serializers.IntegerField(help_text=PRIORITY)


class UserQuery(NamedQuery):  # type: ignore[misc,valid-type]
    """Which users."""

    role = QueryInteger(required=False, help_text="Users of this role only.")
    organization = QueryInteger(required=False, help_text="Users of this organization only.")
    email = Text(max_length=MAX_EMAIL, required=False, help_text="The user with exactly this e-mail; 404 without one.")


# Tokens and keys: the same thing, as an administrator sees it and as its owner does.

KEY_EXPIRES = "Unix seconds when the key closes; null is never."


class CreateTokenSerializer(serializers.Serializer):
    """A key to make for a user."""

    name = Text(help_text="What it is for.")
    user = Id(help_text="Id of the user.")
    expires = FutureTimestamp(allow_null=True, default=None, help_text=KEY_EXPIRES)


class CreateKeySerializer(serializers.Serializer):
    """A key to make for yourself."""

    name = Text(help_text="What it is for.")
    expires = FutureTimestamp(allow_null=True, default=None, help_text=KEY_EXPIRES)


class CreatedTokenSerializer(serializers.Serializer):
    """A new key, shown this once."""

    id = serializers.IntegerField(help_text="Id of the key.")
    token = serializers.CharField(help_text="The key itself.")


class CreatedKeySerializer(serializers.Serializer):
    """A new key, shown this once, under both names that clients look for."""

    id = serializers.IntegerField(help_text="Id of the key.")
    key = serializers.CharField(help_text="The key itself.")
    token = serializers.CharField(help_text="The same.")


class TokenSerializer(serializers.Serializer):
    """A user's key."""

    object = Constant("token")
    id = serializers.IntegerField(help_text="Id of the key.")
    name = serializers.CharField(help_text="What it is for.")
    token = serializers.CharField(help_text="Its first and last 8 characters.")
    user = serializers.IntegerField(source="user_id", help_text="Id of its owner.")
    expires = Timestamp(allow_null=True, help_text=KEY_EXPIRES)
    created = Timestamp(help_text="Unix seconds.")


class KeySerializer(serializers.Serializer):
    """A key of yours."""

    object = Constant("key")
    id = serializers.IntegerField(help_text="Id of the key.")
    name = serializers.CharField(help_text="What it is for.")
    token = serializers.CharField(help_text="Its first and last 8 characters.")
    expires = Timestamp(allow_null=True, help_text=KEY_EXPIRES)
    created = Timestamp(help_text="Unix seconds.")


class TokenQuery(KeyQuery):  # type: ignore[misc,valid-type]
    """Which keys."""

    user = QueryInteger(required=False, help_text="Keys of this user only.")


class OwnerQuery(serializers.Serializer):
    """Whose key it must be."""

    user = QueryInteger(required=False, help_text="Only if it is this user's.")


# Me


class UserInfoSerializer(serializers.Serializer):
    """Who you are and what you may do."""

    object = Constant("userInfo")
    id = serializers.IntegerField(help_text="Your id.")
    email = serializers.CharField(help_text="What you sign in with.")
    name = serializers.CharField(allow_null=True, help_text="What you are called.")
    organization = serializers.IntegerField(
        source="organization_id", allow_null=True, help_text="Id of your organization."
    )
    budget = _budget()
    carbon_budget = serializers.FloatField(
        source="account.carbon_budget", allow_null=True, help_text="Grams of CO2eq left to spend; null is unlimited."
    )
    budget_refills = Timestamp(
        source="account.refills", allow_null=True, help_text="Unix seconds when an allowance refills next, if any."
    )
    permissions = _permissions(source="role.permissions")
    limits = LimitSerializer(many=True, source="open_limits", help_text="Limits of your role that are not 0.")
    expires = Timestamp(allow_null=True, help_text=EXPIRES)
    priority = serializers.IntegerField(help_text=PRIORITY)
    created = Timestamp(help_text="Unix seconds.")
    updated = Timestamp(help_text="Unix seconds.")


class UpdateUserInfoSerializer(serializers.Serializer):
    """What to change of yourself; null or absent is unchanged."""

    name = FreeText(required=False, allow_null=True, help_text="What you are called.")
    email = Text(max_length=MAX_EMAIL, required=False, allow_null=True, help_text="Unique; what you sign in with.")
    current_password = FreeText(
        max_length=MAX_PASSWORD,
        required=False,
        allow_null=True,
        help_text="Needed for a new password, where there is one.",
    )
    password = Secret(max_length=MAX_PASSWORD, required=False, allow_null=True, help_text="The new one.")


class LoginSerializer(serializers.Serializer):
    """Who signs in."""

    email = Text(max_length=MAX_EMAIL, help_text="Your e-mail.")
    password = Secret(max_length=MAX_PASSWORD, help_text="Your password.")


class LoginResponseSerializer(serializers.Serializer):
    """The key of this session, in place of that of the last one."""

    id = serializers.IntegerField(help_text="Id of the key.")
    key = serializers.CharField(help_text="The key itself, shown this once.")
