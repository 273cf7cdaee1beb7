"""Each refusal of the contract that belongs to the management API: its status and its words."""

from collections.abc import Callable
from typing import Any

import pytest

from accounts.models import Key, User
from routing.models import Provider, Router
from tests.conftest import PASSWORD
from tests.management.conftest import MODEL, World, model_list

MISSING = 999_999
Case = Callable[[World], tuple[int, Any]]

CASES: dict[str, tuple[int, str, Case]] = {}


def case(name: str, status: int, detail: str) -> Callable[[Case], Case]:
    def _case(scene: Case) -> Case:
        CASES[name] = (status, detail, scene)
        return scene

    return _case


def refusal(name: str, status: int, detail: str, method: str, path: str, body: Any = None, **query: Any) -> None:
    """A case of one call; `{kind}` in path and body stands for the id of the world's row."""

    def scene(world: World) -> tuple[int, Any]:
        given = {
            key: world.ids[value[1:-1]] if str(value).startswith("{") else value for key, value in (body or {}).items()
        }
        return world.refused(method, path.format(**world.ids), given if body is not None else None, **query)

    CASES[name] = (status, detail, scene)


NEW_USER = {"email": "new@example.org", "password": "x", "role": "{role}"}
PATCHED_USER = {"organization": "{organization}"}

# 404: no such row
body: Any
for kind in ("organization", "role", "user", "token"):
    text = f"{kind.capitalize()} not found."
    for method in ("GET", "PATCH", "DELETE") if kind != "token" else ("GET", "DELETE"):
        body = {} if method == "PATCH" else None
        refusal(f"{method} no {kind}", 404, text, method, f"/v1/admin/{kind}s/{MISSING}", body)
for method in ("GET", "PATCH", "DELETE"):
    body = {} if method == "PATCH" else None
    refusal(f"{method} no router", 404, "Model router 999999 not found.", method, f"/v1/admin/routers/{MISSING}", body)
    words = "Model provider 999999 not found." if method == "DELETE" else "Model provider not found."
    refusal(f"{method} no provider", 404, words, method, f"/v1/admin/providers/{MISSING}", body)
for method in ("GET", "DELETE"):
    refusal(f"{method} no key", 404, "Token not found.", method, f"/v1/me/keys/{MISSING}")
refusal("key of another", 404, "Token not found.", "GET", "/v1/me/keys/{token}")
refusal("delete a key of another", 404, "Token not found.", "DELETE", "/v1/me/keys/{token}")
refusal("delete a token of another", 404, "Token not found.", "DELETE", "/v1/admin/tokens/{token}", user=MISSING)
refusal("users by e-mail", 404, "User not found.", "GET", "/v1/admin/users", email="nobody@example.org")
refusal("user of no role", 404, "Role not found.", "POST", "/v1/admin/users", NEW_USER | {"role": MISSING})
refusal(
    "user of no organization",
    404,
    "Organization not found.",
    "POST",
    "/v1/admin/users",
    NEW_USER | {"organization": MISSING},
)
refusal("user to no role", 404, "Role not found.", "PATCH", "/v1/admin/users/{user}", {"role": MISSING})
refusal(
    "user to no organization",
    404,
    "Organization not found.",
    "PATCH",
    "/v1/admin/users/{user}",
    {"organization": MISSING},
)
refusal("token of nobody", 404, "User not found.", "POST", "/v1/admin/tokens", {"name": "x", "user": MISSING})
NO_ROUTER = "Model router 999999 not found."
LIMITS = {"limits": [{"router": MISSING, "type": "rpm"}]}
refusal("role with a limit of no router", 404, NO_ROUTER, "POST", "/v1/admin/roles", LIMITS | {"name": "new"})
refusal("role to a limit of no router", 404, NO_ROUTER, "PATCH", "/v1/admin/roles/{role}", LIMITS)
PROVIDER = {"router": "{router}", "type": "openai", "url": "http://127.0.0.1:9/", "model_name": "m"}
refusal("provider of no router", 404, NO_ROUTER, "POST", "/v1/admin/providers", PROVIDER | {"router": MISSING})
refusal("provider to no router", 404, NO_ROUTER, "PATCH", "/v1/admin/providers/{provider}", {"router": MISSING})

# 409: taken
refusal(
    "organization twice",
    409,
    "Organization already exists.",
    "POST",
    "/v1/admin/organizations",
    {"name": "Ministry of Rows"},
)
refusal("role twice", 409, "Role already exists.", "POST", "/v1/admin/roles", {"name": "clerks"})
refusal("role renamed", 409, "Role already exists.", "PATCH", "/v1/admin/roles/{role}", {"name": "admin"})
refusal("user twice", 409, "User already exists.", "POST", "/v1/admin/users", NEW_USER | {"email": "clerk@example.org"})
refusal("user renamed", 409, "User already exists.", "PATCH", "/v1/admin/users/{user}", {"email": "admin@example.org"})
refusal("me renamed", 409, "User already exists.", "PATCH", "/v1/me/info", {"email": "clerk@example.org"})
NEW_ROUTER = {"name": "rows", "type": "text-generation"}
refusal("router twice", 409, "Router rows already exists.", "POST", "/v1/admin/routers", NEW_ROUTER)
ALIASES = "Following aliases already exist: 'rows'"
refusal(
    "alias is a router", 409, ALIASES, "POST", "/v1/admin/routers", NEW_ROUTER | {"name": "new", "aliases": ["rows"]}
)
refusal(
    "alias is its own router",
    409,
    "Following aliases already exist: 'new'",
    "POST",
    "/v1/admin/routers",
    NEW_ROUTER | {"name": "new", "aliases": ["x", "new"]},
)
refusal("role in use", 409, "Delete role with users is not allowed.", "DELETE", "/v1/admin/roles/{role}")

# 403: reserved
refusal("reserved e-mail", 403, "Reserved email.", "POST", "/v1/admin/users", NEW_USER | {"email": " master "})
refusal("user to a reserved e-mail", 403, "Reserved email.", "PATCH", "/v1/admin/users/{user}", {"email": "master"})
refusal("me to a reserved e-mail", 403, "Reserved email.", "PATCH", "/v1/me/info", {"email": "master"})

# 401: passwords
WRONG = "Invalid current password."
refusal(
    "user's wrong password", 401, WRONG, "PATCH", "/v1/admin/users/{user}", {"current_password": "x", "password": "y"}
)
refusal("my wrong password", 401, WRONG, "PATCH", "/v1/me/info", {"current_password": "x", "password": "y"})
refusal("my password without the current", 401, WRONG, "PATCH", "/v1/me/info", {"password": "y"})
refusal("login", 401, WRONG, "POST", "/v1/auth/login", {"email": "admin@example.org", "password": "x"})
refusal(
    "login of nobody", 404, "User not found.", "POST", "/v1/auth/login", {"email": "x@example.org", "password": "x"}
)

# 400: what does not go together
refusal(
    "wrong type of provider",
    400,
    "Invalid model provider type tei for text-generation router.",
    "POST",
    "/v1/admin/providers",
    PROVIDER | {"type": "tei"},
)
refusal(
    "router to a type its providers cannot serve",
    400,
    "Invalid model provider type vllm for image-to-text router.",
    "PATCH",
    "/v1/admin/routers/{router}",
    {"type": "image-to-text"},
)

# 424: away
refusal("unreachable", 424, "Model provider m not reachable.", "POST", "/v1/admin/providers", PROVIDER)


@case("organization renamed", 409, "Organization name already taken. Please, choose another one.")
def _(world: World) -> tuple[int, Any]:
    world.make("organization", name="other")
    return world.refused("PATCH", f"/v1/admin/organizations/{world.ids['organization']}", {"name": "other"})


@case("organization in use", 409, "Delete organization with users is not allowed.")
def _(world: World) -> tuple[int, Any]:
    world.make("user", email="new@example.org", organization=world.ids["organization"])
    return world.refused("DELETE", f"/v1/admin/organizations/{world.ids['organization']}")


@case("router renamed to an alias", 409, "Router other already exists.")
def _(world: World) -> tuple[int, Any]:
    world.make("router", name="another", aliases=["other"])
    return world.refused("PATCH", f"/v1/admin/routers/{world.ids['router']}", {"name": "other"})


@case("router is an alias", 409, "Router other already exists.")
def _(world: World) -> tuple[int, Any]:
    world.make("router", name="another", aliases=["other"])
    return world.refused("POST", "/v1/admin/routers", {"name": "other", "type": "text-generation"})


@case("aliases taken", 409, "Following aliases already exist: 'b, a'")
def _(world: World) -> tuple[int, Any]:
    world.make("router", name="another", aliases=["a", "b"])
    return world.refused("PATCH", f"/v1/admin/routers/{world.ids['router']}", {"aliases": ["b", "c", "a"]})


@case("provider twice", 409, "Model provider upstream-name for url {url} already exists for router {router}.")
def _(world: World) -> tuple[int, Any]:
    world.upstream.reply(model_list())
    return world.refused("POST", "/v1/admin/providers", world.body("provider"))


@case("user owns routers", 409, "User cannot be deleted because the user owns routers: [rows].")
def _(world: World) -> tuple[int, Any]:
    return world.refused("DELETE", f"/v1/admin/users/{world.admin.id}")


@case("user owns providers", 409, "User cannot be deleted because the user owns providers: [upstream-name].")
def _(world: World) -> tuple[int, Any]:
    Router.objects.update(user=None)
    return world.refused("DELETE", f"/v1/admin/users/{world.admin.id}")


@case("login without a password", 404, "Password not set, please contact an administrator.")
def _(world: World) -> tuple[int, Any]:
    user = User.objects.get(id=world.ids["user"])
    user.set_unusable_password()
    user.save()
    return world.refused("POST", "/v1/auth/login", {"email": user.email, "password": PASSWORD})


def _embeddings(world: World, vector: list[float], length: int | None = None) -> None:
    world.upstream.reply(model_list(max_model_len=length))
    world.upstream.reply({"object": "list", "data": [{"embedding": vector, "index": 0}], "model": MODEL})


def _two_embedders(world: World, size: int, length: int | None) -> tuple[int, Any]:
    router = world.make("router", name="vectors", type="text-embeddings-inference")
    _embeddings(world, [0.1] * 3, 512)
    world.done("POST", "/v1/admin/providers", world.body("provider") | {"router": router})
    _embeddings(world, [0.1] * size, length)
    body = world.body("provider") | {"router": router, "url": f"{world.upstream.url}second"}
    return world.refused("POST", "/v1/admin/providers", body)


@case("vectors of another size", 403, "Inconsistent vector size for vectors. Expected: 3. Actual: 4")
def _(world: World) -> tuple[int, Any]:
    return _two_embedders(world, 4, 256)


@case("context of another length", 403, "Inconsistent max context length for vectors. Expected: 512. Actual: 256")
def _(world: World) -> tuple[int, Any]:
    return _two_embedders(world, 3, 256)


def _moved(world: World, type: str, **stored: Any) -> tuple[int, Any]:
    """The world's provider, moved to a router of the type that has one already."""
    router = world.make("router", name="vectors", type=type)
    fields = {"type": "vllm", "url": world.upstream.url, "model_name": "other"} | stored
    Provider.objects.create(router_id=router, **fields)
    return world.refused("PATCH", f"/v1/admin/providers/{world.ids['provider']}", {"router": router})


@case("moved to another type", 400, "New router type is not compatible with the provider type.")
def _(world: World) -> tuple[int, Any]:
    return _moved(world, "image-to-text")


@case("moved to vectors of another size", 403, "Inconsistent model vector size.")
def _(world: World) -> tuple[int, Any]:
    Provider.objects.filter(id=world.ids["provider"]).update(vector_size=4)
    return _moved(world, "text-embeddings-inference", vector_size=3)


@case("moved to context of another length", 403, "Inconsistent model max context length.")
def _(world: World) -> tuple[int, Any]:
    Provider.objects.filter(id=world.ids["provider"]).update(max_context_length=4)
    return _moved(world, "text-generation", max_context_length=3)


@case("moved to where it is already", 409, "provider already exists for the new router.")
def _(world: World) -> tuple[int, Any]:
    return _moved(world, "text-generation", model_name=MODEL)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_has_the_status_and_the_words_of_the_contract(world, name):
    status, detail, scene = CASES[name]
    expected = detail.format(url=world.upstream.url, **world.ids)
    assert scene(world) == (status, expected)


def faults(answer: tuple[int, Any]) -> list[tuple[str, str, tuple[Any, ...]]]:
    status, detail = answer
    assert status == 422
    return [(fault["type"], fault["msg"], tuple(fault["loc"])) for fault in detail]


def test_a_limit_that_comes_twice_is_a_422(world):
    limit = {"router": world.ids["router"], "type": "rpm", "value": 1}
    message = f"Value error, Duplicate limit found: ({world.ids['router']}, rpm)."
    expected = [("value_error", message, ("body", "limits"))]
    body = {"name": "new", "limits": [limit, limit | {"value": 2}]}
    assert faults(world.refused("POST", "/v1/admin/roles", body)) == expected
    assert faults(world.refused("PATCH", f"/v1/admin/roles/{world.ids['role']}", body)) == expected


@pytest.mark.parametrize("path", ["/v1/admin/users", "/v1/admin/tokens", "/v1/me/keys", "/v1/admin/users/{user}"])
def test_what_has_expired_cannot_be_made(world, path):
    body = {"email": "x", "name": "x", "password": "x", "role": world.ids["role"], "user": world.ids["user"]}
    expected = [("value_error", "Value error, Wrong timestamp, must be in the future.", ("body", "expires"))]
    method = "PATCH" if "{" in path else "POST"
    answer = world.refused(method, path.format(**world.ids), body | {"expires": 1_700_000_000})
    assert faults(answer) == expected


def test_a_provider_without_an_address_of_its_own_needs_one(world):
    for type, router_type in (("vllm", "text-generation"), ("tei", "text-embeddings-inference")):
        router = world.make("router", name=f"of {type}", type=router_type)
        answer = world.refused("POST", "/v1/admin/providers", {"router": router, "type": type, "model_name": "m"})
        assert faults(answer) == [
            ("value_error", "Value error, URL is required for this model provider type.", ("body",))
        ]


@pytest.mark.parametrize(
    "url",
    ["ftp://host/", "host", "http://", "http://user:secret@host/", "http://host/?x=1", "http://ho st/", "http://[x/"],
)
def test_an_address_that_is_none_is_a_422(world, url):
    answer = world.refused("POST", "/v1/admin/providers", world.body("provider") | {"url": url})
    assert [fault[2] for fault in faults(answer)] == [("body", "url")]


def test_a_quality_of_service_needs_its_limit(world):
    expected = [("value_error", "Value error, QoS value is required if QoS metric is provided.", ("body",))]
    path = f"/v1/admin/providers/{world.ids['provider']}"
    body = world.body("provider") | {"qos_metric": "ttft"}
    assert faults(world.refused("POST", "/v1/admin/providers", body)) == expected
    assert faults(world.refused("PATCH", path, {"qos_metric": "ttft"})) == expected
    world.done("PATCH", path, {"qos_metric": "ttft", "qos_limit": 3})
    assert faults(world.refused("PATCH", path, {"qos_limit": None})) == expected


def test_an_unknown_path_and_method_are_refused(world):
    assert world.refused("GET", "/v1/admin/nothing") == (404, "Not Found")
    assert world.refused("GET", "/v1/admin/roles/") == (404, "Not Found")
    response = world.client.put("/v1/admin/roles", json={})
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
    assert Key.objects.filter(user=world.admin).exists()


def test_a_body_of_many_faults_is_refused_briefly(world):
    for body in (
        b'{"name": "x", "limits": [' + b",".join([b"1"] * 300_000) + b"]}",
        b'{"name": "x", "limits": [' + b",".join([b"1"] * 9_000) + b"]}",
        b'{"name": "x", "permissions": [' + b",".join([b"1"] * 90) + b"]}",
    ):
        response = world.client.post("/v1/admin/roles", content=body)
        assert response.status_code == 422
        assert len(response.json()["detail"]) <= 20
    many = [f"alias {number}" for number in range(101)]
    answer = world.refused("POST", "/v1/admin/routers", NEW_ROUTER | {"name": "many", "aliases": many})
    assert faults(answer) == [("too_long", "List should have at most 100 items", ("body", "aliases"))]


@pytest.mark.parametrize("address", ["garbage", "1.2.3.4, 5.6.7.8", "fe80::1%eth0", "x" * 300, "::1"])
def test_the_address_that_a_proxy_tells_does_no_harm(world, address):
    headers = {"X-Forwarded-For": address}
    made = world.client.post("/v1/admin/organizations", json={"name": "x"}, headers=headers)
    assert made.status_code == 201
    login = {"email": "nobody@example.org", "password": "x"}
    assert world.client.post("/v1/auth/login", json=login, headers=headers).status_code == 404
