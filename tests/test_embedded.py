import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from opengate import embedded
from opengate.embedded import EmbeddedError, Postgres, Valkey, running
from opengate.supervisor import Child, Supervisor, SupervisorError, sole_owner

pytestmark = pytest.mark.timeout(180)
CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def answer(url: str, query: str = "SELECT 1") -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row
    return int(row[0])


def test_both_servers_run_for_the_block_and_leave_nothing(home: Path) -> None:
    with running(home, database="trial", durable=False, keep=False) as services:
        with psycopg.connect(services.database_url) as connection:
            connection.execute("CREATE EXTENSION vector")
        with redis.Redis.from_url(services.redis_url) as client:
            assert client.ping()
        place = (home / "postgres").resolve()
        assert place.stat().st_mode & 0o777 == 0o700
    assert not place.exists()
    assert not (home / "valkey").exists()


def test_removing_what_was_never_prepared_touches_nothing_else(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "precious").touch()
    monkeypatch.chdir(tmp_path / "here")
    Postgres(home).remove()
    Valkey(home).remove()
    assert (tmp_path / "here" / "precious").exists()


def test_a_link_made_by_another_is_not_followed_to_delete(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (home / "postgres").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedError, match="OpenGate did not make"):
        Postgres(home).remove()
    assert (tmp_path / "elsewhere").exists()


def _own_until_killed(home: Path) -> None:
    with running(home, database="trial") as services:
        with psycopg.connect(services.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        with redis.Redis.from_url(services.redis_url) as client:
            client.set("kept", "yes")
            client.execute_command("WAITAOF", 1, 0, 5000)
        (home / "is-up").touch()
        time.sleep(60)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_data_survives_and_a_killed_owner_blocks_nobody(home: Path) -> None:
    owner = multiprocessing.get_context("spawn").Process(target=_own_until_killed, args=(home,))
    owner.start()
    _wait_for(home / "is-up")
    with pytest.raises(SupervisorError, match="in use by another process"), running(home, database="trial"):
        pass
    assert owner.pid
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with running(home, database="trial", keep=False) as services:
        assert answer(services.database_url, "SELECT count(*) FROM kept") == 1
        with redis.Redis.from_url(services.redis_url) as client:
            assert client.get("kept") == b"yes"


def test_a_long_and_odd_path_gets_its_sockets_elsewhere(tmp_path: Path) -> None:
    odd = tmp_path / ("a pâth " + "x" * 110)
    with running(odd, database="trial", durable=False, keep=False) as services:
        assert answer(services.database_url) == 1
        with redis.Redis.from_url(services.redis_url) as client:
            assert client.ping()


def test_no_parent_folder_changes_its_mode(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with running(closed / "home", database="trial", durable=False, keep=False):
        assert closed.stat().st_mode & 0o777 == 0o700


def test_a_socket_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(EmbeddedError, match="is not private"):
        embedded._private(folder, None)


def test_the_command_runs_with_both_addresses_and_passes_its_exit_code_on() -> None:
    script = "import os, sys; print(os.environ['DATABASE_URL'], os.environ['REDIS_URL']); sys.exit(7)"
    with tempfile.TemporaryDirectory() as var:
        Path(var).chmod(0o711)  # as root, Postgres runs as somebody else
        done = subprocess.run(
            [sys.executable, "manage.py", "embedded", "--", sys.executable, "-c", script],
            check=False,
            cwd=CHECKOUT,
            env={**os.environ, "OPENGATE_VAR": var},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("postgresql://postgres@%2F")
    assert " unix:///" in done.stdout


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with open(os.devnull, "w") as nowhere, Supervisor(output=nowhere) as supervisor:
        yield supervisor


def test_a_child_that_dies_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    supervisor.start(
        Child("mortal", ["/bin/sh", "-c", f"echo x >> {starts}; [ $(wc -l < {starts}) -gt 1 ] && sleep 60"])
    )
    supervisor.wait_until(lambda: starts.exists() and len(starts.read_text().splitlines()) == 2, "The second start", 5)


def test_a_child_that_dies_at_each_start_ends_the_supervision(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opengate.supervisor.FIRST_DELAY_SECONDS", 0.01)
    supervisor.start(Child("hopeless", ["/bin/false"]))
    with pytest.raises(SupervisorError, match="hopeless ended 5 times in a row"):
        supervisor.wait_until(lambda: False, "Nothing", 10)


def test_a_child_that_is_not_vital_may_give_up(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opengate.supervisor.FIRST_DELAY_SECONDS", 0.01)
    supervisor.start(Child("optional", ["/bin/false"], vital=False))
    supervisor.wait_until(lambda: supervisor.gave_up("optional"), "The end", 10)


def test_a_deaf_child_and_its_children_are_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/pid; touch {tmp_path}/up; wait; wait"
    supervisor.start(Child("deaf", ["/bin/sh", "-c", script], stop_seconds=0.2))
    supervisor.wait_until((tmp_path / "up").exists, "The child", 5)
    supervisor.stop()
    status = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_dead_owner_left_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opengate.supervisor.ORPHANS_MAY_STAY_SECONDS", 0.1)
    with sole_owner(tmp_path / "test.lock", "Busy.") as inherited:
        orphan = Child("orphan", ["/bin/sleep", "60"]).spawn(subprocess.DEVNULL, [inherited])
    with sole_owner(tmp_path / "test.lock", "Busy."):
        assert orphan.wait(5) == -signal.SIGKILL
