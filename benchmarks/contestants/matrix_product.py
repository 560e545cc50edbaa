"""Not a contestant: the rate of plain matrix products and of plain reads, the yardsticks of the table."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from session import Job, Session

PRODUCTS = 8


def run(job: Job, session: Session) -> None:
    """Notes GFLOP/s of [rows * T, D] x [D, F] in float32, and GB/s of summing an array larger than any cache."""
    size = job.size
    M = size.rows * (size.prompt + size.response)
    x_MD, w_DF = jnp.ones((M, size.width)), jnp.ones((size.width, size.ff))
    product = jax.jit(jnp.matmul)
    big, total = jnp.ones((64, 1024, 1024)), jax.jit(jnp.sum)
    while True:
        session.turn()
        flops = 2.0 * M * size.width * size.ff
        session.note(
            gflops=flops / _best(lambda: product(x_MD, w_DF)) / 1e9,
            gbytes=big.nbytes / _best(lambda: total(big)) / 1e9,
        )


def _best(f: callable) -> float:
    seconds = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        jax.block_until_ready(f())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
