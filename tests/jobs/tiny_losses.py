"""Every trainer's loss with a batch for it, and the changes of a batch that must not matter."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import tiny_farm
from jax.sharding import Mesh
from jaxtyping import PyTree

from rlhf_jax.methods import dpo, ppo, reward_model, sft
from rlhf_jax.models.placement import place
from rlhf_jax.objectives.reduce import value
from rlhf_jax.training.loop.step import LossFn

B, P, R = 16, 10, 12  # rows; longest prompt and response
T = P + R
CONFIG = tiny_farm.model_config()


def placed(params: PyTree, mesh: Mesh) -> PyTree:
    """Parameters of a model, or of several by name, onto a mesh."""
    if "embed" in params:
        return place(CONFIG, params, mesh)
    return {name: place(CONFIG, x, mesh) for name, x in params.items()}


class Case(NamedTuple):
    """A loss and a batch for it, of B rows.

    Attributes:
      make: R -> the loss for arrays of R response positions.
      params: of one model like CONFIG, or of several by name.
      batch: a pytree of arrays with the rows first and, where they have more axes, tokens or response positions last.
      keep: the names of those entries whose last axis is something else.
      place: puts parameters onto a mesh.
    """

    make: Callable[[int], LossFn]
    params: PyTree
    batch: Any
    keep: tuple[str, ...] = ()
    place: Callable[[PyTree, Mesh], PyTree] = placed


def cases() -> dict[str, Case]:
    language, scalar = (tiny_farm.random_params(scalar=s, seed=1 + s) for s in (False, True))
    rng = np.random.default_rng(0)
    pair = {f"{side}_{name}": x for side in ("chosen", "rejected") for name, x in _sequences(rng).items()}
    # Three rows only fill up the batch.
    weight = {"weight": np.float32(np.arange(B) % 6 != 4)}
    reference = {f"ref_{side}": np.float32(rng.normal(-30, 3, B)) for side in ("chosen", "rejected")}
    chunk = 16
    return {
        "sft": Case(lambda R: sft.sft_loss_fn(CONFIG, R, chunk), language, _sequences(rng) | weight),
        "reward_model": Case(lambda R: reward_model.reward_model_loss_fn(CONFIG), scalar, pair | weight),
        "dpo": Case(
            lambda R: dpo.dpo_loss_fn(CONFIG, R, chunk, beta=0.1, label_smoothing=0.1),
            language,
            pair | reference | weight,
        ),
        "ppo": Case(
            lambda R: ppo.ppo_loss_fn(
                CONFIG, CONFIG, clip=0.2, value_clip=0.2, value_coef=0.1, temperature=0.7, chunk=chunk
            ),
            {"policy": language, "value": scalar},
            _experience(rng),
        ),
    }


def widened(batch: Any, extra: int, keep: tuple[str, ...] = ()) -> Any:
    """The batch with `extra` more columns: tokens get any ids there, what belongs to tokens gets NaN."""
    rng = np.random.default_rng(1)

    def widen(path: tuple, x: np.ndarray) -> np.ndarray:
        if x.ndim == 1 or getattr(path[-1], "key", getattr(path[-1], "name", "")) in keep:
            return x
        shape = (*x.shape[:-1], extra)
        fill = {
            "i": rng.integers(0, CONFIG.vocab_size, shape),
            "b": np.zeros(shape),
            "f": np.full(shape, np.nan),
        }
        return np.concatenate([x, fill[x.dtype.kind].astype(x.dtype)], axis=-1)

    return jax.tree_util.tree_map_with_path(widen, batch)


def reordered(batch: Any) -> Any:
    order = np.random.default_rng(2).permutation(B)
    return jax.tree.map(lambda x: x[order], batch)


def loss_and_gradient(loss_fn: LossFn, params: PyTree, batch: Any) -> tuple[dict, PyTree]:
    """(every mean of the loss as one number, gradient of the loss)."""

    def mean_loss(params: PyTree) -> tuple[Any, dict]:
        means = loss_fn(params, batch)
        return means["loss"].sum / means["loss"].weight, {name: value(mean) for name, mean in means.items()}

    gradient, metrics = jax.grad(mean_loss, has_aux=True)(params)
    return metrics, gradient


def compiled(case: Case, R: int = R) -> Callable[[PyTree, Any], tuple[dict, PyTree]]:
    return jax.jit(partial(loss_and_gradient, case.make(R)))


def assert_same(found: PyTree, wanted: PyTree, *, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """Equal but for rounding: entries may differ by rtol of themselves, or of the largest entry near it.

    A gradient entry is a sum of terms that cancel; its rounding error is that of the terms, not of the sum. Where
    all entries near it cancel to 0, atol is what rounding may leave.
    """
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(a).all(), path
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * np.abs(a).max() + atol, err_msg=str(path))


def _sequences(rng: np.random.Generator) -> dict[str, np.ndarray]:
    prompts = rng.integers(1, P + 1, B).astype(np.int32)
    responses = rng.integers(1, R + 1, B).astype(np.int32)
    responses[:2] = 1, R  # the shortest and the longest there can be
    tokens = rng.integers(0, CONFIG.vocab_size, (B, T)).astype(np.int32)
    return {"tokens": tokens, "lengths": prompts + responses, "prompt_lengths": prompts}


def _experience(rng: np.random.Generator) -> ppo.Experience:
    rows = _sequences(rng)
    mask_BR = np.arange(R) < (rows["lengths"] - rows["prompt_lengths"])[:, None]

    def draw(mean: float, spread: float) -> np.ndarray:
        return np.where(mask_BR, rng.normal(mean, spread, (B, R)), np.nan).astype(np.float32)

    return ppo.Experience(
        tokens_BT=rows["tokens"],
        prompt_lengths_B=rows["prompt_lengths"],
        mask_BR=mask_BR,
        old_logprobs_BR=draw(-6, 2),
        old_values_BR=draw(0, 0.5),
        advantages_BR=draw(0, 1),
        returns_BR=draw(0, 1),
    )
