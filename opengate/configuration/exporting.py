"""Rows as a file that makes them again: in an order of its own, with references where secrets would stand."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from accounts.models import Permission
from opengate.configuration.current import Rows
from opengate.configuration.document import Provider
from opengate.configuration.reading import escaped
from usage.matrix import TYPES
from usage.models import in_words

COMMENTS = {
    "organizations": "Groups of users; the dashboard adds up what each of them uses.",
    "roles": "What users may do, and how much they may ask of which router. A router that is not named is closed.",
    "routers": "Names that callers use for models, and the providers that serve them. Prices are of a million tokens.",
}


@dataclass(frozen=True)
class Export:
    """What to write, with references for secrets, and the secrets by the variables' names."""

    data: Mapping[str, Any]
    secrets: Mapping[str, str]


class _Inline(dict[str, Any]):
    """A mapping to write on one line."""


def export(rows: Rows) -> Export:
    """Everything that a file may say, by name. The secrets are for whoever may see them: they are never written."""
    routers = sorted(rows.routers.values(), key=lambda row: row.name)
    providers = {
        router.pk: sorted(rows.providers.get(router.pk, {}).values(), key=lambda row: (row.model_name, row.url))
        for router in routers
    }
    keyed = [(router.name, row.url, row.model_name) for router in routers for row in providers[router.pk] if row.key]
    variables = names_of_keys(keyed)
    secrets: dict[str, str] = {}
    told = []
    for router in routers:
        entries = []
        for row in providers[router.pk]:
            columns = {name: getattr(row, name) for name in Provider.model_fields if name != "renamed_from"}
            if row.key:
                variable = variables[router.name, row.url, row.model_name]
                secrets[variable] = row.key
                columns["key"] = _Reference(variable)
            entries.append(columns)
        columns = {name: getattr(router, name) for name in ("name", "type")}
        columns["aliases"] = sorted(rows.aliases.get(router.pk, []))
        columns |= {
            name: getattr(router, name)
            for name in ("load_balancing_strategy", "cost_prompt_tokens", "cost_completion_tokens")
        }
        told.append(columns | {"providers": entries})
    names = {row.pk: row.name for row in routers}
    data = {
        "version": 1,
        "organizations": [{"name": name} for name in sorted(rows.organizations)],
        "roles": [
            {
                "name": name,
                "permissions": [one for one in Permission.values if one in rows.roles[name].permissions],
                "limits": _limits(rows.limits.get(rows.roles[name].pk, {}), names),
            }
            for name in sorted(rows.roles)
        ],
        "routers": told,
    }
    return Export(_escaped(data), secrets)


def _limits(held: Mapping[int, Mapping[str, int | None]], names: Mapping[int, str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for router in sorted(held, key=lambda id: names[id]):
        limits = held[router]
        values = set(limits.values())
        if len(limits) == len(TYPES) and len(values) == 1 and values <= {None, 0}:
            found[names[router]] = in_words(values.pop())
        else:
            words = {str(type): limits[type] for type in TYPES if type in limits}
            found[names[router]] = _Inline({type: value if value else in_words(value) for type, value in words.items()})
    return found


class _Reference(str):
    """The name of a variable, to be written as a reference."""


def _escaped(value: Any) -> Any:
    if isinstance(value, _Reference):
        return f"${{{value}}}"
    if isinstance(value, _Inline):
        return value
    if isinstance(value, dict):
        return {escaped(name): _escaped(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    return escaped(str(value)) if isinstance(value, str) else value


def names_of_keys(providers: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Variables for the keys of providers, told by router, address and model: KEY_SMOLLM2_VLLM_8000.

    Where that tells too little, six digits of a digest of the three follow; none depends on the order.
    """
    every = list(providers)
    plain = {one: f"KEY_{_word(one[0])}_{_word(_host(one[1]))}" for one in every}
    counts = Counter(plain.values())
    return {one: name if counts[name] == 1 else f"{name}_{_digest(one)}" for one, name in plain.items()}


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _word(text: str) -> str:
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_") or "X"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:6].upper()


# writing


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)  # lists stand further in than their key


def _decimal(dumper: yaml.SafeDumper, value: Decimal) -> yaml.Node:
    text = f"{value + 0:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return dumper.represent_scalar(f"tag:yaml.org,2002:{'float' if '.' in text else 'int'}", text)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    return dumper.represent_int(int(value)) if value.is_integer() and abs(value) < 1e15 else _decimal_of(dumper, value)


def _decimal_of(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    return _decimal(dumper, Decimal(repr(value)))


_Dumper.add_representer(Decimal, _decimal)
_Dumper.add_representer(float, _float)
_Dumper.add_representer(
    _Inline, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=True)
)


def write(data: Mapping[str, Any], head: Sequence[str]) -> str:
    """The file, with a comment at its head and one for each section."""
    parts = ["".join(f"# {line}".rstrip() + "\n" for line in head)]
    for name, value in data.items():
        comment = f"# {COMMENTS[name]}\n" if name in COMMENTS else ""
        text = yaml.dump(
            {name: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
        )
        parts.append(comment + text)
    return "\n".join(parts)


def head_of(title: str, variables: Iterable[str]) -> list[str]:
    names = sorted(variables)
    needed = ["Variables that it needs:", *(f"  {name}" for name in names)] if names else ["It needs no variables."]
    return [title, "", *needed]
