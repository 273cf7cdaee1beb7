"""Why a file is not applied: sentences that say where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]
Lines = Mapping[Path, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a place of a file; `path` is empty for the file as a whole."""

    path: Path
    message: str


class ConfigurationError(Exception):
    """Nothing was changed; the text says why, a fault a line."""


class InvalidFile(ConfigurationError):
    def __init__(self, file: str, faults: Sequence[Fault], lines: Lines | None = None) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(located(file, fault, lines or {}) for fault in faults))


class Refused(ConfigurationError):
    """The rows as they are do not allow it."""


def shown(path: Path) -> str:
    """As one would write it: routers[0].providers[1].url. No name can play with a terminal."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text if text.isprintable() else ascii(text)


def line_of(path: Path, lines: Lines) -> int | None:
    """The line of the place, or of the nearest one around it that is known."""
    for end in range(len(path), -1, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def located(file: str, fault: Fault, lines: Lines) -> str:
    line = line_of(fault.path, lines)
    where = file if line is None else f"{file}, line {line}"
    return ": ".join(part for part in (where, shown(fault.path), fault.message) if part)
