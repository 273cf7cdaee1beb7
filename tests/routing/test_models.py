"""Names, addresses and secrets of routers and providers."""

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import IntegrityError, connection

from routing.models import Provider, Router, RouterName

pytestmark = pytest.mark.usefixtures("transactional_db", "redis_client")


def test_names_and_aliases_share_one_namespace_also_without_a_form(router):
    router.names.create(value="alias")
    with pytest.raises(IntegrityError):
        Router.objects.create(name="alias", type="text-generation")
    with pytest.raises(IntegrityError):
        RouterName.objects.create(router=router, value="model")
    assert list(Router.objects.values_list("name", flat=True)) == ["model"]


def test_a_renamed_router_frees_its_former_name(router):
    router.name = "new"
    router.save()
    assert Router.objects.create(name="model", type="text-generation").names.get().value == "model"


@pytest.mark.parametrize(
    ("type", "given", "kept"),
    [
        ("openai", "", "https://api.openai.com/"),
        ("mistral", "", "https://api.mistral.ai/"),
        ("vllm", "http://vllm:8000", "http://vllm:8000/"),
        ("vllm", "http://[::1]:8000", "http://[::1]:8000/"),
    ],
)
def test_an_address_is_completed(router, type, given, kept):
    provider = Provider(router=router, type=type, url=given, model_name="m")
    provider.full_clean()
    provider.save()
    assert provider.url == kept


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"type": "vllm", "url": ""}, "url"),
        ({"type": "openai", "url": "file:///etc/passwd"}, "url"),
        ({"type": "openai", "url": "http://a b/"}, "url"),
        ({"type": "openai", "url": "http://169.254.169.254/"}, "url"),
        ({"type": "openai", "url": "http://host/\r\nX: y"}, "url"),
        ({"type": "tei", "url": "http://tei:80"}, "type"),
        ({"type": "openai", "qos_metric": "inflight"}, "qos_limit"),
        ({"type": "openai", "timeout": 0}, "timeout"),
        ({"type": "openai", "model_hosting_zone": "XXX"}, "model_hosting_zone"),
    ],
)
def test_what_cannot_work_is_refused(router, fields, where):
    with pytest.raises(ValidationError) as refusal:
        Provider(router=router, model_name="m", **fields).full_clean()
    assert where in refusal.value.message_dict


def stored_key() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT key FROM routing_provider")
        return str(cursor.fetchone()[0])


def test_a_provider_key_is_encrypted_and_read_under_former_secrets(router, settings):
    assert "upstream-secret" not in stored_key()
    settings.ENCRYPTION_SECRETS = ["a new secret", *settings.ENCRYPTION_SECRETS]
    assert Provider.objects.get().key == "upstream-secret"
    Provider.objects.get().save()
    settings.ENCRYPTION_SECRETS = ["a new secret"]
    assert Provider.objects.get().key == "upstream-secret"


def test_a_provider_key_without_its_secret_is_loud(router, settings):
    settings.ENCRYPTION_SECRETS = ["another secret"]
    with pytest.raises(ImproperlyConfigured, match="cannot be decrypted"):
        Provider.objects.get()
