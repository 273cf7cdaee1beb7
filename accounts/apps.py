from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from accounts.models import Key, Organization, Role, User
        from opengate import epoch

        epoch.watch(Key, Organization, Role, User)
