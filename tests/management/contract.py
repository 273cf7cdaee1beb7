"""The contract's tables of the management API, as data: what `test_conformance.py` holds the running server against.

A line of a schema reads: name, type, then what is special. `?` after a type is "or null"; `required`, `= default`,
`min..max` (of the value, or of a string's length), `const`. Types: str, int, float, id, time, an enumeration's name,
a schema's name, or one of these in brackets for a list.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from routing.zones import ZONES

ENUMS: dict[str, list[str]] = {
    "PermissionType": ["admin", "create_public_collection", "read_metric", "provide_models"],
    "LimitType": ["tpm", "tpd", "rpm", "rpd"],
    "ModelType": [
        "automatic-speech-recognition",
        "image-text-to-text",
        "image-to-text",
        "text-embeddings-inference",
        "text-generation",
        "text-classification",
    ],
    "ProviderType": ["albert", "openai", "mistral", "tei", "vllm"],
    # The last three are ours.
    "RouterLoadBalancingStrategy": ["shuffle", "least_busy", "lowest_latency", "cheapest", "lowest_carbon"],
    "Metric": ["ttft", "latency", "inflight", "performance"],
    "ProviderCarbonFootprintZone": list(ZONES),
    "EndpointUsage": [
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/ocr",
        "/v1/rerank",
        "/v1/search",
    ],
}

SCHEMAS = """
Limit
  router       id               required
  type         LimitType        required
  value        int?             = null 0..

CreateRole
  name         str              required 1..
  permissions  [PermissionType]?  = []
  limits       [Limit]          = []
RoleUpdateRequest
  name         str?             1..
  permissions  [PermissionType]?
  limits       [Limit]?
Role
  object       const            role
  id           int
  name         str
  permissions  [PermissionType]
  limits       [Limit]
  users        int
  created      time
  updated      time

OrganizationRequest
  name         str              required 1..
OrganizationUpdateRequest
  name         str?             1..
Organization
  object       const            organization
  id           int
  name         str
  users        int
  created      time
  updated      time

CreateUser
  email        str              required 1..254
  name         str?             = null
  password     str              required 1..72
  role         id               required
  organization id?              = null
  budget       float?           = null
  expires      time?            = null
  priority     int?             = 0 0..
UserUpdateRequest
  email        str?             1..254
  name         str?
  current_password str?         ..72
  password     str?             1..72
  role         id?
  organization id?              = null
  budget       float?           = null
  expires      time?            = null
  priority     int?             0..
User
  object       const            user
  id           int
  email        str
  name         str?
  sub          str?
  iss          str?
  role         int
  organization int?
  budget       float?
  expires      time?
  created      time
  updated      time
  priority     int
UserInfo
  object       const            userInfo
  id           int
  email        str
  name         str?
  organization int?
  budget       float?
  carbon_budget float?
  budget_refills time?
  permissions  [PermissionType]
  limits       [Limit]
  expires      time?
  priority     int
  created      time
  updated      time
UpdateUserInfo
  name         str?
  email        str?             1..254
  current_password str?         ..72
  password     str?             1..72

CreateToken
  name         str              required 1..
  user         id               required
  expires      time?            = null
CreateKey
  name         str              required 1..
  expires      time?            = null
Token
  object       const            token
  id           int
  name         str
  token        str
  user         int
  expires      time?
  created      time
Key
  object       const            key
  id           int
  name         str
  token        str
  expires      time?
  created      time

CreateProvider
  router       id               required
  type         ProviderType     required
  url          str?             = null 1..
  key          str?             = null 1..
  timeout      int              = 300 1..3600
  model_name   str              required 1..
  model_hosting_zone   ProviderCarbonFootprintZone  = "WOR"
  model_total_params   int      = 0 0..
  model_active_params  int      = 0 0..
  cost_prompt_tokens       float?  = null 0..
  cost_completion_tokens   float?  = null 0..
  qos_metric   Metric?          = null
  qos_limit    float?           = null 0..
ProviderUpdateRequest
  router       id?
  timeout      int?             1..3600
  model_hosting_zone   ProviderCarbonFootprintZone?
  model_total_params   int?     0..
  model_active_params  int?     0..
  cost_prompt_tokens       float?  0..
  cost_completion_tokens   float?  0..
  qos_metric   Metric?
  qos_limit    float?           0..
CreatedProvider
  id           int
  router_id    int
  user_id      int
  type         ProviderType
  url          str?
  key          str?
  timeout      int
  model_name   str
  model_hosting_zone   ProviderCarbonFootprintZone
  model_total_params   int
  model_active_params  int
  cost_prompt_tokens       float?
  cost_completion_tokens   float?
  qos_metric   Metric?
  qos_limit    float?
  created      time
  updated      time
Provider
  object       const            provider
  id           int
  router_id    int
  user_id      int
  type         ProviderType
  url          str?
  key          str?
  timeout      int
  model_name   str
  model_hosting_zone   ProviderCarbonFootprintZone
  model_total_params   int
  model_active_params  int
  cost_prompt_tokens       float?
  cost_completion_tokens   float?
  qos_metric   Metric?
  qos_limit    float?
  created      time
  updated      time

CreateRouter
  name         str              required 1..
  type         ModelType        required
  aliases      [str]            = []
  load_balancing_strategy  RouterLoadBalancingStrategy  = "shuffle"
  cost_prompt_tokens       float  = 0 0..
  cost_completion_tokens   float  = 0 0..
RouterUpdateRequest
  name         str?             1..
  type         ModelType?
  aliases      [str]?
  load_balancing_strategy  RouterLoadBalancingStrategy?
  cost_prompt_tokens       float?  0..
  cost_completion_tokens   float?  0..
CreatedRouter
  id           int
  name         str
  type         ModelType
  aliases      [str]
  load_balancing_strategy  RouterLoadBalancingStrategy
  cost_prompt_tokens       float
  cost_completion_tokens   float
Router
  object       const            router
  id           int
  name         str
  user_id      int
  type         ModelType
  aliases      [str]
  load_balancing_strategy  RouterLoadBalancingStrategy
  vector_size  int?
  max_context_length  int?
  cost_prompt_tokens       float
  cost_completion_tokens   float
  providers    int
  created      time
  updated      time

UsageRow
  object       const            me.usage
  model        str?
  key          str?
  endpoint     str?
  method       str?
  status       int?
  usage        UsageFigures
  created      time

Login
  email        str              required 1..
  password     str              required 1..72
LoginResponse
  id           int
  key          str
CreatedKey
  id           int
  key          str
  token        str
CreatedToken
  id           int
  token        str
Created
  id           int
"""

# Method, path, permission, success, schema of the body, schema of the answer ([…] for a list), order fields of a list.
OPERATIONS = """
POST    /v1/admin/providers                     admin  201  CreateProvider             CreatedProvider
GET     /v1/admin/providers                     admin  200  -                          [Provider]      id,model_name,created
GET     /v1/admin/providers/{provider}          admin  200  -                          Provider
PATCH   /v1/admin/providers/{provider}          admin  204  ProviderUpdateRequest      -
DELETE  /v1/admin/providers/{provider}          admin  200  -                          Provider
POST    /v1/admin/routers                       admin  201  CreateRouter               CreatedRouter
GET     /v1/admin/routers                       admin  200  -                          [Router]        id,name,created
GET     /v1/admin/routers/{router}              admin  200  -                          Router
PATCH   /v1/admin/routers/{router}              admin  204  RouterUpdateRequest        -
DELETE  /v1/admin/routers/{router}              admin  200  -                          Router
POST    /v1/admin/organizations                 admin  201  OrganizationRequest        Created
GET     /v1/admin/organizations                 admin  200  -                          [Organization]  id,name,created,updated
GET     /v1/admin/organizations/{organization}  admin  200  -                          Organization
PATCH   /v1/admin/organizations/{organization}  admin  204  OrganizationUpdateRequest  -
DELETE  /v1/admin/organizations/{organization}  admin  204  -                          -
POST    /v1/admin/roles                         admin  201  CreateRole                 Created
GET     /v1/admin/roles                         admin  200  -                          [Role]          id,name,created,updated
GET     /v1/admin/roles/{role}                  admin  200  -                          Role
PATCH   /v1/admin/roles/{role}                  admin  204  RoleUpdateRequest          -
DELETE  /v1/admin/roles/{role}                  admin  204  -                          -
POST    /v1/admin/tokens                        admin  201  CreateToken                CreatedToken
GET     /v1/admin/tokens                        admin  200  -                          [Token]         id,name,created
GET     /v1/admin/tokens/{token}                admin  200  -                          Token
DELETE  /v1/admin/tokens/{token}                admin  204  -                          -
POST    /v1/admin/users                         admin  201  CreateUser                 Created
GET     /v1/admin/users                         admin  200  -                          [User]          id,name,created,updated
GET     /v1/admin/users/{user}                  admin  200  -                          User
PATCH   /v1/admin/users/{user}                  admin  204  UserUpdateRequest          -
DELETE  /v1/admin/users/{user}                  admin  204  -                          -
GET     /v1/me/info                             key    200  -                          UserInfo
PATCH   /v1/me/info                             key    204  UpdateUserInfo             -
POST    /v1/me/keys                             key    201  CreateKey                  CreatedKey
GET     /v1/me/keys                             key    200  -                          [Key]           id,name,created
GET     /v1/me/keys/{key}                       key    200  -                          Key
DELETE  /v1/me/keys/{key}                       key    204  -                          -
GET     /v1/me/usage                            key    200  -                          [UsageRow]
POST    /v1/auth/login                          none   200  Login                      LoginResponse
"""  # noqa: E501


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    nullable: bool
    required: bool
    is_list: bool
    default: Any = ...
    least: int | None = None
    most: int | None = None
    const: str | None = None


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    permission: str
    status: int
    body: str | None
    answer: str | None
    is_list: bool
    orders: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def _field(line: str) -> Field:
    name, type, *words = line.split()
    options: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word == "=":
            options["default"] = json.loads(words.pop(0))
        elif ".." in word:
            least, most = word.split("..")
            options |= {"least": int(least) if least else None, "most": int(most) if most else None}
        elif type == "const":
            options["const"] = word
    plain = type.removesuffix("?")
    return Field(
        name=name,
        type=plain.strip("[]"),
        nullable=type.endswith("?"),
        required="required" in line.split(),
        is_list=plain.startswith("["),
        **options,
    )


def schemas() -> dict[str, dict[str, Field]]:
    found: dict[str, dict[str, Field]] = {}
    fields: dict[str, Field] = {}
    for line in SCHEMAS.splitlines():
        if line.startswith("  "):
            row = _field(line)
            fields[row.name] = row
        elif line:
            fields = found[line] = {}
    return found


def operations() -> list[Operation]:
    found = []
    for line in OPERATIONS.strip().splitlines():
        method, path, permission, status, body, answer, *orders = line.split()
        found.append(
            Operation(
                method=method,
                path=path,
                permission=permission,
                status=int(status),
                body=None if body == "-" else body,
                answer=None if answer == "-" else answer.strip("[]"),
                is_list=answer.startswith("["),
                orders=orders[0].split(",") if orders else [],
            )
        )
    return found
