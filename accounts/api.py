"""Organizations, roles, users, tokens; the caller's own account and keys; signing in."""

from datetime import datetime
from typing import Any

from axes.handlers.proxy import AxesProxyHandler
from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import make_password
from django.contrib.auth.signals import user_logged_in
from django.db.models import Count, OuterRef, ProtectedError, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from accounts import serializers as shapes
from accounts.authentication import caller
from accounts.errors import (
    InvalidCurrentPassword,
    KeyLivesTooLong,
    OrganizationExists,
    OrganizationHasUsers,
    OrganizationNameTaken,
    OrganizationNotFound,
    PasswordLoginClosed,
    PasswordNotSet,
    ReservedEmail,
    RoleExists,
    RoleHasUsers,
    RoleNotFound,
    TokenNotFound,
    TooManyLogins,
    UserExists,
    UserNotFound,
    UserOwns,
)
from accounts.models import Key, Organization, Role, User
from accounts.permissions import Administers, AnyKey
from opengate.database import commit, found, locked
from opengate.errors import APIError
from opengate.rows import RowView, listing, operation
from routing.errors import RouterNotFound
from routing.models import Provider, Router
from usage import budgets
from usage.models import Account, Limit

RESERVED_EMAIL = "master"
SHOWN_OWNED = 10  # names in the refusal to delete their owner

CREATED = 1_772_500_000
LIMIT = {"router": 1, "type": "rpm", "value": 60}
ORGANIZATION = {"object": "organization", "id": 1, "name": "Ministry of Examples", "users": 3}
ROLE = {"object": "role", "id": 1, "name": "developers", "permissions": [], "limits": [LIMIT], "users": 3}
USER = {"object": "user", "id": 1, "email": "ada@example.org", "name": "Ada", "sub": None, "iss": None, "role": 1}
USER |= {"organization": 1, "budget": 25.0, "expires": None}
TOKEN = {"object": "token", "id": 1, "name": "notebook", "token": "sk-3sQ0v...x1Y2z3A4", "user": 1, "expires": None}
KEY = {name: value for name, value in TOKEN.items() if name != "user"} | {"object": "key"}
DATES = {"created": CREATED, "updated": CREATED}
NEW_KEY = "sk-3sQ0vKcW1rH8bT5yN2mXeLgUoZqFjDaPiVtRxY1z3A4"


def _user_counts(rows: QuerySet[Any], field: str) -> QuerySet[Any]:
    """Rows with `user_count`; counted for the rows that are shown, not for all."""
    counts = User.objects.filter(**{field: OuterRef("pk")}).order_by().values(field).annotate(count=Count("pk"))
    return rows.annotate(user_count=Coalesce(Subquery(counts.values("count")), 0))


class Organizations(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Create an organization",
        id="create_organization",
        body=shapes.OrganizationRequestSerializer,
        answer=shapes.CreatedSerializer,
        status=201,
        refusals=(OrganizationExists,),
        examples={"request": {"name": "Ministry of Examples"}, "response": {"id": 1}},
    )
    def post(self, request: Request, body: dict[str, Any]) -> Organization:
        return commit(lambda: Organization.objects.create(**body), taken=OrganizationExists)

    @listing(
        "List organizations",
        id="list_organizations",
        item=shapes.OrganizationSerializer,
        name="Organizations",
        query=shapes.NamedQuery,
        example=ORGANIZATION | DATES,
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Organization]:
        return _user_counts(Organization.objects.all(), "organization")


class OneOrganization(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Get an organization",
        id="get_organization",
        answer=shapes.OrganizationSerializer,
        refusals=(OrganizationNotFound,),
        examples={"response": ORGANIZATION | DATES},
    )
    def get(self, request: Request, organization: int) -> Organization:
        rows = _user_counts(Organization.objects.all(), "organization")
        return found(rows, organization, OrganizationNotFound)

    @operation(
        "Change an organization",
        id="update_organization",
        body=shapes.OrganizationUpdateRequestSerializer,
        refusals=(OrganizationNotFound, OrganizationNameTaken),
        examples={"request": {"name": "Ministry of Samples"}},
    )
    def patch(self, request: Request, organization: int, body: dict[str, Any]) -> None:
        def change() -> None:
            row = locked(Organization.objects.all(), organization, OrganizationNotFound)
            row.name = body.get("name") or row.name
            row.save()

        commit(change, taken=OrganizationNameTaken)

    @operation(
        "Delete an organization", id="delete_organization", refusals=(OrganizationNotFound, OrganizationHasUsers)
    )
    def delete(self, request: Request, organization: int) -> None:
        """Only one without users."""

        def remove() -> None:
            try:
                found(Organization.objects.all(), organization, OrganizationNotFound).delete()
            except ProtectedError:
                raise OrganizationHasUsers from None

        commit(remove)


class Roles(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Create a role",
        id="create_role",
        body=shapes.CreateRoleSerializer,
        answer=shapes.CreatedSerializer,
        status=201,
        refusals=(RoleExists, RouterNotFound(1)),
        examples={"request": {"name": "developers", "permissions": [], "limits": [LIMIT]}, "response": {"id": 1}},
    )
    def post(self, request: Request, body: dict[str, Any]) -> Role:
        """A router is open to the role when it has all four limits and none of them is 0."""

        def create() -> Role:
            role = Role.objects.create(name=body["name"], permissions=body["permissions"])
            Limit.objects.replace(role, body["limits"])
            return role

        return commit(create, taken=RoleExists)

    @listing(
        "List roles",
        id="list_roles",
        item=shapes.RoleSerializer,
        name="Roles",
        query=shapes.NamedQuery,
        example=ROLE | DATES,
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Role]:
        return _user_counts(Role.objects.prefetch_related("limits"), "role")


class OneRole(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Get a role",
        id="get_role",
        answer=shapes.RoleSerializer,
        refusals=(RoleNotFound,),
        examples={"response": ROLE | DATES},
    )
    def get(self, request: Request, role: int) -> Role:
        return found(_user_counts(Role.objects.prefetch_related("limits"), "role"), role, RoleNotFound)

    @operation(
        "Change a role",
        id="update_role",
        body=shapes.RoleUpdateRequestSerializer,
        refusals=(RoleNotFound, RoleExists, RouterNotFound(1)),
        examples={"request": {"limits": [LIMIT]}},
    )
    def patch(self, request: Request, role: int, body: dict[str, Any]) -> None:
        """Limits and permissions that are given replace all former ones."""

        def change() -> None:
            row: Role = locked(Role.objects.all(), role, RoleNotFound)
            row.name = body.get("name") or row.name
            if body.get("permissions") is not None:
                row.permissions = body["permissions"]
            row.save()
            if body.get("limits") is not None:
                Limit.objects.replace(row, body["limits"])

        commit(change, taken=RoleExists)

    @operation("Delete a role", id="delete_role", refusals=(RoleNotFound, RoleHasUsers))
    def delete(self, request: Request, role: int) -> None:
        """Only one without users."""

        def remove() -> None:
            try:
                found(Role.objects.all(), role, RoleNotFound).delete()
            except ProtectedError:
                raise RoleHasUsers from None

        commit(remove)


def _email(email: str) -> str:
    if email == RESERVED_EMAIL:
        raise ReservedEmail
    return email


class Users(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Create a user",
        id="create_user",
        body=shapes.CreateUserSerializer,
        answer=shapes.CreatedSerializer,
        status=201,
        refusals=(ReservedEmail, RoleNotFound, OrganizationNotFound, UserExists),
        examples={
            "request": {"email": "ada@example.org", "password": "correct horse battery", "role": 1, "budget": 25},
            "response": {"id": 1},
        },
    )
    def post(self, request: Request, body: dict[str, Any]) -> User:
        hashed = make_password(body["password"])  # takes a while: not while a connection is held

        def create() -> User:
            user: User = User.objects.create(
                email=_email(body["email"]),
                name=body["name"],
                password=hashed,
                role=found(Role.objects.all(), body["role"], RoleNotFound),
                organization=_organization(body["organization"]),
                expires=body["expires"],
                priority=body["priority"],
            )
            Account.objects.set_budget(user, body["budget"])
            return user

        return commit(create, taken=UserExists)

    @listing(
        "List users",
        id="list_users",
        item=shapes.UserSerializer,
        name="Users",
        query=shapes.UserQuery,
        refusals=(UserNotFound,),
        example=USER | DATES | {"priority": 0},
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[User]:
        names = [name for name in ("role", "organization", "email") if name in query]
        rows = User.objects.select_related("account").filter(**{name: query[name] for name in names})
        if "email" in query and not rows.exists():
            raise UserNotFound
        return rows


def _organization(id: int | None) -> Organization | None:
    return None if id is None else found(Organization.objects.all(), id, OrganizationNotFound)


class OneUser(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Get a user",
        id="get_user",
        answer=shapes.UserSerializer,
        refusals=(UserNotFound,),
        examples={"response": USER | DATES | {"priority": 0}},
    )
    def get(self, request: Request, user: int) -> User:
        return found(User.objects.select_related("account"), user, UserNotFound)

    @operation(
        "Change a user",
        id="update_user",
        body=shapes.UserUpdateRequestSerializer,
        refusals=(
            InvalidCurrentPassword,
            ReservedEmail,
            UserNotFound,
            RoleNotFound,
            OrganizationNotFound,
            UserExists,
        ),
        examples={"request": {"name": "Ada", "organization": 1, "budget": 50, "expires": None}},
    )
    def patch(self, request: Request, user: int, body: dict[str, Any]) -> None:
        """Leaving out `organization`, `budget` or `expires` clears it; leaving out another field leaves it as it is."""

        def change() -> None:
            row: User = locked(User.objects.all(), user, UserNotFound)
            _change_account(row, body)
            if body.get("role") is not None:
                row.role = found(Role.objects.all(), body["role"], RoleNotFound)
            if body.get("priority") is not None:
                row.priority = body["priority"]
            row.organization = _organization(body["organization"])
            row.expires = body["expires"]
            row.save()
            Account.objects.set_budget(row, body["budget"])

        commit(change, taken=UserExists)

    @operation(
        "Delete a user",
        id="delete_user",
        refusals=(UserNotFound, UserOwns("routers", ["smollm2"]), UserOwns("providers", ["SmolLM2"])),
    )
    def delete(self, request: Request, user: int) -> None:
        """The user's keys go too; usage stays. Refused while the user owns routers or providers."""

        def remove() -> None:
            try:
                found(User.objects.all(), user, UserNotFound).delete()
            except ProtectedError as error:
                raise _owned(error) from None

        commit(remove)


def _change_account(row: User, body: dict[str, Any]) -> None:
    """Set what a user and an administrator may both set: e-mail, name and password."""
    if body.get("current_password") is not None:
        row.check_current_password(body["current_password"])
    if body.get("email") is not None:
        row.email = _email(body["email"])
    if body.get("name") is not None:
        row.name = body["name"]
    if body.get("password") is not None:
        row.set_password(body["password"])


def _owned(error: ProtectedError) -> UserOwns:
    routers = sorted(row.name for row in error.protected_objects if isinstance(row, Router))
    providers = sorted(row.model_name for row in error.protected_objects if isinstance(row, Provider))
    what, names = ("routers", routers) if routers else ("providers", providers)
    return UserOwns(what, [*names[:SHOWN_OWNED], *(["..."] if len(names) > SHOWN_OWNED else [])])


def _issue(user_id: int, name: str, expires: datetime | None) -> tuple[Key, str]:
    """A new key of a user; raises UserNotFound or KeyLivesTooLong."""
    return commit(lambda: Key.objects.issue(found(User.objects.all(), user_id, UserNotFound), name, expires))


class Tokens(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Create a token",
        id="create_token",
        body=shapes.CreateTokenSerializer,
        answer=shapes.CreatedTokenSerializer,
        status=201,
        refusals=(KeyLivesTooLong(90), UserNotFound),
        examples={"request": {"name": "notebook", "user": 1}, "response": {"id": 1, "token": NEW_KEY}},
    )
    def post(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """A key for any user. It is shown once."""
        key, text = _issue(body["user"], body["name"], body["expires"])
        return {"id": key.id, "token": text}

    @listing(
        "List tokens",
        id="list_tokens",
        item=shapes.TokenSerializer,
        name="Tokens",
        query=shapes.TokenQuery,
        example=TOKEN | {"created": CREATED},
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Key]:
        """Keys of all users, or of one; not those that have expired."""
        rows = Key.objects.unexpired()
        return rows.filter(user=query["user"]) if "user" in query else rows


class OneToken(RowView):
    tag = "Admin"
    permission_classes = (Administers,)

    @operation(
        "Get a token",
        id="get_token",
        answer=shapes.TokenSerializer,
        refusals=(TokenNotFound,),
        examples={"response": TOKEN | {"created": CREATED}},
    )
    def get(self, request: Request, token: int) -> Key:
        return found(Key.objects.unexpired(), token, TokenNotFound)

    @operation("Delete a token", id="delete_token", query=shapes.OwnerQuery, refusals=(TokenNotFound,))
    def delete(self, request: Request, token: int, query: dict[str, Any]) -> None:
        """It opens nothing from the next request on."""
        rows = Key.objects.filter(user=query["user"]) if "user" in query else Key.objects.all()
        _delete_key(rows, token)


def _delete_key(rows: QuerySet[Key], id: int) -> None:
    commit(lambda: found(rows, id, TokenNotFound).delete())


class MyInfo(RowView):
    tag = "Me"
    permission_classes = (AnyKey,)
    for_expired_accounts = True

    @operation(
        "Get your account",
        id="get_my_info",
        answer=shapes.UserInfoSerializer,
        refusals=(UserNotFound,),
        examples={
            "response": {
                "object": "userInfo",
                "id": 1,
                "email": "ada@example.org",
                "name": "Ada",
                "organization": 1,
                "budget": 25.0,
                "carbon_budget": None,
                "budget_refills": None,
                "permissions": [],
                "limits": [LIMIT],
                "expires": None,
                "priority": 0,
            }
            | DATES
        },
    )
    def get(self, request: Request) -> User:
        """Answers also when the account has expired."""
        budgets.refill_due(timezone.now(), user_id=caller(request).user_id)
        user = found(User.objects.select_related("role", "account"), caller(request).user_id, UserNotFound)
        user.open_limits = Limit.objects.filter(role=user.role).exclude(value=0)
        return user

    @operation(
        "Change your account",
        id="update_my_info",
        body=shapes.UpdateUserInfoSerializer,
        refusals=(InvalidCurrentPassword, ReservedEmail, UserNotFound, UserExists),
        examples={"request": {"current_password": "correct horse", "password": "battery staple"}},
    )
    def patch(self, request: Request, body: dict[str, Any]) -> None:
        """Name, e-mail and password. A new password takes the current one, where there is one."""

        def change() -> None:
            row: User = locked(User.objects.all(), caller(request).user_id, UserNotFound)
            if body.get("password") is not None and row.has_usable_password():
                row.check_current_password(body.get("current_password"))
            _change_account(row, body)
            row.save(update_fields=["email", "name", "password", "updated"])

        commit(change, taken=UserExists)


class MyKeys(RowView):
    tag = "Me"
    permission_classes = (AnyKey,)

    @operation(
        "Create a key",
        id="create_my_key",
        body=shapes.CreateKeySerializer,
        answer=shapes.CreatedKeySerializer,
        status=201,
        refusals=(KeyLivesTooLong(90), UserNotFound),
        examples={"request": {"name": "notebook"}, "response": {"id": 1, "key": NEW_KEY, "token": NEW_KEY}},
    )
    def post(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """It is shown once."""
        key, text = _issue(caller(request).user_id, body["name"], body["expires"])
        return {"id": key.id, "key": text, "token": text}

    @listing(
        "List your keys",
        id="list_my_keys",
        item=shapes.KeySerializer,
        name="Keys",
        query=shapes.KeyQuery,
        example=KEY | {"created": CREATED},
    )
    def get(self, request: Request, query: dict[str, Any]) -> QuerySet[Key]:
        """Not those that have expired."""
        return Key.objects.unexpired().filter(user=caller(request).user_id)


class OneKey(RowView):
    tag = "Me"
    permission_classes = (AnyKey,)

    @operation(
        "Get a key of yours",
        id="get_my_key",
        answer=shapes.KeySerializer,
        refusals=(TokenNotFound,),
        examples={"response": KEY | {"created": CREATED}},
    )
    def get(self, request: Request, key: int) -> Key:
        rows = Key.objects.unexpired().filter(user=caller(request).user_id)
        return found(rows, key, TokenNotFound)

    @operation("Delete a key of yours", id="delete_my_key", refusals=(TokenNotFound,))
    def delete(self, request: Request, key: int) -> None:
        """It opens nothing from the next request on."""
        _delete_key(Key.objects.filter(user=caller(request).user_id), key)


class Login(RowView):
    tag = "Auth"
    authentication_classes = ()
    permission_classes = (AllowAny,)

    @operation(
        "Sign in",
        id="login",
        body=shapes.LoginSerializer,
        answer=shapes.LoginResponseSerializer,
        refusals=(InvalidCurrentPassword, PasswordLoginClosed, UserNotFound, PasswordNotSet, TooManyLogins),
        examples={
            "request": {"email": "ada@example.org", "password": "correct horse battery"},
            "response": {"id": 1, "key": NEW_KEY},
        },
    )
    def post(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """A key for an e-mail and a password. It ends the session, and the key, of the last login."""
        if not settings.PASSWORD_LOGIN:
            raise PasswordLoginClosed
        http_request = request._request
        user = authenticate(http_request, username=body["email"], password=body["password"])
        if user is None:
            raise _login_refused(http_request, body["email"])
        user_logged_in.send(sender=User, request=http_request, user=user)

        def open_playground() -> tuple[Key, str]:
            return Key.objects.open_playground(locked(User.objects.all(), user.pk, UserNotFound))

        http_request.user = user
        key, text = commit(open_playground)
        return {"id": key.id, "key": text}


def _login_refused(request: Any, email: str) -> APIError:
    """Why the login failed: axes has counted it by now."""
    if not AxesProxyHandler.is_allowed(request, {"username": email}):
        return TooManyLogins(int(settings.AXES_COOLOFF_TIME.total_seconds()))
    user = User.objects.filter(email=email).first()
    if user is None:
        return UserNotFound()
    return InvalidCurrentPassword() if user.has_usable_password() else PasswordNotSet()
