"""The running server against its own OpenAPI document: no 5xx, no status or answer that it does not describe.

`OPENGATE_FUZZ_EXAMPLES` says how many cases are made for each operation, `OPENGATE_FUZZ_PHASES` what else is tried: by
the suite the examples and a few cases, by CI the bounds as well, by `make fuzz` all of it with five hundred cases.
`OPENGATE_FUZZ_SEED` makes other cases.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
from django.db import connection

from accounts.models import Key, Organization, Permission, Role, User
from routing.models import Provider, Router
from tests.conftest import PASSWORD
from tests.management.conftest import MODEL, model_list
from tests.server import ROOT
from tests.upstream import Reply
from usage.models import Limit

SEED = os.environ.get("OPENGATE_FUZZ_SEED", "1")
EXAMPLES = os.environ.get("OPENGATE_FUZZ_EXAMPLES", "10")
PHASES = os.environ.get("OPENGATE_FUZZ_PHASES", "examples,fuzzing")
# By the upstream's path: names in the examples, the type of model, what the upstream says.
OTHERS: dict[str, tuple[str, str, Any]] = {
    "/v1/embeddings": ("multilingual-e5-small", "text-embeddings-inference", lambda request: embedded(request.json)),
    "/v2/rerank": ("bge-reranker", "text-classification", {"results": []}),
    "/v1/audio/transcriptions": ("whisper", "automatic-speech-recognition", {"text": "Hello."}),
    "/v1/ocr": ("mistral-ocr", "image-to-text", {"pages": []}),
}
FAR = 900_000_000_000  # ids that no case guesses: what deletes this user ends the run


def embedded(body: dict[str, Any]) -> dict[str, Any] | Reply:
    given = body["input"]
    if body.get("dimensions", 3) > 1000:
        return Reply([b'{"message": "Too many dimensions."}'], status=422)
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    vector = [0.5] * body.get("dimensions", 3)
    return {"data": [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]}


@pytest.fixture
def key(gateway, upstream):
    """A key of an administrator whom no case can find, in a world where the first ids are those of other rows."""
    upstream.route("/v1/models", model_list())
    role = Role.objects.create(id=FAR, name="out of reach", permissions=Permission.values)
    user = User.objects.create_user("out-of-reach@example.org", PASSWORD, role, id=FAR)
    made, text = Key.objects.issue(user, "fuzz")
    Key.objects.filter(id=made.id).update(id=FAR)
    with connection.cursor() as cursor:
        for model in (Role, User, Organization, Key, Router, Provider):
            cursor.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), 1, false)", [model._meta.db_table])
    for number in range(20):
        name = f"model {number}" if number else "smollm2"  # of the examples
        router = Router.objects.create(name=name, type="text-generation")
        Provider.objects.create(router=router, type="openai", url=upstream.url, model_name=MODEL, timeout=5)
        Limit.objects.open_router(role, router)
        group = Organization.objects.create(name=f"organization {number}")
        other = Role.objects.create(name=f"role {number}")
        clerk = User.objects.create_user(f"clerk-{number}@example.org", None, other, organization=group)
        Key.objects.issue(clerk if number % 2 else user, "of the world")
    for path, (name, type, answer) in OTHERS.items():
        upstream.route(path, answer)
        router = Router.objects.create(name=name, type=type)
        dialect = "mistral" if type == "image-to-text" else "vllm"
        Provider.objects.create(router=router, type=dialect, url=upstream.url, model_name=MODEL, timeout=5)
        Limit.objects.open_router(role, router)
    return text


@pytest.mark.timeout(5400)
@pytest.mark.needs("raw forms")
def test_the_server_keeps_to_its_own_document(gateway, key, tmp_path):
    config = str(ROOT / "tests" / "schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config]
    command += ["run", f"{gateway.url}/openapi.json", "--header", f"Authorization: Bearer {key}"]
    command += ["--phases", PHASES, "--max-examples", EXAMPLES, "--checks", "all"]
    command += ["--continue-on-failure", "--request-timeout", "30", "--seed", SEED]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(ran.stdout[ran.stdout.find("SUMMARY") :])
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
