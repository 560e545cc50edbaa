"""Settings of a run that asks endpoints: transport, concurrency, rates, retries and the budget in dollars."""

from dataclasses import dataclass, field

from rlhf_jax.annotation.batches.shards import BatchPolicy
from rlhf_jax.annotation.calls.rates import PerMinute
from rlhf_jax.annotation.calls.retries import RetryPolicy
from rlhf_jax.annotation.judges.fields import closest_name
from rlhf_jax.errors import UserError

TRANSPORTS = ("online", "batch", "replay")


@dataclass(frozen=True)
class Limits:
    """Settings of asking: the transport, and limits on concurrency, time, rates and dollars.

    timeout_s: of one request. max_usd: the run stops before it could spend more, `spent_usd` of it are gone already;
    0 is no limit. per_minute: of each model with each key; 0 follows the provider's headers. batch: used by the
    transport "batch" only.
    """

    max_concurrency: int = 32
    timeout_s: float = 120.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    transport: str = "online"
    max_usd: float = 0.0
    spent_usd: float = 0.0
    per_minute: PerMinute = field(default_factory=PerMinute)
    batch: BatchPolicy = field(default_factory=BatchPolicy)

    def check(self) -> None:
        """Check the settings. Errors: UserError naming the one that is out of range."""
        if self.transport not in TRANSPORTS:
            raise UserError(
                f"transport: unknown {self.transport!r}; {closest_name(self.transport, list(TRANSPORTS))}"
            )
        if self.max_concurrency < 1:
            raise UserError(f"max_concurrency: found {self.max_concurrency}; give at least 1")
        positive = {"timeout_s": self.timeout_s}
        others = {
            "max_usd": self.max_usd,
            "requests_per_minute": self.per_minute.requests,
            "tokens_per_minute": self.per_minute.tokens,
        }
        for name, value in {**positive, **others}.items():
            # Written so that NaN, which fails every comparison, is refused too.
            if not 0.0 <= value < float("inf") or (name in positive and not value):
                what = "a positive number of seconds" if name in positive else "0 for no limit, or more"
                raise UserError(f"{name}: found {value}; give {what}")
