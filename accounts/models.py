"""People and what they may do: organizations, roles, users, keys."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts import keys
from accounts.errors import InvalidCurrentPassword

PLAYGROUND = "playground"  # the name of the key that a login makes


class Permission(models.TextChoices):
    ADMIN = "admin", "Administration: everything under /v1/admin, and the console"
    CREATE_PUBLIC_COLLECTION = "create_public_collection", "Create public collections"
    READ_METRIC = "read_metric", "Read metrics"
    PROVIDE_MODELS = "provide_models", "Provide models"


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


class UserManager(BaseUserManager["User"]):
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

    # What Django's console asks of a user: whoever administers OpenGate administers the console.

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return self.expires is None or timezone.now() < self.expires

    @property
    def is_staff(self) -> bool:
        return self.grants(Permission.ADMIN)

    def has_perm(self, perm: str, obj: object = None) -> bool:
        return self.is_active and self.grants(Permission.ADMIN)

    def has_perms(self, perm_list: list[str], obj: object = None) -> bool:
        return self.is_active and self.grants(Permission.ADMIN)

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active and self.grants(Permission.ADMIN)


class KeyQuerySet(models.QuerySet["Key"]):
    def issue(self, user: User, name: str, expires: datetime | None = None) -> tuple["Key", str]:
        """A new key and its full text, which is nowhere kept and never shown again; raises KeyLivesTooLong."""
        expires = keys.expiry(expires)
        text = keys.new_key()
        return self.create(user=user, name=name, expires=expires, digest=keys.digest(text), token=keys.mask(text)), text

    def open_playground(self, user: User) -> tuple["Key", str]:
        """The key of a new login, in place of that of the last one."""
        self.filter(user=user, name=PLAYGROUND).delete()
        return self.issue(user, PLAYGROUND, timezone.now() + timedelta(seconds=settings.PLAYGROUND_SESSION_SECONDS))

    def unexpired(self) -> Self:
        return self.filter(Q(expires__isnull=True) | Q(expires__gt=timezone.now()))


class Key(models.Model):
    """An API key: at rest a keyed digest and a masked form."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=255)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    token = models.CharField("key", max_length=32, editable=False, help_text="First 8 and last 8 characters.")
    expires = models.DateTimeField(null=True, blank=True, help_text="The key closes then; empty is never.")
    last_used = models.DateTimeField(null=True, blank=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)

    objects = KeyQuerySet.as_manager()

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.token})"
