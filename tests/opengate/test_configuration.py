"""Configuration as code: a file becomes rows, all of it or nothing, and rows become a file."""

import json
import threading
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.core.management import CommandError, call_command
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import Organization, Permission, Role
from opengate import epoch
from opengate.configuration import applying, current, exporting
from opengate.configuration.applying import Asking
from opengate.configuration.checking import describe
from opengate.configuration.document import Provider as ProviderEntry
from opengate.configuration.document import Router as RouterEntry
from opengate.configuration.errors import Refused
from opengate.configuration.plan import Options
from opengate.configuration.reading import parse
from opengate.management.commands.config import Command
from routing.models import Provider, Router, RouterName
from routing.zones import ZONES
from tests.server import ROOT
from usage.models import Limit, LimitType

pytestmark = pytest.mark.django_db(transaction=True)

OFFLINE = Asking(upstreams=False)
ODD = ["yes", "null", "007", "1e3", "12:30", "~", "a: b", "- x", "#no", "'q' \"Q\"", "${HOME}", "$${x}", "é✓🦊", "a\nb"]


def said(*words: str) -> str:
    output = StringIO()
    call_command("config", *words, stdout=output)
    return output.getvalue()


def drifts(file: str, *words: str) -> int:
    try:
        said("drift", file, *words)
    except SystemExit as end:
        return int(str(end.code))
    return 0


@pytest.fixture
def file(tmp_path, monkeypatch) -> Any:
    """Write a file and answer its name."""
    monkeypatch.setenv("CONFIG_KEY", "sk-first-secret-of-the-provider")
    path = tmp_path / "opengate.yml"

    def _file(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return str(path)

    return _file


def applied(text: str, variables: dict[str, str] | None = None, **how: Any) -> Any:
    document = describe(parse("test", text), variables or {}).document
    return applying.apply(document, Options(**how), OFFLINE)


def exported() -> tuple[str, dict[str, str]]:
    found = exporting.export(current.load())
    return exporting.write(found.data, []), dict(found.secrets)


SIMPLE = """
organizations: [{name: Ministry}]
roles:
  - name: developers
    permissions: [read_metric]
    limits:
      model: {rpm: 60, default: unlimited}
routers:
  - name: model
    type: text-generation
    aliases: [alias]
    cost_prompt_tokens: 0.5
    providers:
      - {type: vllm, url: "http://vllm:8000", key: "${CONFIG_KEY}", model_name: m, timeout: "${WAIT:-60}"}
"""


def test_apply_makes_the_file_true_and_a_second_time_changes_nothing(file):
    name = file(SIMPLE)
    assert "Plan: 4 to create" in said("plan", name)
    assert not Router.objects.exists()
    assert "Applied: 4 created, 0 changed, 0 deleted." in said("apply", name, "--offline")
    router, provider = Router.objects.get(), Provider.objects.get()
    assert (router.name, router.cost_prompt_tokens, router.user_id) == ("model", Decimal("0.5"), None)
    assert list(router.names.values_list("value", flat=True)) == ["model", "alias"]
    assert (provider.url, provider.timeout, provider.key) == (
        "http://vllm:8000/",
        60,
        "sk-first-secret-of-the-provider",
    )
    limits = dict(Limit.objects.values_list("type", "value"))
    assert limits == {"rpm": 60, "rpd": None, "tpm": None, "tpd": None}
    last = LogEntry.objects.count()
    assert said("apply", name, "--offline").startswith("Nothing to change.")
    assert (drifts(name), LogEntry.objects.count()) == (0, last)


def test_plan_and_drift_tell_what_differs_and_never_a_secret(file, monkeypatch):
    name = file(SIMPLE)
    said("apply", name, "--offline")
    monkeypatch.setenv("CONFIG_KEY", "sk-second-secret-of-the-provider")
    Router.objects.update(cost_prompt_tokens=2)
    RouterName.objects.filter(value="alias").update(value="other")
    Limit.objects.filter(type="rpm").update(value=5)
    told = said("plan", name)
    for line in (
        '~ provider "m at http://vllm:8000/" of router "model"',
        "    key: (set) → (changed)",
        "    cost_prompt_tokens: 2 → 0.5",
        "    aliases: [other] → [alias]",
        "    limits of model: rpm 5, rpd unlimited, tpm unlimited, tpd unlimited → rpm 60, rpd",
        "Plan: 0 to create, 3 to change, 0 to delete.",
    ):
        assert line in told
    assert drifts(name) == 2
    machine = json.loads(said("plan", name, "--json"))
    assert (machine["differs"], machine["summary"]["update"]) == (True, 3)
    assert "secret" not in told + json.dumps(machine)
    assert "key" not in said("plan", name, "--keep-keys")


def test_changes_are_signed_and_in_force_at_the_next_request(file, redis_client):
    said("apply", file(SIMPLE), "--offline")
    assert set(LogEntry.objects.values_list("actor_email", flat=True)) == {"config"}
    assert "secret" not in json.dumps(list(LogEntry.objects.values_list("changes", flat=True)))
    before = int(redis_client.get(epoch.KEY))
    said("apply", file(SIMPLE.replace("0.5", "0.7").replace("[alias]", "[one, two]")), "--offline")
    assert int(redis_client.get(epoch.KEY)) == before + 1


def test_what_is_applied_holds_for_the_next_call(as_ada, router, chat, file):
    assert chat(as_ada).status_code == 200
    said("apply", file("roles: [{name: developers, limits: {model: {rpm: 0, default: unlimited}}}]"), "--yes")
    assert chat(as_ada).status_code == 403
    said("apply", file("roles: [{name: developers, limits: {model: unlimited}}]"), "--yes")
    assert chat(as_ada).status_code == 200


def test_what_the_file_lacks_stays_until_it_is_pruned(file):
    said("apply", file(SIMPLE), "--offline")
    Router.objects.create(name="by hand", type="text-generation")
    Provider.objects.create(router=Router.objects.get(name="model"), type="vllm", url="http://b", model_name="m")
    Role.objects.create(name="spare")
    told = said("apply", file(SIMPLE), "--offline")
    for line in ('= router "by hand" is not in the file', '= provider "m at http://b/"', '= role "spare"'):
        assert line in told
    assert drifts(file(SIMPLE)) == 0
    assert drifts(file(SIMPLE), "--prune") == 2
    assert "0 created, 0 changed, 3 deleted" in said("apply", file(SIMPLE), "--offline", "--prune")
    assert said("apply", file("organizations: []"), "--offline").startswith('= organization "Ministry"')
    said("apply", file("organizations: []"), "--offline", "--prune")
    assert (Organization.objects.count(), Router.objects.count(), Role.objects.count()) == (0, 1, 1)


def test_a_rename_keeps_the_row_and_frees_the_name_for_an_alias(file):
    said("apply", file(SIMPLE), "--offline")
    router, provider = Router.objects.get(), Provider.objects.get()
    text = SIMPLE.replace("name: model\n", "name: better\n    renamed_from: model\n").replace("[alias]", "[model]")
    text = text.replace("model: {rpm", "better: {rpm").replace("http://vllm:8000", "http://new:8000")
    text = text.replace("model_name: m,", "model_name: m, renamed_from: {url: http://vllm:8000},")
    told = said("apply", file(text), "--offline")
    assert "name: model → better" in told
    assert "limits" not in told
    router.refresh_from_db()
    provider.refresh_from_db()
    assert (router.name, provider.url, Provider.objects.count()) == ("better", "http://new:8000/", 1)
    assert list(router.names.aliases().values_list("value", flat=True)) == ["model"]
    assert drifts(file(text)) == 0


def test_aliases_may_wander_from_one_router_to_another():
    text = (
        "routers: [{{name: a, type: text-generation, aliases: {0}}}, {{name: b, type: text-generation, aliases: {1}}}]"
    )
    applied(text.format("[x, y]", "[z]"))
    applied(text.format("[z]", "[y, x]"))
    assert dict(RouterName.objects.aliases().values_list("value", "router__name")) == {"z": "a", "x": "b", "y": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("routers: [", "line 1: This is no YAML"),
        ("", "must be a mapping with routers"),
        ("routers: []\nrouters: []", "line 2: routers: This key is there twice."),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\n"
            + "".join(f"c{n}: &c{n} [{', '.join([f'*c{n - 1}' if n else '*b'] * 9)}]\n" for n in range(7)),
            "more than 100000 values",
        ),
        ("routers: &r [*r]", "An alias stands for what it is a part of."),
        ("routers: !!python/name:os.system x", "line 1: routers: The tag"),
        ("[" * 1200, "nested too deeply"),
        ("ruoters: []", "ruoters: There is no such key. Did you mean routers?"),
        (
            "routers:\n  - name: a\n    type: text-generation\n    providrs: []",
            "line 4: routers[0].providrs: There is no",
        ),
        ("routers: [{name: yes, type: text-generation}]", "YAML reads true or false: put it in quotes"),
        ("routers: [{name: a, type: text-generaton}]", "Did you mean text-generation?"),
        ("routers: [{name: a, type: text-generation, cost_prompt_tokens: -1}]", "greater than or equal to 0"),
        ("roles: [{name: r, permissions: [root]}]", "roles[0].permissions[0]: 'root' is no choice here."),
        ("roles: [{name: r, limits: {nowhere: closed}}]", "roles[0].limits.nowhere: There is no router 'nowhere'."),
        ("roles: [{name: r, limits: {a: {rpm: many}}}]", "roles[0].limits.a.rpm: Write unlimited, closed or a whole"),
        ("roles: [{name: r}, {name: r}]", "roles[1].name: 'r' is there twice."),
        (
            "organizations: [{name: '${UNSET_VARIABLE}'}]",
            "organizations[0].name: The variable UNSET_VARIABLE is not set",
        ),
        ("organizations: [{name: '${EMPTY_VARIABLE}'}]", "EMPTY_VARIABLE is set, but empty"),
        ("organizations: [{name: '${not a name}'}]", "A reference is ${NAME}"),
        (
            "routers: [{name: a, type: text-generation, aliases: [b]}, {name: b, type: text-generation}]",
            "routers[0].aliases[0]: 'b' is already the name of a router in this file.",
        ),
        ("routers: [{name: held, type: text-generation, providers: [{type: tei, model_name: m}]}]", "URL is required"),
        (
            "routers: [{name: a, type: text-generation, providers: [{type: tei, url: http://t, model_name: m}]}]",
            "A provider of type tei cannot serve text-generation.",
        ),
        ("routers: [{name: a, type: text-generation, aliases: [held alias]}]", "is a name of router 'held'"),
        ("roles: [{name: administrators}]", "Nobody could administer any more"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_a_sentence_and_changes_nothing(admin, file, monkeypatch, text, message):
    monkeypatch.setenv("EMPTY_VARIABLE", "")
    Role.objects.filter(pk=admin.role_id).update(name="administrators")
    held = Router.objects.create(name="held", type="text-generation")
    RouterName.objects.create(router=held, value="held alias")
    before = LogEntry.objects.count()
    with pytest.raises(CommandError) as refused:
        said("apply", file(text), "--offline")
    assert message in str(refused.value)
    assert LogEntry.objects.count() == before
    assert set(Role.objects.get().permissions) == set(Permission.values)


def test_a_variable_cannot_become_a_key_and_a_word_with_a_dollar_stays(tmp_path):
    text = 'organizations: [{name: "${NAME}"}, {name: "$${NAME}"}, {name: "${NONE:-c: d}"}]'
    applied(text, {"NAME": "x}, {name: y"})
    assert set(Organization.objects.values_list("name", flat=True)) == {"x}, {name: y", "${NAME}", "c: d"}


def test_a_role_with_users_is_not_pruned(ada, file):
    with pytest.raises(CommandError, match=r"Role 'developers' still has users \(1\) and cannot be deleted"):
        said("apply", file("roles: []"), "--prune")


@pytest.mark.parametrize(
    ("verb", "code"), [("drift same", 0), ("drift other", 2), ("drift missing", 1), ("drift", 1), ("drift x --no", 1)]
)
def test_exit_codes_are_words(verb, code, file, tmp_path, capsys):
    (tmp_path / "same").write_text("routers: []")
    (tmp_path / "other").write_text("organizations: [{name: o}]")
    words = [str(tmp_path / word) if word in ("same", "other", "missing") else word for word in verb.split()]
    try:
        Command().run_from_argv(["manage.py", "config", *words])
        ended = 0
    except SystemExit as end:
        ended = int(str(end.code))
    assert ended == code
    assert "Traceback" not in capsys.readouterr().err


def test_upstreams_are_asked_first_and_one_that_is_silent_stops_all(upstream, file):
    upstream.route("/v1/models", {"data": [{"id": "m", "max_context_length": 4096}]})
    provider = f"{{type: openai, url: '{upstream.url}', model_name: m}}"
    text = "routers: [{name: a, type: text-generation, providers: [%s]}]"
    silent = "{type: openai, url: 'http://127.0.0.1:9', model_name: n}"
    with pytest.raises(CommandError, match=r"provider n not reachable\. It says: 503.*port 9: Connection refused"):
        said("apply", file(text % f"{provider}, {silent}"))
    assert not Router.objects.exists()
    said("apply", file(text % provider))
    assert Provider.objects.get().max_context_length == 4096


def test_two_at_once_wait_for_each_other_and_the_second_has_nothing_to_do():
    text = "routers: [" + ", ".join(f"{{name: r{n}, type: text-generation}}" for n in range(30)) + "]"
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(applied(text).count("create"))
        except Exception as error:
            found.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0, 30]


def test_a_change_between_the_plan_that_was_agreed_to_and_its_commit_stops_it():
    document = describe(
        parse("test", "routers: [{name: a, type: text-generation, cost_prompt_tokens: 1}]"), {}
    ).document
    Router.objects.create(name="a", type="text-generation")

    def agree(plan: Any) -> bool:
        Router.objects.update(cost_completion_tokens=5)
        return True

    with pytest.raises(Refused, match="changed meanwhile"):
        applying.apply(document, Options(), OFFLINE, agree)
    router = Router.objects.get()
    assert (router.cost_prompt_tokens, router.cost_completion_tokens) == (0, 5)


def test_at_a_terminal_nothing_is_applied_without_a_yes(file, monkeypatch):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("y\nyes\n"))
    with pytest.raises(CommandError, match="Nothing was applied"):
        said("apply", file(SIMPLE), "--offline")
    assert not Router.objects.exists()
    assert "+ router" in said("apply", file(SIMPLE), "--offline")
    assert Router.objects.exists()


def test_a_key_in_the_file_a_half_open_router_and_a_doubled_v1_are_noted(file):
    text = (
        SIMPLE.replace("${CONFIG_KEY}", "sk-plain-secret")
        .replace(", default: unlimited", "")
        .replace("8000", "8000/v1")
    )
    told = said("plan", file(text))
    for note in (
        "line 14: routers[0].providers[0].key: A key stands in the file",
        "line 7: roles[0].limits.model: The router stays closed: rpd, tpd, tpm is missing",
        "routers[0].providers[0].url: Calls go to /v1 of the address",
    ):
        assert note in told
    assert "secret" not in told


def test_a_kept_key_goes_to_no_other_host(file):
    said("apply", file(SIMPLE), "--offline")
    moved = SIMPLE.replace("http://vllm:8000", "http://elsewhere:8000")
    moved = moved.replace("model_name: m,", "model_name: m, renamed_from: {url: http://vllm:8000},")
    with pytest.raises(CommandError, match="A stored key goes to no other host"):
        said("apply", file(moved), "--offline", "--keep-keys")
    assert Provider.objects.get().url == "http://vllm:8000/"


# the round trip


def _texts() -> st.SearchStrategy[str]:
    """What the API takes for a name."""
    letters = st.characters(codec="utf-8", exclude_characters="\x00")
    free = st.text(letters, min_size=1, max_size=12).map(str.strip).filter(bool)
    return st.sampled_from(ODD) | free


AMOUNTS = st.decimals(0, 10**9, places=6)
WHOLE = st.integers(0, 2**31 - 1)
QOS = st.none() | st.tuples(
    st.sampled_from(["ttft", "latency", "inflight", "performance"]), st.floats(0, 1e9, allow_nan=False)
)


@st.composite
def _systems(draw: Any) -> dict[str, Any]:
    routers = []
    names = draw(st.lists(_texts(), min_size=2, max_size=6, unique=True))
    for name in names[::2]:
        provider = st.fixed_dictionaries(
            {
                "type": st.sampled_from(["openai", "vllm"]),
                "url": st.sampled_from(["http://a/", "http://b:8000/x/", "https://c.example.org/"]),
                "key": st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9),
                "timeout": st.integers(1, 3600),
                "model_name": _texts(),
                "model_hosting_zone": st.sampled_from(ZONES),
                "model_total_params": WHOLE,
                "model_active_params": WHOLE,
                "cost_prompt_tokens": st.none() | AMOUNTS,
                "cost_completion_tokens": st.none() | AMOUNTS,
            }
        )
        providers = draw(st.lists(provider, max_size=3, unique_by=lambda one: (one["url"], one["model_name"])))
        for one in providers:
            one["qos_metric"], one["qos_limit"] = draw(QOS) or (None, None)
        aliases = [names[names.index(name) + 1]] if names.index(name) + 1 < len(names) else []
        strategy = draw(st.sampled_from(["shuffle", "cheapest"]))
        costs = {"cost_prompt_tokens": draw(AMOUNTS), "cost_completion_tokens": draw(AMOUNTS)}
        columns = {"name": name, "type": "text-generation", "load_balancing_strategy": strategy, **costs}
        routers.append({"columns": columns, "aliases": aliases, "providers": providers})
    limits = st.dictionaries(st.sampled_from(LimitType.values), st.none() | st.integers(0, 2**63 - 1))
    roles = {
        name: (draw(st.sets(st.sampled_from(Permission.values))), [draw(limits) for _ in routers])
        for name in draw(st.lists(_texts(), max_size=3, unique=True))
    }
    return {"routers": routers, "roles": roles, "organizations": draw(st.lists(_texts(), max_size=3, unique=True))}


def _make(system: dict[str, Any]) -> None:
    made = []
    for one in system["routers"]:
        router = Router(**one["columns"])
        router.rename(router.name, one["aliases"])
        for columns in one["providers"]:
            Provider.objects.create(router=router, **columns)
        made.append(router)
    for name, (permissions, limits) in system["roles"].items():
        role = Role.objects.create(name=name, permissions=sorted(permissions))
        for router, values in zip(made, limits, strict=True):
            for type, value in values.items():
                Limit.objects.create(role=role, router=router, type=type, value=value)
    for name in system["organizations"]:
        Organization.objects.create(name=name)


def _empty() -> None:
    for model in (Limit, Provider, RouterName, Router, Role, Organization):
        rows: Any = model._default_manager.all()
        rows._raw_delete(rows.db)  # nobody wants to read of it


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=_systems())
def test_what_is_exported_makes_the_same_system_out_of_nothing(db, system):
    _empty()
    _make(system)
    text, secrets = exported()
    assert not applied(text, secrets, prune=True).changes
    _empty()
    applied(text, secrets)
    assert exported() == (text, secrets)
    assert not any(f": {secret}\n" in text for secret in secrets.values() if len(secret) > 4)


def test_every_column_that_people_set_is_in_the_file():
    own = {"id", "user", "router", "created", "updated", "max_context_length", "vector_size"}
    for row, entry in ((Provider, ProviderEntry), (Router, RouterEntry)):
        fields = {field.name: field for field in row._meta.fields if field.name not in own}
        columns = set(fields)
        assert columns == set(entry.model_fields) - {"renamed_from", "aliases", "providers"}
        for name in columns - {"name", "type", "url", "model_name"}:
            assert entry.model_fields[name].default == fields[name].get_default()


def test_export_writes_references_and_says_which_variables_it_needs(file, tmp_path):
    said("apply", file(SIMPLE), "--offline")
    target = tmp_path / "exported.yml"
    said("export", str(target))
    text = target.read_text()
    assert "#   KEY_MODEL_VLLM_8000\n" in text
    assert "key: ${KEY_MODEL_VLLM_8000}\n" in text
    assert "secret" not in text
    assert said("export") == text
    with pytest.raises(CommandError, match="exists; --force replaces it"):
        said("export", str(target))
    with pytest.raises(CommandError, match="The variable KEY_MODEL_VLLM_8000 is not set"):
        said("plan", str(target))
    assert said("plan", str(target), "--keep-keys").startswith("Nothing to change.")
    Provider.objects.all().delete()
    with pytest.raises(CommandError, match="The provider is new: the variable of its key must be set"):
        said("apply", str(target), "--keep-keys", "--offline")


def test_the_example_of_the_docs_applies_and_differs_in_nothing_afterwards(monkeypatch):
    monkeypatch.setenv("VLLM_KEY", "sk-vllm")
    monkeypatch.setenv("MISTRAL_KEY", "sk-mistral")
    example = str(ROOT / "deploy" / "opengate.example.yml")
    Router.objects.create(name="mistral", type="text-generation")
    assert "name: mistral → mistral-medium" in said("apply", example, "--offline")
    assert drifts(example, "--prune") == 0
    assert Provider.objects.filter(key__isnull=True).count() == 1
