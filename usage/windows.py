"""How a limit's counter forgets, as Lua: three strategies with one form, and the scripts made of them.

| strategy | what counts | what it keeps |
|---|---|---|
| `fixed_window` | what was taken since the window opened, with its first call | a number |
| `moving_window` | what was taken in the last minute or day, exactly | an entry a call, and their sum |
| `sliding_window` | this window's count, and of the last one's the part still in sight | three numbers |

They have the names that the reference and the Python library `limits` give them. A strategy is three functions:
`look(key, limit, cost, window, now)` answers count, milliseconds until it is empty, and milliseconds until this cost
would fit; `take(key, cost, window, now, id)` takes it; `add(key, delta, cost, window, ends, id)` adds to what the call
`id` took, if that is still in sight. Times are Redis' own, in milliseconds. Every key carries an expiry.
"""

from collections.abc import Mapping

from opengate import epoch
from opengate.redis import Script
from routing.places import PLACES_LUA

_CLOCK = """
local function clock()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end
"""

_FIXED = """
local function look(key, limit, cost, window, now)
  local left = redis.call('PTTL', key)
  if left <= 0 then
    redis.call('DEL', key)
    return 0, window, window
  end
  return tonumber(redis.call('GET', key)) or 0, left, left
end
local function take(key, cost, window, now, id)
  local left = redis.call('PTTL', key)
  redis.call('INCRBY', key, cost)
  redis.call('PEXPIRE', key, left > 0 and left or window)
end
local function add(key, delta, cost, window, ends, id)
  local left = redis.call('PTTL', key)
  if left <= 0 or math.abs(clock() + left - ends) > 2000 then return end
  if redis.call('INCRBY', key, delta) < 0 then redis.call('SET', key, 0, 'KEEPTTL') end
end
"""

# A sorted set of "cost:id" by the time each leaves, and beside it their sum. Looking for what makes room is bounded.
_MOVING = """
local function cost_of(member) return tonumber(string.match(member, '^%d+')) end
local function forget(key, now)
  local gone = redis.call('ZRANGE', key, '-inf', now, 'BYSCORE')
  if #gone == 0 then return end
  local sum = 0
  for _, member in ipairs(gone) do sum = sum + cost_of(member) end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('DECRBY', key .. ':sum', sum)
end
local function look(key, limit, cost, window, now)
  if redis.call('PTTL', key) <= 0 or redis.call('PTTL', key .. ':sum') <= 0 then
    redis.call('DEL', key, key .. ':sum')
  end
  forget(key, now)
  local count = tonumber(redis.call('GET', key .. ':sum')) or 0
  local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  local reset = newest[2] and newest[2] - now or window
  if count + cost <= limit or cost > limit then return count, reset, window end
  local excess, wait = count + cost - limit, window
  local oldest = redis.call('ZRANGE', key, 0, 999, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    excess, wait = excess - cost_of(oldest[i]), oldest[i + 1] - now
    if excess <= 0 then break end
  end
  return count, reset, wait
end
local function take(key, cost, window, now, id)
  redis.call('ZADD', key, now + window, string.format('%.0f:%s', cost, id))
  redis.call('INCRBY', key .. ':sum', cost)
  redis.call('PEXPIRE', key, window)
  redis.call('PEXPIRE', key .. ':sum', window)
end
local function add(key, delta, cost, window, ends, id)
  local before = string.format('%.0f:%s', cost, id)
  local score = redis.call('ZSCORE', key, before)
  if not score or delta == 0 then return end
  redis.call('ZADD', key, score, string.format('%.0f:%s', cost + delta, id))
  redis.call('ZREM', key, before) -- second: a set that is emptied loses its expiry
  redis.call('INCRBY', key .. ':sum', delta)
end
"""

# A hash of the current window's start and count, and the count of the one before it.
_SLIDING = """
local function turned(key, window, now)
  local held = redis.call('HMGET', key, 'start', 'count', 'before')
  local start, count, before = tonumber(held[1]), tonumber(held[2]) or 0, tonumber(held[3]) or 0
  local current = now - now % window
  if not start or start > current or start < current - window or redis.call('PTTL', key) <= 0 then
    return current, 0, 0
  end
  if start < current then return current, 0, count end
  return start, count, before
end
local function look(key, limit, cost, window, now)
  local start, count, before = turned(key, window, now)
  local left = start + window - now
  local seen = math.ceil(count + before * left / window)
  local reset = count > 0 and left + window or before > 0 and left or window
  if seen + cost <= limit or cost > limit then return seen, reset, window end
  local wait
  if count + cost <= limit then
    wait = left - (limit - count - cost) * window / before
  else
    wait = left + window - (limit - cost) * window / count
  end
  return seen, reset, math.ceil(wait)
end
local function take(key, cost, window, now, id)
  local start, count, before = turned(key, window, now)
  redis.call('HSET', key, 'start', string.format('%.0f', start), 'count', string.format('%.0f', count + cost),
    'before', string.format('%.0f', before))
  redis.call('PEXPIRE', key, start + 2 * window - now)
end
local function add(key, delta, cost, window, ends, id)
  local left = redis.call('PTTL', key)
  if left <= 0 then return end
  -- The hash lives until the window after its own ends, and `ends` is when that is for the call's window.
  local windows_later = math.floor((clock() + left - ends) / window + 0.5)
  local name = windows_later == 0 and 'count' or windows_later == 1 and 'before'
  if not name then return end
  if redis.call('HINCRBY', key, name, delta) < 0 then redis.call('HSET', key, name, 0) end
end
"""

# KEYS: the epoch, then the counters. ARGV: the epoch the caller knows, the call's id, then limit, cost and window (ms)
# a counter. Answers {0 | -1 stale | n: the nth counter refuses, epoch, Redis' clock, then of each counter its count,
# the ms until it is empty, and the ms until this cost would fit}. A cost of 0 is never refused.
_ADMIT = """
local function admit(KEYS, ARGV)
local epoch = current_epoch(KEYS[1])
if epoch ~= ARGV[1] then return {-1, epoch} end
local now = clock()
local verdict, answer = 0, {0, epoch, now}
for i = 2, #KEYS do
  local at = 3 * i - 3
  local limit, cost, window = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local count, reset, wait = look(KEYS[i], limit, cost, window, now)
  if verdict == 0 and cost > 0 and count + cost > limit then verdict = i - 1 end
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = count, reset, wait
end
answer[1] = verdict
if verdict == 0 then
  for i = 2, #KEYS do
    local at = 3 * i - 3
    local limit, cost, window = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    take(KEYS[i], cost, window, now, ARGV[2])
    local count, reset, wait = look(KEYS[i], limit, cost, window, now)
    answer[3 * i - 2], answer[3 * i - 1], answer[3 * i] = count, reset, wait
  end
end
return answer
end
"""

# KEYS: the admission's, then those of `routing.places`. ARGV: how many keys and arguments are the admission's, its
# arguments, then the others. Answers what the admission does and, for whoever is admitted, what the others do.
_ADMIT_AND_PLACE = """
local keys, arguments = tonumber(ARGV[1]), tonumber(ARGV[2])
local answer = admit({unpack(KEYS, 1, keys)}, {unpack(ARGV, 3, 2 + arguments)})
if answer[1] ~= 0 then return {answer} end
return {answer, places_for({unpack(KEYS, keys + 1)}, {unpack(ARGV, 3 + arguments)})}
"""

# KEYS: counters. ARGV: limit and window (ms) of each. Answers what each has counted, and takes nothing.
_COUNT = """
local now, answer = clock(), {}
for i = 1, #KEYS do
  answer[i] = look(KEYS[i], tonumber(ARGV[2 * i - 1]), 0, tonumber(ARGV[2 * i]), now)
end
return answer
"""

# KEYS: counters. ARGV: the call's id, then of each counter what to add, what the call took, the window (ms), and the ms
# at which it was to be empty.
_CORRECT = """
for i = 1, #KEYS do
  local at = 4 * i - 2
  local delta, cost, window, ends = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
  add(KEYS[i], delta, cost, window, tonumber(ends), ARGV[1])
end
"""


FUNCTIONS: Mapping[str, str] = {"fixed_window": _FIXED, "moving_window": _MOVING, "sliding_window": _SLIDING}


class Strategy:
    """The scripts of a strategy: `admit` takes from all counters or from none, `correct` changes them, `count` looks.

    `admit_and_place` also gives a call that is admitted its place at a provider.
    """

    def __init__(self, name: str, clock: str = _CLOCK) -> None:
        admission = clock + FUNCTIONS[name] + epoch.CURRENT_LUA + _ADMIT
        self.admit = Script(admission + "return admit(KEYS, ARGV)")
        self.admit_and_place = Script(admission + PLACES_LUA + _ADMIT_AND_PLACE)
        self.correct = Script(clock + FUNCTIONS[name] + _CORRECT)
        self.count = Script(clock + FUNCTIONS[name] + _COUNT)


STRATEGIES: Mapping[str, Strategy] = {name: Strategy(name) for name in FUNCTIONS}
