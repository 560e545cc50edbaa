"""What calls cost: prices per token, the table of listed prices, and the budget that stops a run.

A price nobody knows is no price: the cost is then unknown (None), never zero.
"""

import asyncio
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rlhf_jax.annotation.answers import Answer, Usage
from rlhf_jax.annotation.fields import Fields
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlhf_jax.annotation.judges import Job, Judge

PRICES = Path(__file__).parent / "prices.yaml"
# A token stands for one byte at least; what providers add around the messages is a few tokens more.
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
        """The price of a call in dollars, None when the provider did not say how many tokens it used."""
        if self.free:
            return 0.0
        if tokens_in is None or tokens_out is None:
            return None
        # Some count what they read from their cache beside the input, not in it.
        written = min(written or 0, tokens_in)
        cached = min(cached or 0, tokens_in - written)
        dollars = (tokens_in - cached - written) * self.input + tokens_out * self.output
        dollars += cached * (self.input if self.cached_input is None else self.cached_input)
        dollars += written * (self.input if self.cache_write is None else self.cache_write)
        return dollars * (self.batch if in_batch else 1.0) / 1e6

    def of(self, used: Answer | Usage) -> float | None:
        """The price of an answer, or of a failed attempt whose usage was reported."""
        return self.usd(
            used.tokens_in,
            used.tokens_out,
            cached=used.tokens_cached,
            written=used.tokens_cache_write,
            in_batch=getattr(used, "transport", "") == "batch",
        )


def read_price(where: str, given: dict | None) -> Price | None:
    """A `price:` mapping of a YAML; null is unknown. Errors: UserError beginning with `where`."""
    if given is None:
        return None
    fields = Fields(f"{where}: price", given)
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


@functools.cache
def price_table() -> tuple[str, dict[tuple[str, str], Price]]:
    """The date of the listed prices, and a Price by (provider, model)."""
    loaded = yaml.safe_load(PRICES.read_text(encoding="utf-8"))
    listed = {
        (provider, model): read_price(f"{PRICES.name}: {provider}: {model}", given)
        for provider in ("openai", "anthropic")
        for model, given in loaded[provider].items()
    }
    return str(loaded["as_of"]), listed


def price_of(judge: "Judge") -> Price | None:
    """The judge's own price, else the listed one of its model at the provider's own address, else None."""
    spec = judge.spec
    if spec.price is not None or spec.base_url:
        return spec.price
    return price_table()[1].get((spec.provider, spec.model))


def most_usd(judge: "Judge", n_bytes: int, *, in_batch: bool = False) -> float:
    """The most one request with a body of so many bytes can cost: a token for each, and all of max_tokens.

    0 where the price is unknown; `Budget` has refused such judges when there is a limit.
    """
    price = price_of(judge)
    if price is None:
        return 0.0
    return price.usd(n_bytes + _TOKENS_AROUND, judge.spec.max_tokens or 0, in_batch=in_batch)


class Budget:
    """A hard limit in dollars. What is in flight is held at the most it can cost until its bill is known.

    max_usd: 0 is no limit. `hold` waits while the held sums leave no room, and fails when nothing is held.
    """

    def __init__(self, max_usd: float, judges: "Iterable[Judge]", spent: float = 0.0) -> None:
        self.max_usd, self.spent, self.held = max_usd, spent, 0.0
        self._changed = asyncio.Event()
        if max_usd:
            for judge in judges:
                _check_bounded(judge)

    def has_room(self, usd: float) -> bool:
        """Whether `usd` may be held now."""
        return not self.max_usd or self.spent + self.held + usd <= self.max_usd

    async def hold(self, usd: float) -> None:
        """Set `usd` aside for a request. Errors: UserError when the budget does not allow it."""
        while not self.has_room(usd):
            if not self.held:
                raise self.used_up()
            self._changed.clear()
            await self._changed.wait()
        self.held += usd

    def hold_sent(self, usd: float) -> None:
        """Set `usd` aside for what an earlier run has sent: it will be billed, room or not."""
        self.held += usd

    def release(self, usd: float) -> None:
        """The request that `usd` was held for is over; what it cost was given to `pay`."""
        self.held = self.held - usd if self.held - usd > 1e-12 else 0.0
        self._changed.set()

    def pay(self, usd: float | None) -> None:
        """Count what an attempt cost; None, where no limit needs it known, counts nothing."""
        self.spent += usd or 0.0

    @property
    def overdrawn(self) -> bool:
        """Whether what is in flight could not be held any more, after what was paid."""
        return bool(self.max_usd) and self.spent + self.held > self.max_usd + 1e-12

    def used_up(self, last_fault: str = "") -> UserError:
        """The error that ends the run; `last_fault`: why the last request was paid for without an answer."""
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
    if judge.spec.max_tokens is None and not price_of(judge).free:
        raise UserError(
            f"max_usd: judge {judge.spec.name} has no max_tokens, so nothing bounds what an answer costs; "
            "give it one, or leave max_usd at 0"
        )


def price_usd(job: "Job", answer: Answer) -> float | None:
    """What the answer cost in dollars, None when the price or the token counts are unknown."""
    price = price_of(job.judge)
    return price.of(answer) if price else None
