"""The files that run OpenGate elsewhere: valid by their schemas, of one mind, and of variables that exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from django.core.management import load_command_class
from kubernetes_validate.utils import validate

from deploy import make_env
from opengate.environment import BASE_DIR, Environment

KUBERNETES = BASE_DIR / "deploy" / "kubernetes"
VARIABLES = {field.alias for field in Environment.model_fields.values()}
OF_OTHERS = {
    "PGOPTIONS",
    "POSTGRES_DB",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_INITDB_ARGS",
    "VALKEY_PASSWORD",
}
NOT_APPLIED = {"kustomization.yaml", "secret.example.yaml", "servicemonitor.yaml"}


def test_the_linter_has_nothing_to_say_of_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=BASE_DIR, capture_output=True, text=True)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_the_image_gets_every_app_and_nothing_that_only_tests_need():
    copied = set(re.findall(r"^COPY (\w+) \./", (BASE_DIR / "Dockerfile").read_text(), re.M))
    apps = {folder.parent.name for folder in BASE_DIR.glob("*/apps.py")}
    assert copied == apps | {"templates"}
    sent = {line[1:] for line in (BASE_DIR / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied | {"LICENSE", "manage.py", "requirements.txt"}


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    made = make_env.filled(make_env.TEMPLATE.read_text(), "gw.example.com")
    return dict(line.split("=", 1) for line in made.splitlines() if line and line[0] != "#")


def test_the_environment_for_compose_has_a_secret_of_its_own_in_every_empty_place(env):
    secrets = [value for name, value in env.items() if re.search("SECRET|PASSWORD", name)]
    assert len(set(secrets)) == 5
    assert min(map(len, secrets)) >= 64
    assert env["OPENGATE_TRUSTED_ORIGINS"] == "https://gw.example.com"


@pytest.fixture(scope="module")
def compose(env: dict[str, str]) -> dict[str, Any]:
    """The file as Compose reads it, once it has put the variables in."""

    def value(match: re.Match[str]) -> str:
        name, kind, default = match["name"], match["kind"], match["default"]
        assert name in env or kind == ":-", f"{name} is neither in .env.example nor has it a default"
        return env.get(name) or default

    reference = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<kind>:[-?])?(?P<default>[^}]*)\}")
    file: dict[str, Any] = yaml.safe_load(reference.sub(value, (BASE_DIR / "compose.yaml").read_text()))
    return {name: part for name, part in file.items() if not name.startswith("x-")}


def test_the_compose_file_is_valid(compose):
    PyCompose.from_yaml(yaml.safe_dump(compose)).validate()


def test_its_variables_exist_and_its_services_can_do_little(compose):
    for name, service in compose["services"].items():
        assert set(service["environment"]) <= VARIABLES | OF_OTHERS
        assert "no-new-privileges:true" in service["security_opt"], name
        if name != "postgres":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name


def manifests(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


FILES = [file for file in sorted(KUBERNETES.glob("*.yaml")) if file.name not in NOT_APPLIED]
APPLIED = [part for file in FILES for part in manifests(file)]
SECRET = manifests(KUBERNETES / "secret.example.yaml")[0]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_manifests_are_valid(version):
    for manifest in [*APPLIED, SECRET]:
        validate(manifest, version, strict=True)


def test_each_manifest_is_applied():
    listed = manifests(KUBERNETES / "kustomization.yaml")[0]["resources"]
    assert sorted(listed) == [file.name for file in FILES]


def of_kind(*kinds: str) -> Iterator[dict[str, Any]]:
    return (manifest for manifest in APPLIED if manifest["kind"] in kinds)


def test_pods_may_do_little_and_find_what_they_name():
    volumes = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for pod in (manifest["spec"]["template"]["spec"] for manifest in of_kind("Deployment", "Job")):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {next(iter(source.values()))["name"] for source in container["envFrom"]} == {"opengate"}
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume]
        assert volumes.issuperset(claims)
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_selectors_find_a_deployment():
    names = {part["metadata"]["name"] for part in of_kind("Deployment")}
    labels = [part["spec"]["template"]["metadata"]["labels"] for part in of_kind("Deployment")]
    for selector in (part["spec"]["selector"] for part in of_kind("Service", "PodDisruptionBudget")):
        assert selector.get("matchLabels", selector) in labels
    assert {part["spec"]["scaleTargetRef"]["name"] for part in of_kind("HorizontalPodAutoscaler")} <= names


def test_their_variables_exist():
    (settings,) = of_kind("ConfigMap")
    named = {*settings["data"], *SECRET["stringData"]} | {
        variable["name"]
        for part in of_kind("Deployment", "Job")
        for variable in part["spec"]["template"]["spec"]["containers"][0].get("env", [])
    }
    assert named <= VARIABLES | OF_OTHERS


def units(service: str) -> tuple[list[str], float]:
    """The command of a systemd unit, as it stands in an image, and how long it has to end."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(BASE_DIR / "deploy" / "systemd" / f"opengate-{service}.service")
    command = shlex.split(unit["Service"]["ExecStart"].replace("%%", "%"))
    return [Path(command[0]).name, *command[1:]], float(unit["Service"]["TimeoutStopSec"])


def started(compose: dict[str, Any], service: str) -> list[tuple[list[str], float]]:
    """The commands of a service everywhere, each with the seconds it has to end."""
    (pod,) = (part["spec"]["template"]["spec"] for part in of_kind("Deployment") if part["metadata"]["name"] == service)
    here = compose["services"][service]
    return [
        (here["command"], float(here["stop_grace_period"].removesuffix("s"))),
        (pod["containers"][0]["command"], pod["terminationGracePeriodSeconds"]),
        units(service),
    ]


def test_web_processes_have_the_time_that_they_give_their_calls(compose):
    parser = load_command_class("opengate", "serve").create_parser("manage.py", "serve")
    for command, seconds in started(compose, "web"):
        assert command[:3] == ["python", "manage.py", "serve"]
        given = parser.parse_args(command[3:])
        assert given.drain_delay + given.grace + 30 <= seconds


@pytest.mark.parametrize("service", ["worker", "documents"])
def test_workers_are_started_alike_everywhere(compose, service):
    here, *elsewhere = started(compose, service)
    assert [command for command, _ in elsewhere] == [here[0], here[0]]
