"""A circuit breaker for each provider, in Redis, so that every process and the console see the same.

Closed, calls pass. After `FAILURES_TO_OPEN` outages in a row, with no answer between them, the circuit opens: calls
go elsewhere for `FIRST_PAUSE_SECONDS`, twice as long after each failed trial. Then it is half open: one call tries, and
its answer closes the circuit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from redis.exceptions import RedisError

from opengate import redis as opengate_redis
from opengate.redis import Command

FAILURES_TO_OPEN: Final = 5
FIRST_PAUSE_SECONDS: Final = 5
LONGEST_PAUSE_SECONDS: Final = 60
TRIAL_SECONDS: Final = 10  # after which another call may try, when nothing is heard of the first
_FORGET_SECONDS: Final = 600

# KEYS: the circuit. ARGV: failures to open, first and longest pause, seconds until it is forgotten. A trial that fails
# opens it again for twice as long; calls that were under way when it opened change nothing.
_FAILED = opengate_redis.Script("""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
local state = redis.call('HMGET', KEYS[1], 'until', 'pause', 'trial')
local reopens = state[1] and (state[3] or tonumber(state[1]) <= now)
if reopens or (not state[1] and failures >= tonumber(ARGV[1])) then
  local pause = reopens and math.min(2 * tonumber(state[2]), tonumber(ARGV[3])) or tonumber(ARGV[2])
  redis.call('HDEL', KEYS[1], 'trial')
  redis.call('HSET', KEYS[1], 'until', string.format('%.3f', now + pause), 'pause', pause)
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
""")


class State(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider's circuit; `failures` are outages since its last answer, `seconds` those until it may be tried."""

    state: State = State.CLOSED
    failures: int = 0
    seconds: float = 0.0


def key(provider_id: int) -> str:
    return f"opengate:circuit:{provider_id}"


def failed(provider_id: int) -> Command:
    """The command that counts an outage."""
    pauses = (FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    return _FAILED.command([key(provider_id)], [FAILURES_TO_OPEN, *pauses, _FORGET_SECONDS])


def answered(provider_id: int) -> Command:
    """The command that closes the circuit."""
    return ("DEL", key(provider_id))


def forget(provider_id: int) -> None:
    """Close it, for sync code off the hot path: the provider was changed. With Redis away there is nothing to close."""
    try:
        with opengate_redis.sync_client() as client:
            client.delete(key(provider_id))
    except RedisError:
        pass


def query(provider_id: int) -> Command:
    """The command whose answer `read` understands."""
    return ("HMGET", key(provider_id), "failures", "until")


def read(fields: Sequence[bytes | None], now: float) -> Circuit:
    """What Redis knows of a circuit, at a moment in its own Unix seconds."""
    failures = int(fields[0] or 0)
    if fields[1] is None:
        return Circuit(State.CLOSED, failures)
    seconds = float(fields[1]) - now
    return Circuit(State.OPEN, failures, seconds) if seconds > 0 else Circuit(State.HALF_OPEN, failures)
