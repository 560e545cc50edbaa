"""Cancelling the provider batches that are noted in a cache file."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.annotation.batches.batch_calls import GONE, NO_SERVICE
from rlhf_jax.annotation.batches.batch_clients import BatchService, service
from rlhf_jax.annotation.batches.ledger import Entry, Ledger
from rlhf_jax.annotation.calls.clients import Endpoint
from rlhf_jax.annotation.calls.engine import complete
from rlhf_jax.annotation.calls.retries import EndpointError, Fault, Rejected
from rlhf_jax.annotation.judges.requests import resolve_address
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.errors import UserError

_TIMEOUT_S = 60.0


def cancel_batches(
    pool: PoolSpec, cache_path: str | Path, base_urls: Mapping[str, str] | None = None
) -> list[Entry]:
    """Cancel the unfinished batches of the pool's judges at their providers and return their entries.

    What a batch has finished until then is billed; the next run with the transport "batch" takes it in. Errors:
    UserError when a provider refuses, or when a batch belongs to none of the pool's judges.
    """
    stopped = []
    with AnswerCache(cache_path) as cache:
        ledger = Ledger(cache)
        specs = {(s.provider, resolve_address(s, base_urls or {}).origin, s.model): s for s in pool.judges}
        for entry in ledger.unfinished():
            # The ledger holds no key. Only a judge of the pool says with which one its provider is asked.
            spec = specs.get((entry.provider, entry.origin, entry.model))
            if spec is None:
                raise UserError(
                    f"transport: batch {entry.batch_id or entry.name} is for {entry.model} at {entry.origin}, which "
                    f"none of the judges of {pool.name} asks; give the judges it was sent for"
                )
            endpoint = Endpoint(
                resolve_address(spec, base_urls or {}), max_connections=1, timeout_s=_TIMEOUT_S
            )
            found = complete(_cancel(endpoint, spec.api, entry, ledger))
            stopped += [] if found is None else [found]
    return stopped


async def _cancel(endpoint: Endpoint, api: str, entry: Entry, ledger: Ledger) -> Entry | None:
    """Stop one batch; one that was noted and never sent is forgotten."""
    batches = service(endpoint, api)
    try:
        if entry.batch_id is None:
            known = {other.batch_id for other in ledger.unfinished() if other.batch_id}
            found = await _find(endpoint, batches, entry, known)
            if found is None:
                ledger.done(entry)
                return None
            entry = ledger.sent(entry, found)
        await endpoint.call(batches.cancel(entry.batch_id))
        return entry
    except (EndpointError, Rejected) as error:
        if error.status not in GONE:
            raise UserError(f"{error}; batch {entry.batch_id or entry.name} goes on") from None
        # The provider no longer has it. Left in the ledger, it would keep its requests from other transports.
        ledger.done(entry)
        return None
    except Fault as error:
        shown = entry.batch_id or entry.name
        raise UserError(f"{endpoint.address.shown}: batch {shown}: {error}; try again") from None
    finally:
        await endpoint.close()


async def _find(endpoint: Endpoint, batches: BatchService, entry: Entry, known: set[str]) -> str | None:
    """Find a batch that was noted and perhaps sent; None where there is none, or no batch service at all."""
    try:
        return await endpoint.call(batches.find(entry, known))
    except (EndpointError, Rejected) as error:
        if error.status in NO_SERVICE:
            return None
        raise
