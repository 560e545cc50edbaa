"""The update rules of the optimizers other than Adam: from a gradient to a direction.

Each is a plain optax transformation. Learning rate, sign, clipping, weight decay and the skipping of non-finite steps
are added by `optimizer.make_optimizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

Number = float | int

# Leaves below a key of this name are stacked over layers: their first axis is the layer.
STACKED = "layers"

# Of Adafactor: matrices with a smaller side keep their whole second moment; see the paper's sections 3 to 7.
_MIN_SIDE = 128
_DECAY_EXPONENT = 0.8
_SQUARE_EPS = 1e-30
_MAX_RMS = 1.0


def rmsprop(*, b1: Number, b2: Number, eps: Number) -> optax.GradientTransformation:
    """g / (sqrt(v) + eps) as in PyTorch: v starts at 0 and is not corrected for it. b1: momentum (0: none).

    DPO's and dpo-rlaif's optimizer is this with b1 = 0, b2 = 0.99, eps = 1e-8.
    """
    # optax puts eps under the root by default, where 1e-8 is as much as 1e-4 beside it.
    scaled = optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=False)
    return optax.chain(scaled, optax.trace(b1)) if b1 else scaled


def sgd(*, b1: Number, b2: Number, eps: Number) -> optax.GradientTransformation:
    """The gradient, or with b1 > 0 the heavy-ball sum m = b1 m + g, as in PyTorch. b2 and eps play no part."""
    del b2, eps
    return optax.trace(b1) if b1 else optax.identity()


def lion(*, b1: Number, b2: Number, eps: Number) -> optax.GradientTransformation:
    """sign(b1 m + (1 - b1) g), m = b2 m + (1 - b2) g (Chen et al. 2023, algorithm 2). eps plays no part.

    Every entry moves by the whole learning rate: take a third to a tenth of Adam's, and so much more decay.
    """
    del eps
    return optax.scale_by_lion(b1, b2)


class AdafactorState(NamedTuple):
    """Trees like the parameters. A factored matrix has row and column means; another leaf has `full`.

    What a leaf does not have is an array of one zero: checkpoints cannot hold empty ones. `momentum` is () without.
    """

    count: Int[Array, ""]
    rows: PyTree
    columns: PyTree
    full: PyTree
    momentum: PyTree


def adafactor(*, b1: Number, b2: Number, eps: Number) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) with an outside learning rate, which is then of the size of Adam's.

    The second moment of a matrix is kept as the means of its rows and columns, so it costs next to nothing.
    Its decay at step t is min(b2, 1 - t^-0.8); b2 caps it as in Zhai et al. 2022 ("Scaling Vision
    Transformers"). Directions are scaled down to a root mean square of 1, matrix by matrix. b1: momentum, an
    average of directions (0: none, and no memory for it). Parameters' scale plays no part, nor does eps: 1e-30
    beside the squared gradient is the paper's.
    """
    del eps

    def init(params: PyTree) -> AdafactorState:
        def zeros(kind: str) -> PyTree:
            def leaf(path: tuple, x: Array) -> Array:
                return jnp.zeros(_shapes(path, x)[kind], jnp.float32)

            return jax.tree_util.tree_map_with_path(leaf, params)

        momentum = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params) if b1 else ()
        return AdafactorState(
            jnp.zeros([], jnp.int32), zeros("rows"), zeros("columns"), zeros("full"), momentum
        )

    def update(
        grads: PyTree, state: AdafactorState, params: PyTree | None = None
    ) -> tuple[PyTree, AdafactorState]:
        del params
        count = state.count + 1
        # 0 at the first step, so the zeros that the moments start from leave no trace and need no correction.
        decay = jnp.minimum(b2, 1 - count.astype(jnp.float32) ** -_DECAY_EXPONENT)

        def move(path: tuple, g: Array, row: Array, column: Array, full: Array) -> _Moved:
            return _adafactor_leaf(g, row, column, full, decay, axes=_factored_axes(path, g), path=path)

        moved = jax.tree_util.tree_map_with_path(move, grads, state.rows, state.columns, state.full)
        direction, rows, columns, full = (_pick(moved, i) for i in range(4))
        momentum: Any = ()
        if b1:
            momentum = jax.tree.map(lambda m, d: b1 * m + (1 - b1) * d, state.momentum, direction)
            direction = momentum
        return direction, AdafactorState(count, rows, columns, full, momentum)

    return optax.GradientTransformation(init, update)


def is_stacked(path: tuple) -> bool:
    """Whether the leaf at this path of a params tree has the layer as its first axis."""
    return any(getattr(key, "key", None) == STACKED for key in path)


class _Moved:
    """The new values of one leaf. Not a pytree, so that a tree of these has the structure of the params."""

    def __init__(self, *parts: Array) -> None:
        self.parts = parts


def _pick(moved: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x.parts[i], moved)


def _adafactor_leaf(
    g: Array, row: Array, column: Array, full: Array, decay: Float[Array, ""], *, axes: Any, path: tuple
) -> _Moved:
    def mixed(old: Array, new: Array) -> Array:
        return decay * old + (1 - decay) * new

    # Before the means and not under the root, as in the paper: the mean of a row of zeros is a divisor, too.
    square = jnp.square(g) + _SQUARE_EPS
    if axes is None:
        full = mixed(full, square)
        direction = g * jax.lax.rsqrt(full)
    else:
        small, large = axes
        row, column = mixed(row, square.mean(large)), mixed(column, square.mean(small))
        # Over the whole of a matrix the mean of the row means is that of all entries. The axis `large` is
        # gone from `row`, so a `small` behind it stands one place to the left.
        mean = row.mean(small - (small > large), keepdims=True)
        inverse_row = jnp.expand_dims(jax.lax.rsqrt(row / mean), large)
        direction = g * inverse_row * jnp.expand_dims(jax.lax.rsqrt(column), small)
    # Each layer's matrix on its own: a stacked leaf stands for as many matrices as there are layers.
    own = tuple(range(is_stacked(path), g.ndim))
    rms = jnp.sqrt(jnp.mean(jnp.square(direction), axis=own, keepdims=True))
    return _Moved(direction / jnp.maximum(1.0, rms / _MAX_RMS), row, column, full)


def _factored_axes(path: tuple, x: Array) -> tuple[int, int] | None:
    """The two largest axes of a matrix, the smaller first; None for a leaf that is not factored."""
    first = int(is_stacked(path))
    if x.ndim - first < 2:
        return None
    order = np.argsort(x.shape[first:], kind="stable") + first
    small, large = int(order[-2]), int(order[-1])
    return (small, large) if x.shape[small] >= _MIN_SIDE else None


def _shapes(path: tuple, x: Array) -> dict[str, tuple[int, ...]]:
    """The shapes of a leaf's row means, column means and whole second moment."""
    axes = _factored_axes(path, x)
    if axes is None:
        return {"rows": (1,), "columns": (1,), "full": x.shape}
    small, large = axes
    return {
        "rows": tuple(np.delete(x.shape, large).tolist()),
        "columns": tuple(np.delete(x.shape, small).tolist()),
        "full": (1,),
    }


UPDATE_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adafactor": adafactor,
    "rmsprop": rmsprop,
    "lion": lion,
    "sgd": sgd,
}
