"""How fast one model may be asked with one key: budgets per minute, and how many requests are under way.

The budgets are token buckets that refill evenly. They start from settings or, unset, from what the provider's
response headers say, and follow those headers down when others use the same key. A request takes its estimate
and gives back what it did not use. The number of requests under way grows while answers come and is cut when
the provider says it has enough (additive increase, multiplicative decrease: Chiu and Jain, 1989).
"""

import asyncio
import math
import random
import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

# What is counted, and how the providers' headers call it: OpenAI's x-ratelimit-limit-KIND, Anthropic's
# anthropic-ratelimit-KIND-limit.
REQUESTS, INPUT, OUTPUT, TOKENS = "requests", "input-tokens", "output-tokens", "tokens"
_KINDS = {"openai": (REQUESTS, TOKENS), "anthropic": (REQUESTS, INPUT, OUTPUT, TOKENS)}
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FIRST, _CUT = 8, 0.7


class Bucket:
    """`limit` units at most, refilled with `per_s` of them a second."""

    def __init__(self, limit: float, per_s: float | None = None) -> None:
        self.limit = self.level = float(limit)
        self.per_s = limit / 60.0 if per_s is None else per_s
        self._at = time.monotonic()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken, 0 when it can be now; what never fits waits for a full bucket."""
        now = time.monotonic()
        self.level = min(self.limit, self.level + (now - self._at) * self.per_s)
        self._at = now
        return max(0.0, (min(amount, self.limit) - self.level) / self.per_s)

    def take(self, amount: float) -> None:
        """Use up `amount`; a negative one gives back."""
        self.level = min(self.limit, self.level - amount)

    def follow(self, limit: float, remaining: float, per_s: float) -> None:
        """Take over what the provider says: its limit, and what is left when that is less than known here."""
        self.wait_s(0.0)
        self.limit, self.per_s = limit, per_s
        self.level = min(self.level, remaining, limit)


class Concurrency:
    """At most `limit` under way at a time, of `most`; who waits is let in first come, first served."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(_FIRST, most))
        self.busy = 0
        self._threshold = float(most)
        self._waiting: deque[asyncio.Future] = deque()
        self._cut_at = -1.0

    async def enter(self) -> None:
        """Wait for a place."""
        if self.busy < int(self.limit) and not self._waiting:
            self.busy += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.busy -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.busy < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.busy += 1
                place.set_result(None)

    def grow(self) -> None:
        """An answer came: fast up to where it was last too much, one more per round from there on."""
        step = 1.0 if self.limit < self._threshold else 1.0 / self.limit
        self.limit = min(float(self.most), self.limit + step)
        self._admit()

    def shrink(self, asked_at: float) -> None:
        """A request sent at `asked_at` (monotonic) was too much; those sent before the last cut do not cut again."""
        if asked_at < self._cut_at:
            return
        self.limit = self._threshold = max(1.0, self.limit * _CUT)
        self._cut_at = time.monotonic()


@dataclass(frozen=True)
class PerMinute:
    """Settings: requests and tokens a minute; 0 leaves them to the provider's headers."""

    requests: float = 0.0
    tokens: float = 0.0


@dataclass(slots=True)
class Turn:
    """One request under way: when it was sent and how many units of each kind were set aside."""

    asked_at: float
    aside: dict[str, float]


@dataclass
class Lane:
    """The way to one model with one key: whoever asks it goes through `enter`, and then `leave`.

    slots: shared by all lanes of a run. spread_s: who waited out a pause comes back within so many seconds.
    """

    provider: str
    concurrency: Concurrency
    slots: asyncio.Semaphore
    per_minute: PerMinute = field(default_factory=PerMinute)
    spread_s: float = 0.5

    def __post_init__(self) -> None:
        given = {REQUESTS: self.per_minute.requests, TOKENS: self.per_minute.tokens}
        # What is set by hand is kept evenly: no more than five seconds' worth at once.
        self.buckets = {
            kind: Bucket(max(1.0, limit / 12), limit / 60) for kind, limit in given.items() if limit
        }
        self._fixed = frozenset(self.buckets)
        self._queue = asyncio.Lock()
        self._paused_until = 0.0
        self._in_flight: Counter = Counter()

    def pause(self, seconds: float) -> None:
        """Nobody sends anything for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def enter(self, tokens_in: float, tokens_out: float) -> Turn:
        """Wait until a request of about so many tokens may be sent."""
        aside = {REQUESTS: 1.0, INPUT: tokens_in, OUTPUT: tokens_out, TOKENS: tokens_in + tokens_out}
        await self.concurrency.enter()
        try:
            if self.buckets:
                await self._take(aside)
            # Not in a shared place: a lane that was told to wait must not hold up another.
            while True:
                await self._wait_out_pause()
                await self.slots.acquire()
                if time.monotonic() >= self._paused_until:
                    self._in_flight.update(aside)
                    return Turn(time.monotonic(), aside)
                self.slots.release()
        except BaseException:
            self.concurrency.leave()
            raise

    async def _take(self, aside: Mapping[str, float]) -> None:
        async with self._queue:  # One at a time looks and takes: first come, first served.
            while (wait := max(b.wait_s(aside[kind]) for kind, b in self.buckets.items())) > 0:
                await asyncio.sleep(wait)
            for kind, bucket in self.buckets.items():
                bucket.take(aside[kind])

    async def _wait_out_pause(self) -> None:
        while (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0.0, self.spread_s))

    def leave(self, turn: Turn, used: tuple[int | None, int | None] | None) -> None:
        """The request is over. `used`: (input, output) tokens of its answer, None when it had no answer."""
        self.slots.release()
        self.concurrency.leave()
        self._in_flight.subtract(turn.aside)
        if used is not None and None not in used:
            spent = {INPUT: used[0], OUTPUT: used[1], TOKENS: sum(used)}
            for kind, amount in spent.items():
                if kind in self.buckets:
                    self.buckets[kind].take(amount - turn.aside[kind])

    def hear(self, headers: Mapping[str, str]) -> None:
        """Follow the rate limit headers of a response; those that are set by hand stay."""
        for kind in _KINDS[self.provider]:
            if kind in self._fixed:
                continue
            said = read_limit(headers, self.provider, kind)
            if said is None:
                continue
            limit, remaining, per_s = said
            if kind not in self.buckets:
                self.buckets[kind] = Bucket(limit, per_s)
            # What is under way may not have been counted when this was written.
            self.buckets[kind].follow(limit, remaining - self._in_flight[kind], per_s)


def read_limit(headers: Mapping[str, str], provider: str, kind: str) -> tuple[float, float, float] | None:
    """(limit, remaining, units a second) of one kind, None when the headers do not tell.

    The limits are per minute, but the time to a full bucket ("reset") shows when it fills more slowly, as daily
    limits do.
    """
    pattern = "x-ratelimit-{1}-{0}" if provider == "openai" else "anthropic-ratelimit-{0}-{1}"
    limit, remaining, reset = (
        headers.get(pattern.format(kind, what)) for what in ("limit", "remaining", "reset")
    )
    try:
        limit, remaining = float(limit), float(remaining)
    except (TypeError, ValueError):
        return None
    if not 1 <= limit < math.inf:  # Less would be waited for without end.
        return None
    per_s, full_in = limit / 60.0, span_s(reset)
    if full_in and full_in > 60.0 and remaining < limit:
        per_s = min(per_s, (limit - remaining) / full_in)
    return limit, max(0.0, min(remaining, limit)), per_s


def span_s(reset: str | None) -> float | None:
    """Seconds of "6m0s", "20ms", "1.5s" (OpenAI) or until an RFC 3339 time (Anthropic)."""
    if not reset:
        return None
    parts = re.findall(r"([\d.]{1,20})(ms|s|m|h|d)", reset)
    try:
        if parts and "".join(number + unit for number, unit in parts) == reset.strip():
            return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        moment = datetime.fromisoformat(reset)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
