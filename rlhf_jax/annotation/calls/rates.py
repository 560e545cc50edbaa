"""Rate limits of one model with one key: budgets per minute, and the number of requests in flight.

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
from email.utils import parsedate_to_datetime

# What is counted, and how the providers' headers call it: OpenAI's x-ratelimit-limit-KIND, Anthropic's
# anthropic-ratelimit-KIND-limit.
REQUESTS, INPUT, OUTPUT, TOKENS = "requests", "input-tokens", "output-tokens", "tokens"
_KINDS = {"openai": (REQUESTS, TOKENS), "anthropic": (REQUESTS, INPUT, OUTPUT, TOKENS)}
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Requests in flight at the start, and the factor after an overload: as in TCP CUBIC, milder than halving.
_FIRST, _CUT = 8, 0.7


class Bucket:
    """A token bucket: `limit` units at most, refilled with `per_s` of them a second."""

    def __init__(self, limit: float, per_s: float | None = None) -> None:
        self.limit = self.level = float(limit)
        self.per_s = limit / 60.0 if per_s is None else per_s
        self._at = time.monotonic()

    def wait_s(self, amount: float) -> float:
        """Return the seconds until `amount` can be taken; more than the bucket holds waits until it is full."""
        # Refilled when it is looked at, not by a timer: a lane that waits for nothing costs nothing.
        now = time.monotonic()
        self.level = min(self.limit, self.level + (now - self._at) * self.per_s)
        self._at = now
        return max(0.0, (min(amount, self.limit) - self.level) / self.per_s)

    def take(self, amount: float) -> None:
        """Use up `amount`; a negative one gives back."""
        # Below zero where an answer was longer than estimated; later requests wait until that is made up.
        self.level = min(self.limit, self.level - amount)

    def follow(self, limit: float, remaining: float, per_s: float) -> None:
        """Follow the provider's headers: its limit and rate, and what remains if that is less than the level here."""
        # Refill at the old rate up to now, before the new one holds.
        self.wait_s(0.0)
        self.limit, self.per_s = limit, per_s
        # Never up: this response may be older than requests that were counted here since.
        self.level = min(self.level, remaining, limit)


class Concurrency:
    """An adaptive limit on the requests in flight, `most` at most; waiting tasks are let in in their order."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(_FIRST, most))
        self.busy = 0
        self._threshold = float(most)
        self._waiting: deque[asyncio.Future] = deque()
        self._cut_at = -1.0

    async def enter(self) -> None:
        """Wait until one more request may be in flight."""
        if self.busy < int(self.limit) and not self._waiting:
            self.busy += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            # Cancelled after the place was given and before this task ran: pass it on, or it is lost.
            if place.done() and not place.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """A request is no longer in flight: let in the next that waits."""
        self.busy -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.busy < int(self.limit):
            place = self._waiting.popleft()
            # Tasks that were cancelled leave their futures in the queue.
            if not place.done():
                self.busy += 1
                place.set_result(None)

    def grow(self) -> None:
        """Raise the limit after an answer: by one below the last overload, by one per round of answers above it."""
        # TCP's slow start and congestion avoidance; one more per answer doubles the limit in a round.
        step = 1.0 if self.limit < self._threshold else 1.0 / self.limit
        self.limit = min(float(self.most), self.limit + step)
        self._admit()

    def shrink(self, asked_at: float) -> None:
        """Lower the limit after an overload that a request sent at `asked_at` (monotonic) met."""
        # One overload refuses many requests that were in flight together. Only the first of them cuts, or the
        # limit would fall to 1 at once.
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
    """All that limits the requests to one model with one key: each calls `enter` before and `leave` after.

    slots: shared by all lanes of a run. spread_s: requests that waited out a pause are spread over so many seconds.
    """

    provider: str
    concurrency: Concurrency
    slots: asyncio.Semaphore
    per_minute: PerMinute = field(default_factory=PerMinute)
    spread_s: float = 0.5

    def __post_init__(self) -> None:
        given = {REQUESTS: self.per_minute.requests, TOKENS: self.per_minute.tokens}
        # A rate from the settings is kept evenly: a bucket of a whole minute would let a minute's requests
        # out at once. Five seconds' worth fit.
        self.buckets = {
            kind: Bucket(max(1.0, limit / 12), limit / 60) for kind, limit in given.items() if limit
        }
        self._fixed = frozenset(self.buckets)
        self._queue = asyncio.Lock()
        self._paused_until = 0.0
        self._in_flight: Counter = Counter()

    def pause(self, seconds: float) -> None:
        """Send no request in this lane for so many seconds."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def enter(self, tokens_in: float, tokens_out: float) -> Turn:
        """Wait until a request of about so many tokens may be sent."""
        aside = {REQUESTS: 1.0, INPUT: tokens_in, OUTPUT: tokens_out, TOKENS: tokens_in + tokens_out}
        await self.concurrency.enter()
        try:
            if self.buckets:
                await self._take(aside)
            # The pause is waited out without a shared slot, so that it does not hold up the other lanes.
            while True:
                await self._wait_out_pause()
                await self.slots.acquire()
                # A pause may have begun while this request waited for its slot.
                if time.monotonic() >= self._paused_until:
                    self._in_flight.update(aside)
                    return Turn(time.monotonic(), aside)
                self.slots.release()
        # A cancelled task must give its place back too, and CancelledError is no Exception.
        except BaseException:
            self.concurrency.leave()
            raise

    async def _take(self, aside: Mapping[str, float]) -> None:
        # Under the lock one request at a time looks and takes. Otherwise small ones, which always find room,
        # would overtake a large one for ever.
        async with self._queue:
            while (wait := max(b.wait_s(aside[kind]) for kind, b in self.buckets.items())) > 0:
                await asyncio.sleep(wait)
            for kind, bucket in self.buckets.items():
                bucket.take(aside[kind])

    async def _wait_out_pause(self) -> None:
        while (left := self._paused_until - time.monotonic()) > 0:
            # Spread out, or all that waited would be sent in the same instant and refused again.
            await asyncio.sleep(left + random.uniform(0.0, self.spread_s))

    def leave(self, turn: Turn, used: tuple[int | None, int | None] | None) -> None:
        """End a request. `used`: (input, output) tokens of its answer, None when it had no answer."""
        self.slots.release()
        self.concurrency.leave()
        self._in_flight.subtract(turn.aside)
        # Without a usage the estimate stays taken: the provider may have counted the request.
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
            # What is in flight may not have been counted yet when the provider wrote this.
            self.buckets[kind].follow(limit, remaining - self._in_flight[kind], per_s)


def read_limit(headers: Mapping[str, str], provider: str, kind: str) -> tuple[float, float, float] | None:
    """Read (limit, remaining, units a second) of one kind from the headers, None when they do not say.

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
    # A limit below one a minute (headers have said 0 and 1e-9) would be waited for without end.
    if not 1 <= limit < math.inf:
        return None
    per_s, full_in = limit / 60.0, span_s(reset)
    if full_in and full_in > 60.0 and remaining < limit:
        per_s = min(per_s, (limit - remaining) / full_in)
    return limit, max(0.0, min(remaining, limit)), per_s


def span_s(reset: str | None) -> float | None:
    """Parse the seconds of "6m0s", "20ms", "1.5s" (OpenAI), or until an RFC 3339 time (Anthropic)."""
    if not reset:
        return None
    parts = re.findall(r"([\d.]{1,20})(ms|s|m|h|d)", reset)
    try:
        # The parts must be the whole text: a date holds digits before letters too.
        if parts and "".join(number + unit for number, unit in parts) == reset.strip():
            return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        moment = datetime.fromisoformat(reset)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


# How long a server asks to wait before the next attempt: its headers, or the words of its message.

# "Please try again in 6m0s" (OpenAI), "retry after 20 seconds" (Azure).
_IN_WORDS = re.compile(
    r"(?:try again|retry) (?:in|after) (\d[\d.]*(?:ms|s|m|h|d)[\d.msh]*|\d[\d.]*(?= ?seconds?\b))"
)


def retry_after(headers: Mapping[str, str], message: str = "") -> float | None:
    """Read the seconds a server asks to wait: retry-after-ms, Retry-After as seconds or HTTP date, or in words."""
    found = _header_wait_s(headers)
    if found is None and (match := _IN_WORDS.search(message.lower())):
        told = match[1].rstrip(".")
        found = span_s(told) if not told.replace(".", "", 1).isdigit() else float(told)
    return found if found is not None and math.isfinite(found) else None


def _header_wait_s(headers: Mapping[str, str]) -> float | None:
    # OpenAI's own header comes first: Retry-After is rounded to seconds. One that cannot be read hides no other.
    ms = _seconds(headers.get("retry-after-ms"))
    return _seconds(headers.get("retry-after")) if ms is None else ms / 1e3


def _seconds(value: str | None) -> float | None:
    """Read "3", "3s", "1m30s" or an HTTP date; None for anything else."""
    text = (value or "").strip()
    number = text.removesuffix("s").strip()
    # float() alone would also take "nan" and "inf".
    if number.replace(".", "", 1).isdecimal():
        return float(number)
    if (found := span_s(text)) is not None:
        return found
    try:
        moment = parsedate_to_datetime(text)
        # An HTTP date is in GMT, also where the server leaves the zone out.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
