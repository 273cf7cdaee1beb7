"""Files of other gateways, as ours, each with a report of what became of every key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opengate.configuration.document import Router
from opengate.configuration.errors import Path, line_of, shown
from opengate.configuration.exporting import names_of_keys
from opengate.configuration.reading import Source, escaped
from routing.models import DEFAULT_URLS, ProviderType

CARRIED, CHANGED, DROPPED = "carried over", "changed in meaning", "not carried over"


@dataclass(frozen=True)
class Remark:
    """What became of a key; the words never hold its value."""

    outcome: str
    path: Path
    message: str


@dataclass
class Conversion:
    """Our document as it is written, references and all, with lines of the file that it comes from."""

    source: Source
    routers: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[Path, int] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)  # that stood in the file, by the variables that replace them

    def carried(self, path: Path, message: str = "") -> None:
        """What was told of the key before tells more."""
        if all(remark.path != path for remark in self.remarks):
            self.remarks.append(Remark(CARRIED, path, message))

    def changed(self, path: Path, message: str) -> None:
        self.remarks.append(Remark(CHANGED, path, message))

    def dropped(self, path: Path, message: str) -> None:
        """Of what is in it there is nothing more to tell."""
        self.remarks = [remark for remark in self.remarks if remark.path[: len(path)] != path]
        self.remarks.append(Remark(DROPPED, path, message))

    def drop_rest(self, path: Path, given: Mapping[str, Any], known: Sequence[str], why: Mapping[str, str]) -> None:
        """All keys that are not known, each with its reason."""
        for key in given:
            if key not in known:
                self.dropped((*path, key), why.get(key, "OpenGate has no such setting."))

    def place(self, ours: Path, theirs: Path) -> None:
        """Faults at that place of our document are told at this one of the file."""
        line = line_of(theirs, self.source.lines)
        if line is not None:
            self.lines[ours] = line

    def document(self) -> Source:
        """What was carried over; keys that stood in the file have become references."""
        self._refer_to_keys()
        routers = [{key: router[key] for key in Router.model_fields if key in router} for router in self.routers]
        return Source(self.source.file, {"version": 1, "routers": routers}, self.lines)

    def _refer_to_keys(self) -> None:
        bare = [
            (router, provider)
            for router in self.routers
            for provider in router["providers"]
            if isinstance(provider.get("key"), Plain)
        ]
        told = [(str(router.get("name")), _address(one), str(one.get("model_name"))) for router, one in bare]
        names = names_of_keys(told)
        for identity, (_, provider) in zip(told, bare, strict=True):
            self.secrets[names[identity]] = str(provider["key"])
            provider["key"] = f"${{{names[identity]}}}"

    def lines_of_report(self) -> list[str]:
        told = []
        for outcome in (CARRIED, CHANGED, DROPPED):
            remarks = [remark for remark in self.remarks if remark.outcome == outcome]
            told.append(f"{outcome.capitalize()}: {len(remarks)}")
            for remark in remarks:
                line = line_of(remark.path, self.source.lines)
                where = shown(remark.path) + (f" (line {line})" if line else "")
                told.append(f"  {where}: {remark.message}" if remark.message else f"  {where}")
        return told


def _address(provider: Mapping[str, Any]) -> str:
    type, url = str(provider.get("type")), provider.get("url")
    return str(url or (DEFAULT_URLS[ProviderType(type)] if type in DEFAULT_URLS else ""))


class Plain(str):
    """A secret that stands in the file as it is."""


def plain(value: Any) -> Any:
    """A value of theirs that is no reference, as ours."""
    return escaped(value) if isinstance(value, str) else value


def converter(name: str) -> Callable[[Source, Mapping[str, str]], Conversion]:
    from opengate.configuration.foreign import litellm, opengatellm  # they look at this module

    return {"opengatellm": opengatellm.convert, "litellm": litellm.convert}[name]


NAMES = ("opengatellm", "litellm")
