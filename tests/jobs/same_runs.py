"""Two runs of a trainer are one: to the bit where nothing but a stop lies between them, but for rounding elsewhere."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_farm


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def checkpoint(folder: Path) -> tuple[int, Any]:
    """The step of the newest checkpoint and every array of it."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        return int(newest.name), reader.restore(newest / "state")


def bits(x: jax.Array) -> bytes:
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()


def assert_same_state(found: Path, wanted: Path) -> None:
    """Both workdirs' metrics rows, and the arrays of their last checkpoint, are the same to the bit."""
    assert tiny_farm.rows(found) == tiny_farm.rows(wanted)
    (step, a), (last, b) = checkpoint(found), checkpoint(wanted)
    assert step == last == tiny_farm.rows(wanted)[-1]["step"]
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(b), jax.tree.leaves(a), strict=True):
        assert bits(x) == bits(y), path
    assert not writing(found)


def assert_same_files(found: Path, wanted: Path, pattern: str) -> None:
    names = sorted(path.relative_to(wanted) for path in wanted.glob(pattern))
    assert names and names == sorted(path.relative_to(found) for path in found.glob(pattern))
    for name in names:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name


def assert_same_curve(found: list[dict], wanted: list[dict]) -> None:
    """Rows of metrics are the same but for rounding."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        # All of it is rounding, which has no relative error to speak of, but where rollouts lag behind.
        if max(row.get("sampling/logp_difference", 0) for row in (a, b)) < 1e-5:
            for row in (a, b):
                row.pop("sampling/logp_difference", None)
        # Where policy and reference are still equal, rounding decides which side is ahead.
        if abs(b.get("rewards/margins", 1.0)) < 1e-5:
            for row in (a, b):
                row.pop("rewards/accuracies", None)
        assert a == pytest.approx(b, rel=1e-5, abs=5e-6)
