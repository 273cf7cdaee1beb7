"""Whose account it is that an identity provider vouches for: by subject, else by verified e-mail, else a new one."""

import logging

from django.conf import settings
from django.db import IntegrityError, transaction

from accounts.errors import Reason, SignInRefused
from accounts.models import Organization, Permission, Role, User
from accounts.sign_ins import Identity

logger = logging.getLogger(__name__)

MAX_EMAIL = 254


def user_of(identity: Identity) -> User:
    """The open account of this person; one that is not linked yet is linked, one that is not there is made if the
    settings say so. Raises SignInRefused.

    Once linked, the subject alone counts: an e-mail that changes at the provider moves no account.
    """
    _check_domain(identity)
    user = _linked(identity)
    if user is None:
        try:
            with transaction.atomic():
                user = _linked_by_email(identity) or _new(identity)
        except IntegrityError:  # another sign-in of the same person, or somebody else with this e-mail, was quicker
            with transaction.atomic():
                user = _linked(identity) or _linked_by_email(identity)
            if user is None:
                raise
    if not user.is_active:
        raise SignInRefused(Reason.EXPIRED)
    return user


def lowered(email: str) -> str:
    """In small letters, as far as ASCII goes: others that look alike, or become alike, are other mailboxes."""
    return email.encode(errors="replace").lower().decode()


def _check_domain(identity: Identity) -> None:
    allowed = {lowered(domain.removeprefix("@")) for domain in settings.OIDC_EMAIL_DOMAINS}
    if allowed and lowered(_verified_email(identity)).rpartition("@")[2] not in allowed:
        raise SignInRefused(Reason.OTHER_DOMAIN)


def _verified_email(identity: Identity) -> str:
    email = identity.email or ""
    local, at, domain = email.rpartition("@")
    if not (local and at and domain) or len(email) > MAX_EMAIL or not email.isprintable() or " " in email:
        raise SignInRefused(Reason.NO_EMAIL)
    if not identity.is_verified:
        raise SignInRefused(Reason.UNVERIFIED)
    return email


def _linked(identity: Identity) -> User | None:
    return User.objects.select_related("role").filter(iss=identity.iss, sub=identity.sub).first()


def _linked_by_email(identity: Identity) -> User | None:
    """The account of the verified e-mail, from now on linked. Run it in a transaction."""
    email = _verified_email(identity)
    alike = User.objects.select_related("role").filter(email__iexact=email).select_for_update(no_key=True, of=("self",))
    found = [user for user in alike if lowered(user.email) == lowered(email)]
    if len(found) > 1:
        raise SignInRefused(Reason.AMBIGUOUS)
    if not found:
        return None
    (user,) = found
    if user.sub and user.iss == identity.iss and user.sub != identity.sub:
        raise SignInRefused(Reason.LINKED)
    if not user.is_active:
        raise SignInRefused(Reason.EXPIRED)
    user.iss, user.sub = identity.iss, identity.sub
    user.save(update_fields=["iss", "sub", "updated"])
    logger.info("User %s is linked to the identity provider.", user.pk)
    return user


def _new(identity: Identity) -> User:
    email = _verified_email(identity)
    names = [settings.OIDC_GROUP_ROLES[group] for group in settings.OIDC_GROUP_ROLES if group in identity.groups]
    name = names[0] if names else settings.OIDC_ROLE
    if not name:
        raise SignInRefused(Reason.UNKNOWN)
    role = Role.objects.filter(name=name).first()
    if role is None:
        raise _not_set_up(f"there is no role {name!r}")
    if not names and Permission.ADMIN in role.permissions:
        raise _not_set_up(f"the role {name!r} of OPENGATE_OIDC_ROLE administers")
    organization = None
    if settings.OIDC_ORGANIZATION:
        organization = Organization.objects.filter(name=settings.OIDC_ORGANIZATION).first()
        if organization is None:
            raise _not_set_up(f"there is no organization {settings.OIDC_ORGANIZATION!r}")
    user = User.objects.create_user(
        email, None, role, name=identity.name, organization=organization, iss=identity.iss, sub=identity.sub
    )
    logger.info("User %s came by single sign-on for the first time.", user.pk)
    return user


def _not_set_up(what: str) -> SignInRefused:
    """What new people get is not there: everybody a role by mistake, or an administrator's, would be worse."""
    logger.error("Single sign-on makes no users: %s.", what)
    return SignInRefused(Reason.NOT_SET_UP)
