"""What quickstart puts into the database, again at each start."""

import io

import pytest
from django.core.management import call_command

from routing.models import Provider, Router


@pytest.mark.usefixtures("transactional_db", "redis_client")
def test_a_local_model_that_moves_is_followed_by_every_router_that_has_it():
    def provision(port: int) -> None:
        words = ("--chat-url", f"http://127.0.0.1:{port}", "--chat-model", "small")
        call_command("provision", *words, stdout=io.StringIO())

    provision(8101)
    mine = Router.objects.create(name="mine", type="text-generation")
    for port in (8101, 9999):
        Provider.objects.create(router=mine, type="openai", model_name="small", url=f"http://127.0.0.1:{port}")
    provision(8102)
    assert list(Provider.objects.order_by("id").values_list("router__name", "url")) == [
        ("smollm2", "http://127.0.0.1:8102/"),
        ("mine", "http://127.0.0.1:8102/"),
        ("mine", "http://127.0.0.1:9999/"),
    ]
