"""The running server against the contract's tables (`contract.py`): each operation, field, default, bound and key."""

from typing import Any

import pytest

from tests.management.conftest import MODEL, World, model_list
from tests.management.contract import ENUMS, Field, Operation, operations, schemas

SCHEMAS = schemas()
OPERATIONS = operations()
WITH_BODY = [operation for operation in OPERATIONS if operation.body]
LISTS = [operation for operation in OPERATIONS if operation.is_list]
REQUESTS = sorted({operation.body for operation in OPERATIONS if operation.body} | {"Limit"})
ANSWERS = sorted({operation.answer for operation in OPERATIONS if operation.answer} | {"Limit"})
JSON_TYPES = {"int": "integer", "id": "integer", "time": "integer", "float": "number", "str": "string"}
PYTHON_TYPES: dict[str, Any] = {"int": int, "id": int, "time": int, "float": (int, float), "str": str, "const": str}


def names(operation: Operation) -> str:
    return operation.name


@pytest.fixture(scope="module")
def document(_gateway):
    with _gateway.client() as client:
        return client.get("/openapi.json").raise_for_status().json()


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its references followed: `allOf` of one, and `oneOf` with null."""
    if "$ref" in schema:
        found = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found | {name: value for name, value in schema.items() if name != "$ref"}
    if "allOf" in schema:
        return resolved(document, schema["allOf"][0]) | {n: v for n, v in schema.items() if n != "allOf"}
    if "oneOf" in schema:
        first, *others = [resolved(document, option) for option in schema["oneOf"]]
        assert all(option.get("type") == "null" or option.get("enum") == [None] for option in others)
        return first | {"nullable": True} | {n: v for n, v in schema.items() if n != "oneOf"}
    if isinstance(schema.get("type"), list):
        assert set(schema["type"]) - {"null"}
        return schema | {"type": next(t for t in schema["type"] if t != "null"), "nullable": "null" in schema["type"]}
    return schema


# What the document says


@pytest.mark.parametrize("operation", OPERATIONS, ids=names)
def test_the_document_has_the_operation(document, operation):
    found = document["paths"][operation.path][operation.method.lower()]
    assert [status for status in found["responses"] if status < "300"] == [str(operation.status)]
    assert found["tags"] == [{"admin": "Admin", "me": "Me", "auth": "Auth"}[operation.path.split("/")[2]]]
    assert found["summary"]
    assert found["description"]
    assert found["security"] == ([{}] if operation.permission == "none" else [{"HTTPBearer": []}])
    if operation.body:
        content = found["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{operation.body}"}
        assert content["examples"]
    answer = found["responses"][str(operation.status)]
    assert ("content" in answer) == bool(operation.answer)
    if operation.answer:
        assert answer["content"]["application/json"]["examples"]
    assert set(found["responses"]) >= ({"401", "422"} if operation.permission != "none" else {"401", "422", "429"})
    assert ("403" in found["responses"]) >= (operation.permission == "admin")


@pytest.mark.parametrize("operation", LISTS, ids=names)
def test_the_document_describes_the_pages(document, operation):
    parameters = document["paths"][operation.path]["get"]["parameters"]
    found = {parameter["name"]: resolved(document, parameter["schema"]) for parameter in parameters}
    assert (found["offset"]["minimum"], found["offset"]["default"]) == (0, 0)
    assert (found["limit"]["minimum"], found["limit"]["maximum"], found["limit"]["default"]) == (1, 100, 10)
    by, direction = ("sort_by", "sort_order") if "routers" in operation.path else ("order_by", "order_direction")
    assert (by in found) == (direction in found) == bool(operation.orders)
    if operation.orders:
        assert (found[by]["enum"], found[by]["default"]) == (operation.orders, "id")
        assert (found[direction]["enum"], found[direction]["default"]) == (["asc", "desc"], "asc")
    assert all(parameter["description"] for parameter in parameters)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_document_describes_the_fields(document, name):
    schema = document["components"]["schemas"][name]
    assert set(schema["properties"]) == set(SCHEMAS[name])
    assert schema["additionalProperties"] is True
    if name in REQUESTS:
        assert set(schema.get("required", ())) == {row.name for row in SCHEMAS[name].values() if row.required}
    for row in SCHEMAS[name].values():
        agrees(document, schema["properties"][row.name], row)


def agrees(document: dict[str, Any], described: dict[str, Any], row: Field) -> None:
    assert described["description"], row.name
    found = resolved(document, described)
    assert found.get("nullable", False) == row.nullable, row.name
    if row.default is not ...:
        assert found["default"] == row.default, row.name
    if row.const:
        assert (found["const"], found["default"]) == (row.const, row.const)
        return
    one = resolved(document, found["items"]) if row.is_list else found
    assert found["type"] == "array" if row.is_list else True
    if row.type in ENUMS:
        assert one["enum"] == ENUMS[row.type], row.name
    elif row.type in JSON_TYPES:
        assert one["type"] == JSON_TYPES[row.type], row.name
        bounds = ("minLength", "maxLength") if row.type == "str" else ("minimum", "maximum")
        for bound, name in zip((row.least, row.most), bounds, strict=True):
            assert bound is None or one[name] == bound, (row.name, name)
    else:
        assert one["type"] == "object"


# What the server does


def path_of(world: World, operation: Operation) -> str:
    return operation.path.format(**world.ids)


def body_of(world: World, operation: Operation, tomorrow: int) -> dict[str, Any]:
    """A body with every field, all of them valid."""
    values: dict[str, Any] = {
        "aliases": ["other", "more"],
        "budget": 12.5,
        "cost_completion_tokens": 0.6,
        "cost_prompt_tokens": 0.2,
        "current_password": "correct horse battery",
        "email": "new@example.org",
        "expires": tomorrow,
        "key": "upstream-secret-of-forty-characters-here",
        "limits": [{"router": world.ids["router"], "type": "rpm", "value": 5}],
        "load_balancing_strategy": "least_busy",
        "model_active_params": 2,
        "model_hosting_zone": "FRA",
        "model_name": MODEL,
        "model_total_params": 8,
        "name": "new",
        "organization": world.ids["organization"],
        "password": "correct horse battery",
        "permissions": ["read_metric"],
        "priority": 3,
        "qos_limit": 7.5,
        "qos_metric": "inflight",
        "role": world.ids["role"],
        "router": world.ids["router"],
        "timeout": 60,
        "type": "text-generation",
        "url": f"{world.upstream.url}second/",
        "user": world.ids["user"],
    }
    assert operation.body
    body = {name: values[name] for name in SCHEMAS[operation.body]}
    if operation.body == "CreateProvider":
        body["type"] = "openai"
        world.upstream.reply(model_list())
    if operation.body == "Login":
        body |= {"email": world.admin.email}
    return body


def call(world: World, operation: Operation, tomorrow: int) -> Any:
    """Call the operation with all it can take; answers the body of a success."""
    if operation.name in ("DELETE /v1/admin/organizations/{organization}", "DELETE /v1/admin/roles/{role}"):
        world.done("DELETE", f"/v1/admin/users/{world.ids['user']}")
    body = body_of(world, operation, tomorrow) if operation.body else None
    response = world.client.request(operation.method, path_of(world, operation), json=body)
    assert response.status_code == operation.status, response.text
    assert bool(response.content) == bool(operation.answer)
    return response.json() if response.content else None


@pytest.mark.parametrize("operation", OPERATIONS, ids=names)
def test_the_answer_has_the_keys_of_the_table(world, tomorrow, operation):
    answer = call(world, operation, tomorrow)
    if operation.is_list:
        assert set(answer) == {"object", "total", "offset", "limit", "data"}
        assert (answer["object"], answer["offset"], answer["limit"]) == ("list", 0, 10)
        assert answer["total"] == len(answer["data"])
        rows = answer["data"]
        assert rows or "usage" in operation.path
    else:
        rows = [answer] if operation.answer else []
    for found in rows:
        assert set(found) == set(SCHEMAS[operation.answer])
        for row in SCHEMAS[operation.answer].values():
            is_of_the_type(found[row.name], row)


def is_of_the_type(value: Any, row: Field) -> None:
    if value is None:
        assert row.nullable, row.name
        return
    if row.const:
        assert value == row.const
    for one in value if row.is_list else [value]:
        if row.type in ENUMS:
            assert one in ENUMS[row.type]
        elif row.type in PYTHON_TYPES:
            assert isinstance(one, PYTHON_TYPES[row.type]), row.name
            assert not isinstance(one, bool)
        else:
            assert set(one) == set(SCHEMAS.get(row.type, one))


@pytest.mark.parametrize("operation", WITH_BODY, ids=names)
def test_what_was_sent_is_what_is_read(world, tomorrow, operation):
    body = body_of(world, operation, tomorrow)
    answer = world.done(operation.method, path_of(world, operation), body)
    kind = {"me": "key", "auth": "key"}.get(operation.path.split("/")[2]) or operation.path.split("/")[3].rstrip("s")
    if operation.path == "/v1/me/info":
        row = world.get("/v1/me/info")
    elif kind == "key":
        row = world.get(f"/v1/me/keys/{answer['id']}") if operation.path != "/v1/auth/login" else {}
    else:
        id = path_of(world, operation).rpartition("/")[2] if operation.method == "PATCH" else answer["id"]
        row = world.get(f"/v1/admin/{kind}s/{id}")
    for name in body.keys() & row.keys() - {"key"}:
        assert row[name] == body[name], name
    if "router" in body and kind == "provider":
        assert row["router_id"] == body["router"]


@pytest.mark.parametrize("operation", [o for o in WITH_BODY if o.method == "POST"], ids=names)
def test_what_is_left_out_has_its_default(world, tomorrow, operation):
    full = body_of(world, operation, tomorrow)
    least = {name: full[name] for name, row in SCHEMAS[operation.body].items() if row.required}
    if operation.body == "CreateProvider":
        least |= {"url": full["url"]}
    answer = world.done("POST", operation.path, least)
    if operation.path in ("/v1/auth/login", "/v1/me/keys"):
        return
    row = world.get(f"{operation.path}/{answer['id']}")
    for field in SCHEMAS[operation.body].values():
        if field.default is not ... and field.name in row and field.name not in least:
            assert row[field.name] == field.default, field.name


@pytest.mark.parametrize("operation", WITH_BODY, ids=names)
def test_unknown_fields_do_no_harm(world, tomorrow, operation):
    extra = {"is_superuser": True, "id": 1, "object": "x", "digest": "0" * 64, "created": 1, "user_id": 1, "x": [{}]}
    body = extra | body_of(world, operation, tomorrow)
    response = world.client.request(operation.method, path_of(world, operation), json=body)
    assert response.status_code == operation.status, response.text


def wrong_values(row: Field) -> list[Any]:
    """Values that the field must not take."""
    wrong: list[Any] = [] if row.nullable else [None]
    if row.is_list:
        return [*wrong, "text", 1, {}, [None], [1], [[]], ["no such choice"] if row.type != "str" else [""]]
    wrong += [{}, []]
    if row.type == "str":
        wrong += [1, 1.5, True, "nul\x00", "x" * 5000]
        wrong += ["", "   "] if row.least else []
        wrong += ["x" * (row.most + 1)] if row.most else []
    elif row.type in ENUMS:
        wrong += ["no such choice", "", 1, True]
    else:
        wrong += ["1", True, ""]
        wrong += [1e300] if row.name != "qos_limit" else []
        wrong += [1.5] if row.type in ("int", "id", "time") else []
        wrong += [row.least - 1] if row.least is not None else []
        wrong += [row.most + 1] if row.most is not None else []
        wrong += [0, 1_000_000_000, -1] if row.type == "time" else []
        wrong += [10**30, 2**63] if row.type in ("int", "id", "time") else []
    return wrong


@pytest.mark.parametrize("operation", WITH_BODY, ids=names)
def test_a_bad_field_is_a_422_that_says_where(world, tomorrow, operation):
    good = body_of(world, operation, tomorrow)
    path = path_of(world, operation)
    for row in SCHEMAS[operation.body].values():
        for value in wrong_values(row):
            status, detail = world.refused(operation.method, path, good | {row.name: value})
            assert status == 422, (row.name, value, detail)
            assert all(set(fault) >= {"type", "loc", "msg"} for fault in detail)
            assert all(fault["loc"][:2] == ["body", row.name] for fault in detail), (row.name, value, detail)
        if row.required:
            without = {name: value for name, value in good.items() if name != row.name}
            fault = {"type": "missing", "loc": ["body", row.name], "msg": "Field required"}
            assert world.refused(operation.method, path, without) == (422, [fault])


@pytest.mark.parametrize("operation", WITH_BODY, ids=names)
def test_what_is_no_json_object_is_a_422(world, operation):
    path = path_of(world, operation)
    for content in (b"", b"{", b"[]", b"null", b'"x"', b"1", b"\xff", b'{"a":NaN}', b"[" * 100_000, b"{}x"):
        response = world.client.request(operation.method, path, content=content)
        if content == b"" and operation.method == "PATCH":
            assert response.status_code == 204  # nothing to change
        else:
            assert response.status_code == 422, (content[:20], response.text)
            assert all(fault["loc"][0] == "body" for fault in response.json()["detail"])


@pytest.mark.parametrize("operation", WITH_BODY, ids=names)
def test_a_body_of_more_than_a_megabyte_is_a_413(world, tomorrow, operation):
    body = body_of(world, operation, tomorrow) | {"x": "x" * 1024 * 1024}
    detail = "Request size limit exceeded (max: 1048576 bytes)."
    assert world.refused(operation.method, path_of(world, operation), body) == (413, detail)


@pytest.mark.parametrize("operation", LISTS, ids=names)
def test_a_page_out_of_bounds_is_a_422(world, operation):
    wrong = {"offset": ["-1", "x", "1.0", "", "٣"], "limit": ["0", "101", "-1", "x", "1e1", " 1"]}
    if operation.orders:
        by, direction = ("sort_by", "sort_order") if "routers" in operation.path else ("order_by", "order_direction")
        wrong |= {by: ["x", "", "password", "-id", "role__name"], direction: ["x", "", "ASC"]}
    for name, values in wrong.items():
        for value in values:
            status, detail = world.refused("GET", operation.path, **{name: value})
            assert (status, detail[0]["loc"]) == (422, ["query", name]), (name, value)
    assert world.get(operation.path, offset=10**40)["data"] == []


KIND = {"/v1/me/keys": "key"} | {f"/v1/admin/{kind}s": kind for kind in ("organization", "router", "role", "token")}


@pytest.mark.parametrize("operation", [o for o in LISTS if o.path in KIND], ids=names)
def test_pages_come_in_the_order_asked_for(world, operation):
    kind = KIND[operation.path]
    for number in range(6):
        world.make(kind, name=f"row {(number * 7) % 6}")
    by, direction = ("sort_by", "sort_order") if kind == "router" else ("order_by", "order_direction")
    total = world.get(operation.path)["total"]
    for order in operation.orders:
        for way in ("asc", "desc"):
            pages = [
                world.get(operation.path, **{by: order, direction: way, "offset": offset, "limit": 3})
                for offset in range(0, total, 3)
            ]
            assert {page["total"] for page in pages} == {total}
            rows = [row for page in pages for row in page["data"]]
            assert len({row["id"] for row in rows}) == total
            keys = [(row[order], row["id"]) for row in rows]
            assert keys == sorted(keys, reverse=way == "desc")


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if "{" in o.path], ids=names)
def test_an_id_that_is_none_is_a_422_and_one_of_no_row_a_404(world, operation):
    parameter = operation.path.split("{")[1].rstrip("}")
    for text in ("x", "1.0", "0x1", "1 ", "٣", "null"):
        path = operation.path.replace("{" + parameter + "}", text)
        status, detail = world.refused(operation.method, path, {})
        assert (status, detail[0]["loc"]) == (422, ["path", parameter]), text
    for id in (0, -1, 999_999, 2**63, 10**30):
        path = operation.path.format(**{parameter: id})
        status, detail = world.refused(operation.method, path, {} if operation.body else None)
        assert status == 404, id
        assert detail.endswith("not found.")


ENUM_FIELDS = [
    ("POST", "/v1/admin/routers", "type", "ModelType"),
    ("PATCH", "/v1/admin/routers/{router}", "load_balancing_strategy", "RouterLoadBalancingStrategy"),
    ("PATCH", "/v1/admin/providers/{provider}", "model_hosting_zone", "ProviderCarbonFootprintZone"),
    ("PATCH", "/v1/admin/providers/{provider}", "qos_metric", "Metric"),
    ("PATCH", "/v1/admin/roles/{role}", "permissions", "PermissionType"),
    ("PATCH", "/v1/admin/roles/{role}", "limits", "LimitType"),
]


@pytest.mark.parametrize(("method", "path", "name", "enum"), ENUM_FIELDS)
def test_every_word_of_an_enumeration_is_taken(world, method, path, name, enum):
    for word in ENUMS[enum]:
        value: Any = word
        if name == "permissions":
            value = [word]
        elif name == "limits":
            value = [{"router": world.ids["router"], "type": word}]
        more = {"name": f"of {word}"} if method == "POST" else {"qos_limit": 3} if name == "qos_metric" else {}
        world.done(method, path.format(**world.ids), {name: value} | more)
    assert world.get("/v1/me/usage", endpoint=ENUMS["EndpointUsage"][0])["data"] == []
