"""Work in parts gives what the whole batch would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.microbatches import in_parts, split

BATCH = {"x": jnp.arange(12.0).reshape(6, 2), "n": jnp.arange(6), "whole": jnp.float32(10)}


def each(batch):
    """Three results of each row, next to each other, and a number of all of them."""
    rows = (
        jnp.repeat(batch["x"] + batch["whole"], 3, axis=0)
        + jnp.tile(jnp.arange(3.0), len(batch["n"]))[:, None]
    )
    return {"rows": rows, "n": batch["n"], "total": batch["x"].sum(), "none": None}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_rows_come_back_in_their_order_and_numbers_are_added(parts):
    found = jax.jit(lambda batch: in_parts(each, batch, parts))(BATCH)
    for name, wanted in {
        "rows": [[2 * b + d + 10 + i for d in (0, 1)] for b in range(6) for i in range(3)],
        "n": range(6),
        "total": 66,
    }.items():
        np.testing.assert_array_equal(found[name], np.array(wanted))
    assert found["none"] is None


def test_one_part_is_seen_at_a_time():
    seen = []

    def rows_of(batch):
        seen.append(batch["x"].shape)
        return batch["n"]

    in_parts(rows_of, BATCH, 3)
    assert set(seen) == {(2, 2)}


def test_parts_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(UserError, match="microbatches: 4 does not divide a batch of 6 rows"):
        split(BATCH, 4)
