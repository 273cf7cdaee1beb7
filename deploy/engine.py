"""A small stand-in for a container engine: builds a Dockerfile's stages and runs commands in the result.

Each stage is an overlay over a fresh minimal Debian with its own Python, which stands in for the official Python image
of the same release; every RUN is executed as it is written, inside. Root, Linux and the package clients are needed.
Call it in a mount namespace of its own (`unshare --mount`), so that no mount outlives it.
"""

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

import dockerfile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Python, and what the official image installs beside it.
BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates,netbase,tzdata"
KNOWN = {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE", "LABEL", "HEALTHCHECK", "CMD"}


class BuildFailed(Exception):
    """A step that did not work, with its line."""


@dataclass
class Image:
    """A stage while it is built, and at the end what runs."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    health: Sequence[str] = ()
    command: Sequence[str] = ()


def base(root: Path, release: str) -> None:
    """A minimal Debian with Python, from the sources of packages that this machine uses."""
    sources = [str(path) for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources"))]
    sources += ["/etc/apt/sources.list"] if Path("/etc/apt/sources.list").exists() else []
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={BASE_PACKAGES}", release, str(root), *sources]
    subprocess.run(command, check=True)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")


class Builder:
    def __init__(self, file: Path, context: Path, base: Path, work: Path) -> None:
        self.file, self.context, self.base, self.work = file, context, base, work
        self._stages: dict[str, Image] = {}
        self._arguments: dict[str, str] = {}

    def build(self) -> Image:
        """The last stage."""
        image: Image | None = None
        for step in dockerfile.parse_file(str(self.file)):
            word = step.cmd.upper()
            if word not in KNOWN:
                raise BuildFailed(f"Line {step.start_line}: {word} is not known here; teach it to deploy/engine.py.")
            if word == "FROM":
                name = step.value[2] if len(step.value) == 3 else str(len(self._stages))
                image = self._stages[name] = self._stage(name, self._with(self._arguments, step.value[0]))
            elif image is None:
                self._arguments |= _pair(step.value[0])
            else:
                print(f"   {step.original.splitlines()[0]}", flush=True)
                self._take(image, word, step)
        if image is None:
            raise BuildFailed("There is no stage.")
        return image

    def _stage(self, name: str, reference: str) -> Image:
        print(f"== {name}: {reference}, for which a minimal Debian stands in", flush=True)
        here = self.work / name
        for folder in ("upper", "scratch", "root"):
            (here / folder).mkdir(parents=True)
        root = here / "root"
        layers = f"lowerdir={self.base},upperdir={here / 'upper'},workdir={here / 'scratch'}"
        mount("-t", "overlay", "overlay", "-o", layers, str(root))
        mount("-t", "proc", "proc", str(root / "proc"))
        mount("--rbind", "/dev", str(root / "dev"))
        for file in ("/etc/resolv.conf", "/etc/hosts"):
            bind(Path(file), root)
        return Image(root)

    def _take(self, image: Image, word: str, step: dockerfile.Command) -> None:
        value = [self._with(image.arguments | image.environment, part) for part in step.value]
        match word:
            case "ARG":
                image.arguments = _pair(value[0]) | image.arguments
            case "ENV":
                image.environment |= dict(zip(value[::2], value[1::2], strict=True))
            case "LABEL":
                image.labels |= {name: text.strip('"') for name, text in zip(value[::2], value[1::2], strict=True)}
            case "WORKDIR":
                image.folder = value[0]
                (image.root / value[0].lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = value[0]
            case "VOLUME":
                image.volumes += value
            case "HEALTHCHECK":
                image.health = step.value[1:]
            case "CMD":
                image.command = step.value
            case "RUN":
                self._run(image, step.value[0], step.start_line)
            case "COPY":
                self._copy(image, step.flags, value)

    def _run(self, image: Image, script: str, line: int) -> None:
        client = _package_client(image.root) if " pip " in script else {}
        environment = {"HOME": "/root"} | client | image.arguments | image.environment
        command = ["chroot", str(image.root), "/bin/sh", "-c", f"cd {image.folder} && {{ {script}\n}}"]
        if subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL).returncode:
            raise BuildFailed(f"Line {line}: {script}")

    def _copy(self, image: Image, flags: Sequence[str], value: Sequence[str]) -> None:
        *sources, goal = value
        origin = self.context
        for flag in flags:
            name, _, stage = flag.partition("=")
            if name != "--from":
                raise BuildFailed(f"COPY {flag} is not known here.")
            origin = self._stages[stage].root
        target = image.root / os.path.normpath(os.path.join(image.folder, goal)).lstrip("/")
        into = goal.endswith("/") or len(sources) > 1
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", "--no-preserve=ownership", f"{path}/.", str(target)], check=True)
            else:
                (target if into else target.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)

    @staticmethod
    def _with(variables: Mapping[str, str], text: str) -> str:
        return Template(text).safe_substitute(variables)


@dataclass
class Container:
    """How the image is run: nothing can be written but /tmp and the volume, as its user, without any capability."""

    image: Image
    volume: Path
    environment: dict[str, str]
    binds: Mapping[str, Path] = field(default_factory=dict)

    def prepare(self) -> None:
        """The same again after `docker run --read-only --tmpfs /tmp --volume …`."""
        root = self.image.root
        for inside, outside in self.binds.items():
            (root / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mount("--bind", str(outside), str(root / inside.lstrip("/")))
        for path in self.image.volumes:
            within = root / path.lstrip("/")
            self.volume.mkdir()
            found = within.stat()
            os.chown(self.volume, found.st_uid, found.st_gid)
            self.volume.chmod(found.st_mode)
            mount("--bind", str(self.volume), str(within))
        mount("-t", "tmpfs", "-o", "size=512m,mode=1777,nosuid,nodev", "tmpfs", str(root / "tmp"))
        mount("-o", "remount,ro", str(root))

    def start(self, command: Sequence[str] = (), **how: object) -> subprocess.Popen[str]:
        """A process that is the first of its own namespace of processes."""
        user, _, group = self.image.user.partition(":")
        root = str(self.image.root)
        line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc", "chroot", root]
        line += ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        line += ["--bounding-set=-all", "--inh-caps=-all", "sh", "-c", f'cd {self.image.folder} && exec "$@"', "sh"]
        environment = {"HOME": "/tmp"} | self.image.environment | self.environment  # noqa: S108
        options = {"env": environment, "stdin": subprocess.DEVNULL, "text": True} | how
        return subprocess.Popen([*line, *(command or self.image.command)], **options)  # type: ignore[call-overload]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """To its end; both of its outputs are in `stdout`."""
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = process.communicate(timeout=180)
        return subprocess.CompletedProcess(command, process.returncode, said)

    def with_environment(self, **extra: str) -> "Container":
        return replace(self, environment=self.environment | extra)


def first_process(container: subprocess.Popen[str]) -> int:
    """Its number outside: what an engine sends SIGTERM to."""
    return int(Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()[0])


def copy_context(source: Path, target: Path) -> None:
    """What a builder is sent: the files of the checkout that `.dockerignore` leaves."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=source, check=True, capture_output=True, text=True).stdout.split("\0")
    rules = [line for line in (source / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in names:
        if name and (source / name).is_file() and not _is_ignored(name, rules):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def _is_ignored(name: str, rules: Sequence[str]) -> bool:
    """The last rule that matches the path, or a folder above it, decides."""
    above = [name, *(str(parent) for parent in Path(name).parents if str(parent) != ".")]
    ignored = False
    for rule in rules:
        if any(_matches(path, rule.lstrip("!")) for path in above):
            ignored = not rule.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    anywhere = pattern.startswith("**/") and fnmatch.fnmatchcase(Path(path).name, pattern[3:])
    return anywhere or fnmatch.fnmatchcase(path, pattern)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def bind(path: Path, root: Path) -> None:
    """The machine's file or folder at the same place inside, for reading."""
    inside = root / str(path).lstrip("/")
    if inside.is_symlink():
        inside.unlink()
    if path.is_dir():
        inside.mkdir(parents=True, exist_ok=True)
    else:
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
    mount("--bind", "-o", "ro", str(path.resolve()), str(inside))


def _package_client(root: Path) -> dict[str, str]:
    """This machine's configuration of pip, with the files that it names; they stay outside the image."""
    if not (marker := root / "run/.package-client").exists():
        home = Path.home()
        files = [Path(name) for name in ("/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf")]
        listed = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
        words = listed.stdout.replace("=", " ").replace("'", " ").split()
        files += [Path(word) for word in words if word.startswith("/")]
        for path in dict.fromkeys(path for path in files if path.exists()):
            bind(path, root)
        marker.touch()
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "http", "HTTP", "SSL_"))}


def _pair(text: str) -> dict[str, str]:
    name, _, value = text.partition("=")
    return {name: value.strip('"')}
