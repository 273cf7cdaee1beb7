"""People and what they may do: organizations, roles, users, keys."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts import keys
from accounts.errors import InvalidCurrentPassword, LastAdministrator
from opengate import audit, epoch
from opengate.errors import Conflict

PLAYGROUND = "playground"  # the name of the key that a login makes


class Permission(models.TextChoices):
    ADMIN = "admin", "Administration: everything under /v1/admin, and the console"
    CREATE_PUBLIC_COLLECTION = "create_public_collection", "Create public collections"
    READ_METRIC = "read_metric", "Read metrics"
    PROVIDE_MODELS = "provide_models", "Provide models"


def _every(*models_: str) -> set[str]:
    return {
        f"{app}.{action}_{model}"
        for app, model in (name.split(".") for name in models_)
        for action in ("view", "add", "change", "delete")
    }


# What a permission opens in the console, in Django's words; `admin` opens everything, what stands nowhere nothing.
CONSOLE_RIGHTS: Mapping[str, frozenset[str]] = {
    Permission.PROVIDE_MODELS: frozenset(
        {*_every("routing.router", "routing.routername", "routing.provider"), "usage.view_limit"}
    ),
    # Figures, and no person's: no single requests, and no daily sums, which name who asked.
    Permission.READ_METRIC: frozenset(
        {"usage.view_rollup", "routing.view_router", "routing.view_routername", "routing.view_provider"}
    ),
}


class Organization(models.Model):
    name = models.CharField(max_length=255, unique=True)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Role(models.Model):
    """A set of permissions; its limits (usage.Limit) say which routers it opens and how wide."""

    name = models.CharField(max_length=255, unique=True)
    permissions = ArrayField(models.CharField(max_length=64, choices=Permission.choices), default=list, blank=True)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class UserQuerySet(models.QuerySet["User"]):
    def open(self) -> Self:
        """Accounts that have not expired."""
        return self.filter(Q(expires__isnull=True) | Q(expires__gt=timezone.now()))

    def administrators(self) -> Self:
        """Who may administer now."""
        return self.open().filter(role__permissions__contains=[Permission.ADMIN])

    def held(self) -> list["User"]:
        """These users, in order and locked until the transaction ends; so of two changes one waits for the other."""
        return list(self.order_by("pk").select_for_update(no_key=True, of=("self",)))

    def change(self, **fields: Any) -> int:
        """Give these users the same values; how many had others. Run it in a transaction.

        Four statements, however many users; each leaves its entry in the log of changes. Raises LastAdministrator
        when nobody could administer afterwards.
        """
        User.objects.administrators().held()  # two who close each other's account wait here
        before = self.select_related("role", "organization").held()
        changes = {
            user: {name: (getattr(user, name), value) for name, value in fields.items()}
            for user in before
            if any(getattr(user, name) != value for name, value in fields.items())
        }
        User.objects.filter(pk__in=[user.pk for user in changes]).update(**fields, updated=timezone.now())
        if not User.objects.administrators().exists():
            raise LastAdministrator
        audit.record_all(changes)
        epoch.bump_on_commit()
        return len(changes)


class UserManager(BaseUserManager.from_queryset(UserQuerySet)["User"]):  # type: ignore[misc]
    def create_user(self, email: str, password: str | None, role: Role, **fields: Any) -> "User":
        """A user; without a password only keys open the API. Raises IntegrityError on a known e-mail."""
        user = self.model(email=email, role=role, **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.select_related("role").get(email=username)


class User(AbstractBaseUser):
    email = models.CharField("e-mail", max_length=254, unique=True)
    name = models.CharField(max_length=255, null=True, blank=True)
    sub = models.CharField(max_length=255, null=True, blank=True, help_text="Subject at the identity provider.")
    iss = models.CharField(max_length=255, null=True, blank=True, help_text="Issuer at the identity provider.")
    role = models.ForeignKey(Role, on_delete=models.PROTECT, related_name="users")
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="users", null=True, blank=True
    )
    expires = models.DateTimeField(null=True, blank=True, help_text="The account closes then; empty is never.")
    priority = models.PositiveIntegerField(default=0, help_text="Higher goes first among calls that wait.")
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = ["role"]

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["iss", "sub"],
                name="one_account_a_subject",
                violation_error_message="This subject of the identity provider has an account already.",
            )
        ]
        indexes = [  # the orders of the list
            models.Index(fields=["name", "id"], name="user_by_name"),
            models.Index(fields=["created", "id"], name="user_by_created"),
            models.Index(fields=["updated", "id"], name="user_by_updated"),
        ]

    def __str__(self) -> str:
        return self.email

    def grants(self, permission: Permission) -> bool:
        return permission in self.role.permissions

    def check_current_password(self, password: str | None) -> None:
        """Raises InvalidCurrentPassword unless it is the account's."""
        if password is None or not self.check_password(password):
            raise InvalidCurrentPassword

    @property
    def is_last_administrator(self) -> bool:
        return self.grants(Permission.ADMIN) and not User.objects.administrators().exclude(pk=self.pk).exists()

    # What Django's console asks of a user; CONSOLE_RIGHTS answers.

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return self.expires is None or timezone.now() < self.expires

    @property
    def is_staff(self) -> bool:
        """Whether any permission of the role opens a part of the console."""
        return self.grants(Permission.ADMIN) or bool(self._console_rights)

    @property
    def _console_rights(self) -> frozenset[str]:
        return frozenset().union(*(CONSOLE_RIGHTS.get(held, ()) for held in self.role.permissions))

    def has_perm(self, perm: str, obj: object = None) -> bool:
        return self.is_active and (self.grants(Permission.ADMIN) or perm in self._console_rights)

    def has_perms(self, perm_list: Iterable[str], obj: object = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and (
            self.grants(Permission.ADMIN) or any(perm.startswith(f"{app_label}.") for perm in self._console_rights)
        )


class KeyQuerySet(models.QuerySet["Key"]):
    def issue(self, user: User, name: str, expires: datetime | None = None) -> tuple["Key", str]:
        """A new key and its full text, which is nowhere kept and never shown again; raises KeyLivesTooLong."""
        expires = keys.expiry(expires)
        text = keys.new_key()
        made = self.create(
            user=user,
            name=name,
            expires=expires,
            digest=keys.digest(text),
            digest_secret=keys.fingerprints()[0],
            token=keys.mask(text),
        )
        return made, text

    def open_playground(self, user: User) -> tuple["Key", str]:
        """The key of a new login, in place of that of the last one."""
        self.filter(user=user, name=PLAYGROUND).delete()
        return self.issue(user, PLAYGROUND, timezone.now() + timedelta(seconds=settings.PLAYGROUND_SESSION_SECONDS))

    def revoke(self) -> int:
        """Delete these keys; how many there were. Run it in a transaction.

        A few statements, however many keys; each leaves its entry in the log of changes. Raises Conflict when somebody
        else deletes one of them meanwhile.
        """
        found = list(self.order_by("pk").select_related("user"))
        audit.record_deletions(found)
        # Now, and no sooner: the settlements of all calls wait behind one key that is locked.
        rows = Key.objects.filter(pk__in=[key.pk for key in found])
        if len(rows.order_by("pk").select_for_update().values_list("pk")) != len(found):
            raise Conflict("The keys were changed meanwhile, please try again.")
        rows._raw_delete(rows.db)  # nothing hangs on a key
        epoch.bump_on_commit()
        return len(found)

    def unexpired(self) -> Self:
        return self.filter(Q(expires__isnull=True) | Q(expires__gt=timezone.now()))


class Key(models.Model):
    """An API key: at rest a keyed digest and a masked form."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=255)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    digest_secret = models.CharField(
        max_length=16, null=True, editable=False, help_text="Which secret the digest was made under; empty if unknown."
    )
    token = models.CharField("key", max_length=32, editable=False, help_text="First 8 and last 8 characters.")
    expires = models.DateTimeField(null=True, blank=True, help_text="The key closes then; empty is never.")
    last_used = models.DateTimeField(null=True, blank=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)

    objects = KeyQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.token})"

    def is_forgotten(self) -> bool:
        """Whether whoever remembers the key refuses it by its date; what a key is, nobody can guess beforehand."""
        return self.expires is not None and self.expires <= timezone.now()
