"""Is the process alive, and can it serve."""

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from psycopg_pool import PoolTimeout

from opengate import draining
from opengate import redis as opengate_redis
from opengate.database import in_thread
from opengate.errors import DatabaseAway
from opengate.redis import RedisAway


async def live(request: HttpRequest) -> JsonResponse:
    """`/health`: the process answers."""
    return JsonResponse({"status": "ok"})


async def ready(request: HttpRequest) -> JsonResponse:
    """`/health/ready`: Postgres and Redis answer and all migrations are applied; 503 says which is not so.

    From the moment the service is told to stop it is 503 with the status `draining`.
    """
    if draining.has_begun():
        response = JsonResponse({"status": "draining", "checks": {}}, status=503)
        # No error, and Django would log each probe as one.
        response._has_been_logged = True  # type: ignore[attr-defined]
        return response
    checks = {"postgres": "ok", "redis": "ok", "migrations": "ok"}
    try:
        if await _unapplied():
            checks["migrations"] = "pending"
    except (DatabaseAway, DatabaseError, PoolTimeout):
        checks |= {"postgres": "away", "migrations": "unknown"}
    try:
        await opengate_redis.ask("PING")
    except RedisAway:
        checks["redis"] = "away"
    is_ready = set(checks.values()) == {"ok"}
    content = {"status": "ok" if is_ready else "unavailable", "checks": checks}
    return JsonResponse(content, status=200 if is_ready else 503)


@in_thread
def _unapplied() -> bool:
    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
