"""Files of OpenGateLLM and of LiteLLM become routers, with a report of what became of every key."""

import json
import re
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command

from opengate.configuration import foreign
from opengate.configuration.reading import read
from routing.models import Provider, Router, RouterName
from tests.server import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

OPENGATELLM = str(ROOT / "tests" / "data" / "opengatellm.yml")
LITELLM = str(ROOT / "tests" / "data" / "litellm.yaml")
SECRETS = r"stands-in-the-file|s3cr3t|sk-of-"


def said(*words: str) -> str:
    output = StringIO()
    call_command("config", *words, stdout=output)
    return output.getvalue()


@pytest.fixture(autouse=True)
def _variables(monkeypatch: Any) -> None:
    for name in ("LARGE_KEY", "OPENAI_KEY", "OPENAI_KEY_2", "MISTRAL_KEY"):
        monkeypatch.setenv(name, f"sk-of-{name}")
    monkeypatch.setenv("PROXY_BASE", "https://proxy.example.org/openai/v1")


def routers() -> dict[str, tuple[str, list[str], list[str]]]:
    """Type, aliases and providers by name."""
    return {
        router.name: (
            router.type,
            sorted(router.names.aliases().values_list("value", flat=True)),
            [str(provider) for provider in router.providers.all()],
        )
        for router in Router.objects.all()
    }


def test_models_of_opengatellm_become_routers_and_what_exists_wins():
    RouterName.objects.create(router=Router.objects.create(name="mine", type="text-generation"), value="taken")
    told = said("apply", "--from", "opengatellm", OPENGATELLM, "--offline")
    found = routers()
    assert found["chat-large"] == (
        "text-generation",
        ["chat:large", "openweight-large"],
        [
            "llama3.3:70b at http://large.example.org:8000/",
            "meta-llama/Llama-3.3-70B-Instruct at https://albert.api.etalab.gouv.fr/",
        ],
    )
    assert found["ocr"][2] == ["mistral-ocr-latest at https://api.mistral.ai/"]
    assert set(found) == {"mine", "chat-large", "embeddings", "ocr", "speech"}
    vllm, albert = Provider.objects.filter(router__name="chat-large")
    assert (vllm.key, vllm.timeout, vllm.qos_metric, vllm.qos_limit) == ("sk-of-LARGE_KEY", 60, "inflight", 12)
    assert (albert.key, albert.model_hosting_zone, albert.model_total_params) == ("sk-stands-in-the-file", "FRA", 70)
    assert Router.objects.get(name="chat-large").cost_prompt_tokens == Decimal("0.1")
    for line in (
        "models[0].owned_by (line 8): The owner of a model is",
        "models[0].providers[1].model_carbon_footprint_zone (line 27): It is called model_hosting_zone now.",
        "models[0].providers[2] (line 30): The same model at the same address is there twice.",
        "models[3].providers[0].qos_metric (line 54): It had no effect there",
        "models[5] (line 59): 'chat-large' is a name of a model above",
        "dependencies.redis (line 70): Set REDIS_URL.",
        "settings.auth_key_max_expiration_days (line 81): Set OPENGATE_KEY_MAX_EXPIRATION_DAYS.",
        "settings.something_new (line 87): It is no setting of OpenGate's.",
        "Router 'taken' is skipped: 'taken' exists.",
        "No role may call the new routers yet",
    ):
        assert line in told
    assert not re.search(SECRETS, told)
    assert "Nothing to change." in said("apply", "--from", "opengatellm", OPENGATELLM, "--offline")


def test_providers_of_another_gateway_that_do_not_answer_are_skipped(upstream, tmp_path):
    upstream.route("/v1/models", {"data": [{"id": "m", "max_context_length": 4096}]})
    file = tmp_path / "config.yml"
    provider = "{type: openai, url: '%s', model_name: m}"
    listed = f"{provider % upstream.url}, {provider % 'http://127.0.0.1:9/'}"
    file.write_text(f"models: [{{name: a, type: text-generation, providers: [{listed}]}}]")
    told = said("apply", "--from", "opengatellm", str(file))
    assert "line 1: routers[0].providers[1]: The provider is skipped: Model provider m not reachable." in told
    assert list(Provider.objects.values_list("url", "max_context_length")) == [(upstream.url, 4096)]


def test_deployments_of_litellm_become_providers_of_routers():
    told = said("apply", "--from", "litellm", LITELLM, "--offline")
    assert routers() == {
        "gpt-4o": (
            "text-generation",
            ["gpt-4"],
            ["gpt-4o at https://api.openai.com/", "gpt-4o at https://proxy.example.org/openai/"],
        ),
        "qwen": ("text-generation", ["hidden-name"], ["Qwen/Qwen3-8B at http://vllm:8000/"]),
        "fast": ("text-generation", [], ["llama-3.3-70b-versatile at https://api.groq.com/openai/"]),
        "mistral-ocr": ("image-to-text", [], ["mistral-ocr-latest at https://api.mistral.ai/"]),
        "bge": ("text-embeddings-inference", [], ["BAAI/bge-m3 at http://tei:80/"]),
    }
    first, second = Provider.objects.filter(router__name="gpt-4o")
    assert (first.key, first.timeout, first.cost_prompt_tokens, first.qos_metric) == (
        "sk-of-OPENAI_KEY",
        90,
        Decimal("2.5"),
        None,
    )
    assert (second.key, second.timeout, second.cost_prompt_tokens, second.qos_limit) == (
        "sk-stands-in-the-file",
        13,
        Decimal(3),
        8,
    )
    assert Provider.objects.get(router__name="fast").key == "gsk-stands-in-the-file"
    assert Provider.objects.get(router__name="mistral-ocr").key == "sk-of-MISTRAL_KEY"
    assert Provider.objects.get(router__name="bge").type == "tei"
    router = Router.objects.get(name="gpt-4o")
    assert (router.cost_prompt_tokens, router.cost_completion_tokens) == (Decimal(3), Decimal(10))
    assert router.load_balancing_strategy == "lowest_latency"
    assert not re.search(SECRETS, told)
    assert "Nothing to change." in said("apply", "--from", "litellm", LITELLM, "--offline")


def test_the_report_speaks_of_every_key_of_litellm():
    conversion = foreign.converter("litellm")(read(LITELLM), {"PROXY_BASE": "http://p"})
    told: dict[Any, tuple[str, str]] = {}
    for remark in conversion.remarks:
        assert told.setdefault(remark.path, (remark.outcome, ""))[0] == remark.outcome
        told[remark.path] = (remark.outcome, told[remark.path][1] + remark.message)
    for path, outcome, words in (
        (("model_list", 0, "litellm_params", "rpm"), foreign.DROPPED, "limit of a minute"),
        (("model_list", 0, "litellm_params", "organization"), foreign.DROPPED, "no headers"),
        (("model_list", 0, "model_info", "access_groups"), foreign.DROPPED, "Roles"),
        (("model_list", 0, "model_info", "cache_read_input_token_cost"), foreign.DROPPED, "Prices"),
        (("model_list", 0, "model_info", "supports_vision"), foreign.DROPPED, "information"),
        (("model_list", 0, "model_info", "input_cost_per_token"), foreign.CARRIED, "cost_prompt_tokens"),
        (("model_list", 1, "litellm_params", "timeout"), foreign.CHANGED, "13 seconds"),
        (("model_list", 1, "litellm_params", "api_base"), foreign.CHANGED, "to /v1 of it"),
        (("model_list", 2), foreign.DROPPED, "twice"),
        (("model_list", 4, "litellm_params", "model"), foreign.CHANGED, "groq is spoken to"),
        (("model_list", 7), foreign.DROPPED, "cohere"),
        (("model_list", 10), foreign.DROPPED, "image_generation"),
        (("model_list", 11), foreign.DROPPED, "pattern"),
        (("router_settings", "model_group_alias", "hidden-name"), foreign.CHANGED, "none is hidden"),
        (("router_settings", "model_group_alias", "sonnet"), foreign.DROPPED, "not carried over"),
        (("router_settings", "fallbacks"), foreign.DROPPED, "more providers"),
        (("general_settings", "master_key"), foreign.DROPPED, "createadmin"),
        (("general_settings", "something_new"), foreign.DROPPED, "no such setting"),
    ):
        assert told[path][0] == outcome
        assert words in told[path][1]
    with open(LITELLM, encoding="utf-8") as file:
        given = yaml.safe_load(file)
    for path in _leaves(given, ()):
        spoken = any(path[:end] in told for end in range(1, len(path) + 1))
        assert spoken or path[-1] == "litellm_credential_name", path


def _leaves(value: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path


@pytest.mark.parametrize(("origin", "file"), [("opengatellm", OPENGATELLM), ("litellm", LITELLM)])
def test_a_foreign_file_can_be_written_as_ours_without_its_secrets(origin, file, tmp_path, monkeypatch):
    ours = tmp_path / "opengate.yml"
    said("plan", "--from", origin, file, "--write", str(ours))
    text = ours.read_text()
    assert not Router.objects.exists()
    assert not re.search(SECRETS, text)
    for name in re.findall(r"^#   (\w+)$", text, re.MULTILINE):
        monkeypatch.setenv(name, f"sk-{name}")
    said("apply", str(ours), "--offline")
    plan = json.loads(said("plan", str(ours), "--json"))
    assert (plan["differs"], plan["left_alone"]) == (False, [])
    assert Provider.objects.exclude(key=None).exists()


@pytest.mark.parametrize(
    ("origin", "text", "message"),
    [
        ("opengatellm", "models: 3", "line 1: models: It must be a list of mappings."),
        ("opengatellm", "models: [{name: a, type: chat}]", "line 1: routers[0].type: 'chat' is no choice here."),
        ("opengatellm", "models: [{name: '${UNSET}', type: text-generation}]", "The variable UNSET is not set"),
        ("litellm", "- a", "It must be a mapping with model_list."),
        ("litellm", "model_list: [{model_name: a}]", "line 1: model_list[0]: An entry has a model_name"),
        (
            "litellm",
            "model_list: [{model_name: a, litellm_params: {model: openai/x, api_base: os.environ/UNSET}}]",
            "model_list[0].litellm_params.api_base: The variable UNSET is not set.",
        ),
    ],
)
def test_a_foreign_file_that_is_wrong_is_refused_with_a_sentence(origin, text, message, tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(CommandError) as refused:
        said("apply", "--from", origin, str(file), "--offline")
    assert message in str(refused.value)
    assert not Router.objects.exists()
