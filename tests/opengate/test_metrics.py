"""Files that processes count in: who ends leaves what it counted, and its seat to the next."""

import subprocess
import sys
from pathlib import Path

from prometheus_client.multiprocess import MultiProcessCollector

from opengate import http_metrics, metrics
from tests.server import ROOT
from usage import measures

COUNT = """
import os, sys
from pathlib import Path
from django.conf import settings
{before}
settings.configure(METRICS=True, METRICS_FOLDER=Path(sys.argv[1]))
from opengate.metrics import registry
from prometheus_client import Counter, Histogram
found = Counter("found", "Found.", ("name",), registry=registry)
took = Histogram("took", "Took.", ("name",), registry=registry, buckets=(1, 10))
def count():
    for number in range(1000):
        found.labels(str(number)).inc(number)
    for value in (0.5, 10, 11):
        took.labels("it").observe(value)
count()
{then}
os._exit(0)
"""


def count(folder: Path, then: str = "", before: str = "") -> dict[str, float]:
    """What all of them have counted, after one more process has counted and ended without a word."""
    command = [sys.executable, "-c", COUNT.replace("{then}", then).replace("{before}", before), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    files = [str(path) for path in folder.glob("*.db")]
    samples = [sample for metric in MultiProcessCollector.merge(files) for sample in metric.samples]
    return {"".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_a_process_goes_on_where_the_last_one_in_its_seat_ended(tmp_path):
    count(tmp_path)
    found = count(tmp_path)
    assert [found[f"found_total{number}"] for number in range(1000)] == [2 * number for number in range(1000)]
    assert [found[f"took_bucketit{bound}"] for bound in ("1.0", "10.0", "+Inf")] == [2, 4, 6]
    assert (found["took_sumit"], found["took_countit"]) == (43, 6)
    assert len(list(tmp_path.glob("counter_*.db"))) == 1


def test_processes_side_by_side_and_forked_ones_have_seats_of_their_own(tmp_path):
    found = count(tmp_path, "if os.fork() == 0: count(); os._exit(0)\nos.wait()")
    assert found["found_total7"] == 14
    assert sorted(path.name for path in tmp_path.glob("counter_*.db")) == ["counter_0.db", "counter_1.db"]


def test_a_spoilt_file_is_begun_anew_and_others_are_read_without_it(tmp_path):
    (tmp_path / "counter_0.db").write_bytes(b"spoilt" * 64)
    assert count(tmp_path)["found_total9"] == 9
    (tmp_path / "counter_7.db").write_bytes(b"spoilt" * 64)
    assert {"found", "took"} <= {metric.name for metric in metrics.of(tmp_path)}


def test_what_a_full_disk_does_not_take_is_counted_in_memory(tmp_path):
    found = count(tmp_path, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))")
    assert 0 < len([name for name in found if name.startswith("found")]) < 1000
    assert found["took_countit"] == 3


def test_a_process_that_counts_nothing_takes_no_seat(tmp_path):
    only_made = COUNT.replace("\ncount()\n", "\nCounter('bare', 'Without labels.', registry=registry)\n")
    subprocess.run([sys.executable, "-c", only_made.format(before="", then=""), str(tmp_path)], cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())


def test_handlers_are_routes_as_fastapi_writes_them():
    assert http_metrics.handler_of("v1/models/<path:model>") == "/v1/models/{model}"
    assert http_metrics.handler_of("admin/^(?P<app_label>accounts|usage)/$") == "/admin/{app_label}/"
    assert http_metrics.handler_of(None) == "none"


def test_models_and_endpoints_beyond_the_bounds_are_other(monkeypatch):
    monkeypatch.setattr(measures, "_calls", {})
    monkeypatch.setattr(measures, "MAX_SERIES", 2)
    for name in ("one", "two", "three", "four"):
        measures.count("/v1/ocr", name, 200, 1, None, 1, 1)
    measures.count("/v1/unheard-of", "one", 200, 1, None, 1, 1)
    assert {endpoint for endpoint, _, _ in measures._calls} == {"/v1/ocr", "other"}
    assert {model for _, model, _ in measures._calls} == {"one", "two", "other"}
