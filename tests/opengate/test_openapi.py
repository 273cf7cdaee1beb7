"""One OpenAPI document for all, and the pages that show it."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from opengate.api import TAGS

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def client(gateway):
    with gateway.client() as client:
        yield client


@pytest.fixture
def document(client):
    response = client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for method, operation in path.items() if method in METHODS]


def test_chat_and_models_are_listed_and_want_a_bearer_key(document):
    paths = document["paths"]
    for operation in (
        paths["/v1/chat/completions"]["post"],
        paths["/v1/models"]["get"],
        paths["/v1/models/{model}"]["get"],
    ):
        assert operation["security"] == [{"HTTPBearer": []}]
    scheme = document["components"]["securitySchemes"]["HTTPBearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_the_chat_body_says_what_is_required(document):
    body = document["components"]["schemas"]["ChatCompletionRequest"]
    assert set(body["required"]) == {"messages", "model"}
    assert body["additionalProperties"] is True


def test_every_reference_leads_somewhere(document):
    found = list(references(document))
    assert found
    for reference in found:
        part = document
        assert reference.startswith("#/")
        for step in reference.removeprefix("#/").split("/"):
            assert step in part, reference
            part = part[step]


def test_tags_come_in_the_contracts_order(document):
    names = [tag["name"] for tag in document["tags"]]
    assert names == [tag for tag in TAGS if tag in names]
    assert {"Chat", "Models"} <= set(names)
    assert {tag for operation in operations(document) for tag in operation["tags"]} == set(names)


def test_every_operation_has_a_summary_and_an_id_of_its_own(document):
    found = operations(document)
    assert all(operation["summary"] for operation in found)
    assert len({operation["operationId"] for operation in found}) == len(found)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_loads_with_nothing_from_another_host(client, path):
    page = client.get(path)
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert not re.findall(r"""(?:src|href|url)\s*[=(:]\s*["']?(?:https?:)?//""", page.text)
    assets = re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", page.text)
    assert any(asset.endswith(".js") for asset in assets)
    texts = [page.text]
    for asset in assets:
        loaded = client.get(asset)
        assert loaded.status_code == 200, asset
        texts.append(loaded.text)
    assert any("/openapi.json" in text for text in texts)


def fields(schema: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every field of a schema and of what it holds, with its path."""
    for field, inner in schema.get("properties", {}).items():
        yield f"{name}.{field}", inner
        yield from fields(inner, f"{name}.{field}")


def test_every_field_and_parameter_is_described(document):
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description") or "enum" in schema or schema == {"type": "null"}, name
        for path, field in fields(schema, name):
            assert field.get("description"), path
    for operation in operations(document):
        assert operation["description"]
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description") or parameter["schema"].get("description"), operation["operationId"]


def test_objects_are_open_but_for_those_that_the_contract_closes(document):
    for name, schema in document["components"]["schemas"].items():
        if schema.get("type") == "object":
            closed = name in {"Model", "ModelCosts", "HTTPValidationError", "ValidationError"}
            assert ("additionalProperties" in schema) != closed, name


def test_every_operation_documents_its_refusals(document):
    for operation in operations(document):
        statuses = set(operation["responses"])
        assert {"401", "503"} <= statuses, operation["operationId"]
        for status in statuses - {"200", "201", "204"}:
            assert "application/json" in operation["responses"][status]["content"]


def test_examples_keep_to_their_schemas(document):
    checked = 0
    for operation in operations(document):
        parts = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (part.get("content", {}).get("application/json", {}) for part in parts):
            for example in content.get("examples", {}).values():
                schema = {**content["schema"], "components": document["components"]}
                jsonschema.validate(example["value"], schema, jsonschema.Draft202012Validator)
                checked += 1
    assert checked > 150
