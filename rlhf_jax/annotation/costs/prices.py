"""What requests cost: prices per token, the table of listed prices, and the budget that stops a run.

Where no price is known the cost is unknown (None), never zero.
"""

import asyncio
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rlhf_jax.annotation.answers.answers import Answer, Usage
from rlhf_jax.annotation.judges.fields import YamlFields
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlhf_jax.annotation.judges.requests import Job, Judge

PRICES = Path(__file__).parent / "prices.yaml"
# The bound on a request's input is one token per byte of its body; chat templates add a few more around it.
_TOKENS_AROUND = 100


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens. Free is 0; an unknown price is no Price at all.

    cached_input, cache_write: of input tokens read from and written to the provider's prompt cache; None bills
        them as `input`. batch: what a provider batch costs as a share of the online price. Reasoning tokens
        are output tokens.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    # Both providers sell batches at half the price.
    batch: float = 0.5

    @property
    def free(self) -> bool:
        """Whether no token costs anything, so that nobody has to count them."""
        return not any((self.input, self.output, self.cached_input, self.cache_write))

    def usd(
        self,
        tokens_in: int | None,
        tokens_out: int | None,
        *,
        cached: int | None = None,
        written: int | None = None,
        in_batch: bool = False,
    ) -> float | None:
        """Price a call in dollars, None when the provider did not report its tokens."""
        if self.free:
            return 0.0
        if tokens_in is None or tokens_out is None:
            return None
        # Some servers count cached tokens beside the input: without the bounds the rest would be negative.
        written = min(written or 0, tokens_in)
        cached = min(cached or 0, tokens_in - written)
        dollars = (tokens_in - cached - written) * self.input + tokens_out * self.output
        dollars += cached * (self.input if self.cached_input is None else self.cached_input)
        dollars += written * (self.input if self.cache_write is None else self.cache_write)
        return dollars * (self.batch if in_batch else 1.0) / 1e6

    def of(self, used: Answer | Usage, *, in_batch: bool = False) -> float | None:
        """Price an answer, or a failed attempt whose usage was reported; in_batch: an attempt that was in one."""
        return self.usd(
            used.tokens_in,
            used.tokens_out,
            cached=used.tokens_cached,
            written=used.tokens_cache_write,
            in_batch=in_batch or getattr(used, "transport", "") == "batch",
        )


def read_price(where: str, given: dict | None) -> Price | None:
    """Read the `price:` mapping of a YAML; null is unknown. Errors: UserError beginning with `where`."""
    if given is None:
        return None
    fields = YamlFields(f"{where}: price", given)
    cached, written = (
        fields.number(name, low=0.0) if given.get(name) is not None else fields.take(name, type(None), None)
        for name in ("cached_input", "cache_write")
    )
    price = Price(
        fields.number("input", low=0.0),
        fields.number("output", low=0.0),
        cached,
        written,
        fields.number("batch", low=0.0, default=0.5),
    )
    fields.done()
    return price


# Read once per process: prices are looked up for every answer.
@functools.cache
def price_table() -> tuple[str, dict[tuple[str, str], Price]]:
    """Load the listed prices: their date, and a Price by (provider, model)."""
    loaded = yaml.safe_load(PRICES.read_text(encoding="utf-8"))
    listed = {
        (provider, model): read_price(f"{PRICES.name}: {provider}: {model}", given)
        for provider in ("openai", "anthropic")
        for model, given in loaded[provider].items()
    }
    return str(loaded["as_of"]), listed


def price_of(judge: "Judge") -> Price | None:
    """Return the judge's own price, else the listed one of its model at the provider's own address, else None."""
    spec = judge.spec
    # The list holds for the providers' own addresses: a gateway under the same model name sets its own price.
    if spec.price is not None or spec.base_url:
        return spec.price
    return price_table()[1].get((spec.provider, spec.model))


def most_usd(judge: "Judge", n_bytes: int, *, in_batch: bool = False) -> float:
    """Bound the cost of a request with a body of `n_bytes`: one token per byte, and the most it may be answered.

    0 where the price is unknown; `Budget` has refused such judges when there is a limit.
    """
    price = price_of(judge)
    if price is None:
        return 0.0
    return price.usd(n_bytes + _TOKENS_AROUND, most_tokens(judge) or 0, in_batch=in_batch)


# Fields of a request that bound an answer, and those that ask for several; `extra_body` may hold any of them.
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
_TIMES = ("n", "best_of")


def most_tokens(judge: "Judge") -> int | None:
    """Return the most tokens that an answer is billed for, None where nothing bounds it.

    Of several limits the largest: servers differ in which they heed. Several answers to a request are all billed.
    """
    spec = judge.spec
    limits = [spec.extra_body[name] for name in _LIMITS if name in spec.extra_body]
    limits += [] if spec.max_tokens is None else [spec.max_tokens]
    times = [spec.extra_body[name] for name in _TIMES if spec.extra_body.get(name) is not None]
    if not limits or not all(_is_count(one) for one in (*limits, *times)):
        return None
    return max(limits) * max(times, default=1)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Budget:
    """A hard limit in dollars. A request in flight reserves the most it can cost until its cost is known.

    max_usd: 0 is no limit. `hold` waits while reservations leave no room, and fails when there are none.
    """

    def __init__(self, max_usd: float, judges: "Iterable[Judge]", spent: float = 0.0) -> None:
        self.max_usd, self.spent, self.held = max_usd, spent, 0.0
        self._changed = asyncio.Event()
        if max_usd:
            for judge in judges:
                _check_bounded(judge)

    def has_room(self, usd: float) -> bool:
        """Return whether `usd` can be reserved now."""
        return not self.max_usd or self.spent + self.held + usd <= self.max_usd

    async def hold(self, usd: float) -> None:
        """Reserve `usd` for a request. Errors: UserError when the budget does not allow it."""
        while not self.has_room(usd):
            if not self.held:
                raise self.used_up()
            # Wait for `release`. If nothing is held, nothing will be released, and waiting would never end.
            self._changed.clear()
            await self._changed.wait()
        self.held += usd

    def hold_sent(self, usd: float) -> None:
        """Reserve `usd` for what an earlier run has sent: it will be billed whether there is room or not."""
        self.held += usd

    def release(self, usd: float) -> None:
        """Release a reservation; what the request cost was given to `pay`."""
        # Sums of floats do not come back to exactly 0, and `hold` fails only when nothing is held.
        self.held = self.held - usd if self.held - usd > 1e-12 else 0.0
        self._changed.set()

    def pay(self, usd: float | None) -> None:
        """Count what an attempt cost; None (unknown, allowed only without a limit) counts nothing."""
        self.spent += usd or 0.0

    @property
    def overdrawn(self) -> bool:
        """Whether costs and reservations together exceed the limit."""
        return bool(self.max_usd) and self.spent + self.held > self.max_usd + 1e-12

    def used_up(self, last_fault: str = "") -> UserError:
        """Make the error that ends the run; `last_fault`: why the last request was paid for without an answer."""
        because = f" (the last one failed: {last_fault})" if last_fault else ""
        return UserError(
            f"max_usd: ${self.spent:.4f} of ${self.max_usd:g} are spent{because} and the next request might cost "
            "more than is left; raise max_usd and run again, the answers until now are kept"
        )


def _check_bounded(judge: "Judge") -> None:
    if price_of(judge) is None:
        raise UserError(
            f"max_usd: the price of judge {judge.spec.name} (model {judge.spec.model}) is unknown; "
            "give its YAML a price, or leave max_usd at 0"
        )
    if most_tokens(judge) is None and not price_of(judge).free:
        odd = [name for name in (*_LIMITS, *_TIMES) if name in judge.spec.extra_body]
        what = f"an extra_body with {' and '.join(odd)} that is no count" if odd else "no max_tokens"
        raise UserError(
            f"max_usd: judge {judge.spec.name} has {what}, so nothing bounds what an answer costs; "
            "give it max_tokens, or leave max_usd at 0"
        )


def price_usd(job: "Job", answer: Answer) -> float | None:
    """Return what an answer cost in dollars, None when the price or the token counts are unknown."""
    price = price_of(job.judge)
    return price.of(answer) if price else None
