"""A file of YAML as plain values, with the line of each; and references to variables, replaced in what was read.

YAML is read first and references are replaced afterwards, value by value: what a variable holds can never become
another key, or a list. Keys that come twice are faults, and aliases are bounded by what they unfold to.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from opengate.configuration.errors import ConfigurationError, Fault, InvalidFile, Path

MAX_BYTES = 2 * 1024 * 1024
MAX_VALUES = 100_000  # with what aliases stand for
STDIN = "-"

_TAG = "tag:yaml.org,2002:"
# "$${" stands for "${"; a reference is a name, and perhaps what stands in for it.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|\$\{")


@dataclass(frozen=True)
class Source:
    """What a file says, references as they stand, and on which line."""

    file: str
    data: Any
    lines: dict[Path, int] = field(default_factory=dict)


def read(file: str) -> Source:
    """Raises ConfigurationError with a sentence on what cannot be read."""
    name = "standard input" if file == STDIN else file
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if file == STDIN else _bytes_of(file)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror or error}.") from None
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(f"{name} is longer than {MAX_BYTES // 1024} KiB.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name} is not UTF-8: see byte {error.start}.") from None
    return parse(name, text)


def _bytes_of(file: str) -> bytes:
    with FilePath(file).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def parse(name: str, text: str) -> Source:
    """What the text says; raises InvalidFile."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        walk = _Walk(name)
        return Source(name, None if node is None else walk.value(node, ()), walk.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise InvalidFile(where, [Fault((), f"This is no YAML: {why}.")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidFile(f"{name}, line {line}", [Fault((), "A character is not allowed in YAML.")]) from None
    except RecursionError:
        raise InvalidFile(name, [Fault((), "It is nested too deeply.")]) from None


class _Walk:
    """From nodes to values: what yaml.safe_load does, with lines, without keys that come twice, and bounded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.constructor = SafeConstructor()
        self.count = 0
        self.open: set[int] = set()  # the nodes around this one

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            self.fail(node, path, f"There are more than {MAX_VALUES} values, with those that aliases stand for.")
        if id(node) in self.open:
            self.fail(node, path, "An alias stands for what it is a part of.")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        self.open.add(id(node))
        found = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.open.discard(id(node))
        return found

    def sequence(self, node: Any, path: Path) -> list[Any]:
        if node.tag != f"{_TAG}seq":
            self.fail(node, path, f"The tag {node.tag} is not known.")
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if node.tag != f"{_TAG}map":
            self.fail(node, path, f"The tag {node.tag} is not known.")
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = self.merged(value_node, path) | merged
                continue
            key = self.key(key_node, path)
            if key in found:
                self.fail(key_node, (*path, key), "This key is there twice.")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return merged | found

    def merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        """What `<<` brings: a mapping, or several of which the first counts most."""
        found: dict[str, Any] = {}
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(one, yaml.MappingNode):
                self.fail(one, path, "Only mappings can be merged with <<.")
            found = self.value(one, path) | found
        return found

    def key(self, node: yaml.Node, path: Path) -> str:
        """Keys are strings: a router called 12 may stand there without quotes."""
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, path, "A key must be a string.")
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag == f"{_TAG}float":
            try:
                return Decimal(node.value.replace("_", ""))  # exact, as money is
            except InvalidOperation:
                pass  # 1:30.5, .inf, .nan
        if node.tag not in self.constructor.yaml_constructors:
            self.fail(node, path, f"The tag {node.tag} is not known.")
        try:
            value = self.constructor.construct_object(node)
        except (ConstructorError, ValueError, OverflowError):
            self.fail(node, path, f"This is no {node.tag.removeprefix(_TAG)}.")
        if isinstance(value, str) and any(sign == "\x00" or "\ud800" <= sign <= "\udfff" for sign in value):
            self.fail(node, path, "Null characters and halves of characters cannot be kept.")
        return value

    def fail(self, node: yaml.Node, path: Path, message: str) -> Any:
        raise InvalidFile(self.name, [Fault(path, message)], {path: node.start_mark.line + 1})


@dataclass
class Expanded:
    """What a source says with its references replaced."""

    data: Any
    referring: set[Path] = field(default_factory=set)  # values that a variable has a part in
    needed: dict[str, None] = field(default_factory=dict)  # names of variables that have no default, in order
    unset: set[Path] = field(default_factory=set)  # values that are null since a variable is not set
    faults: list[Fault] = field(default_factory=list)


def expand(data: Any, variables: Mapping[str, str], *, unset: Callable[[Path], bool] = lambda path: False) -> Expanded:
    """Replace references in all values; a variable that is not set is a fault, but null where `unset(path)` allows."""
    found = Expanded(None)
    found.data = _expanded(data, variables, (), found, unset)
    return found


def _expanded(
    data: Any, variables: Mapping[str, str], path: Path, found: Expanded, unset: Callable[[Path], bool]
) -> Any:
    if isinstance(data, dict):
        result: dict[str, Any] = {}
        for key, value in data.items():
            name = str(_expanded(key, variables, (*path, key), found, lambda path: False))
            if name in result:
                found.faults.append(Fault((*path, key), f"{name!r} is there twice."))
            result[name] = _expanded(value, variables, (*path, name), found, unset)
        return result
    if isinstance(data, list):
        return [_expanded(item, variables, (*path, index), found, unset) for index, item in enumerate(data)]
    if not isinstance(data, str) or "${" not in data:
        return data
    is_missing = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal is_missing
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            found.faults.append(Fault(path, "A reference is ${NAME} or ${NAME:-default}; $${ stands for a plain ${."))
            return ""
        found.referring.add(path)
        if default is None:
            found.needed[name] = None
        value = variables.get(name, "")
        if value:
            return value
        if default is not None:
            return str(default[2:])
        is_missing = True
        if not unset(path):
            state = "is set, but empty" if name in variables else "is not set"
            found.faults.append(Fault(path, f"The variable {name} {state}; ${{{name}:-…}} gives a default."))
        return ""

    text = _REFERENCE.sub(replaced, data)
    if is_missing and unset(path):
        found.unset.add(path)
        return None
    return text


def needed_by(data: Any) -> list[str]:
    """Names of all variables that the values refer to without a default."""
    return list(expand(data, {}).needed)


def escaped(text: str) -> str:
    """So that reading it gives the text again."""
    return text.replace("${", "$${")
