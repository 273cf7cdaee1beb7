from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "People"

    def ready(self) -> None:
        from accounts.models import Key, Organization, Role, User
        from opengate import audit, epoch

        epoch.watch(Key, Organization, Role, User)
        audit.watch(Organization, "name")
        audit.watch(Role, "name", "permissions")
        account = ("email", "name", "sub", "iss", "role", "organization", "expires", "priority")
        audit.watch(User, *account, secrets=["password"])
        audit.watch(Key, "user", "name", "token", "expires")
        audit.watch_actors(User)
