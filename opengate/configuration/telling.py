"""Plans in words, for people and for machines. Names are quoted, so that none can play with a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opengate.configuration.errors import Fault, Lines, located
from opengate.configuration.plan import Change, Plan

SIGNS = {"create": "+", "update": "~", "delete": "-", "leave": "="}
LONGEST = 200


def quoted(text: str) -> str:
    told = json.dumps(text if len(text) <= LONGEST else f"{text[:LONGEST]}…", ensure_ascii=False)
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in told)


def value(given: Any) -> str:
    if given is None:
        return "none"
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(str, map(value, given)))}]"
    if isinstance(given, float):
        return f"{given:g}"
    text = str(given)
    return text if text.isprintable() and len(text) <= LONGEST else quoted(text)


def lines_of(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        yield f"{SIGNS[change.action]} {_title(change)}"
        for name, old, new in change.fields:
            shown = value(new) if change.action == "create" else f"{value(old)} → {value(new)}"
            yield f"    {value(name)}: {shown}"
    for change in plan.left:
        yield f"= {_title(change)} is not in the file, and is left alone; --prune deletes it."
    yield summary(plan, "Plan", ("to create", "to change", "to delete"))


def summary(plan: Plan, head: str, words: Sequence[str]) -> str:
    if not plan.changes:
        return "Nothing to change."
    counts = [plan.count(action) for action in ("create", "update", "delete")]
    return f"{head}: {', '.join(f'{count} {word}' for count, word in zip(counts, words, strict=True))}."


def _title(change: Change) -> str:
    title = f"{change.kind} {quoted(change.name)}"
    return f"{title} of router {quoted(change.router)}" if change.router is not None else title


def remarks(faults: Sequence[Fault], file: str, lines: Lines) -> Iterator[str]:
    for fault in faults:
        yield located(file, fault, lines)


def as_json(plan: Plan, file: str, lines: Lines) -> Mapping[str, Any]:
    return {
        "file": file,
        "differs": bool(plan.changes),
        "changes": [_json(change) for change in plan.changes],
        "left_alone": [_json(change) for change in plan.left],
        "notes": list(remarks(plan.notes, file, lines)),
        "faults": list(remarks(plan.faults, file, lines)),
        "summary": {action: plan.count(action) for action in ("create", "update", "delete")},
    }


def _json(change: Change) -> Mapping[str, Any]:
    told: dict[str, Any] = {"action": change.action, "kind": change.kind, "name": change.name}
    if change.router is not None:
        told["router"] = change.router
    return told | {"fields": {name: {"old": old, "new": new} for name, old, new in change.fields}}
