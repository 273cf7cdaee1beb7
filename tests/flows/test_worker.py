"""The real worker: usage comes to its table by itself."""

import time

import pytest

from accounts.models import Key
from tests.flows.worker import Worker
from usage import spool
from usage.models import UsageRecord


@pytest.fixture
def worker(redis_client, transactional_db, tmp_path):
    worker = Worker(tmp_path, OPENGATE_WORKER_HEARTBEAT=str(tmp_path / "heartbeat")).start()
    yield worker
    worker.stop()


def test_the_worker_drains_usage_by_itself(as_ada, router, chat, worker, redis_client, tmp_path):
    asked = [chat(as_ada, stream=number % 2 == 0).headers["x-request-id"] for number in range(6)]
    worker.wait_until(lambda: UsageRecord.objects.count() == len(asked))
    assert set(UsageRecord.objects.values_list("request_id", flat=True)) == set(asked)
    worker.wait_until(lambda: redis_client.xlen(spool.STREAM) == 0)
    assert time.time() - (tmp_path / "heartbeat").stat().st_mtime < 30
    assert redis_client.hexists("opengate:worked", "celery")


def test_the_worker_notes_when_a_key_was_last_used(as_ada, router, chat, worker):
    assert Key.objects.get().last_used is None
    chat(as_ada)
    worker.wait_until(lambda: Key.objects.get().last_used is not None)
    assert Key.objects.get().last_used == UsageRecord.objects.get().created


def test_a_worker_that_starts_late_finds_what_was_spooled_before(as_ada, router, chat, redis_client, tmp_path):
    asked = {chat(as_ada).headers["x-request-id"] for _ in range(3)}
    assert not UsageRecord.objects.exists()
    worker = Worker(tmp_path).start()
    try:
        worker.wait_until(lambda: UsageRecord.objects.count() == len(asked))
    finally:
        worker.stop()
    assert set(UsageRecord.objects.values_list("request_id", flat=True)) == asked
