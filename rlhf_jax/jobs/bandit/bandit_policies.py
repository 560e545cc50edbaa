"""The four policies of the bandit and the reward model between them (Sharma et al. 2024, section 5 and figure 6).

There is no prompt, and a response is one of K arms; arm k is worth k. Teacher and student are bell curves over them.
RLAIF: pairs of the student's samples are labelled by what they are worth, a table of K rewards is fitted to the labels,
and the policy that is best for it at the KL penalty beta is written down in closed form. SFT: a table of K logits is
fitted to samples of the teacher. Both fits are gradient descent on the whole batch, whose loss is a mean over it. (With
a sum, a rate of 0.01 would throw the tables to and fro.)

A batch is held as counts, K x K of pairs and K of samples: the mean over counts is that over rows, and so is its
gradient. Seeds are fitted side by side in one program (vmap).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from rlhf_jax.objectives.preference import bradley_terry
from rlhf_jax.objectives.reduce import masked_mean, value

# The loss of a table on the counts of one seed.
LossOf = Callable[[Array, Array], Array]


class Samples(NamedTuple):
    """What one seed draws, as counts.

    Attributes:
      pairs_KK: how many pairs have the better arm (row) and the other (column); on the diagonal, ties.
      taught_K: how often the teacher chose each arm.
    """

    pairs_KK: np.ndarray
    taught_K: np.ndarray


class Fit(NamedTuple):
    """Tables [S, K] that were fitted, a row for each seed, and their losses.

    Attributes:
      table_SK: the rewards or logits, float32.
      losses_ST: of every step, before its update.
      after_S: after the last update.
    """

    table_SK: np.ndarray
    losses_ST: np.ndarray
    after_S: np.ndarray


def bell_curve(arms: int, peak: float, spread: float) -> np.ndarray:
    """Probabilities [K] proportional to exp(-(k - peak)^2 / spread), float64."""
    return softmax(-((np.arange(arms) - peak) ** 2) / spread)


def softmax(logits_K: np.ndarray) -> np.ndarray:
    """exp(logits) / Z over the last axis, float64."""
    logits_K = np.asarray(logits_K, np.float64)
    weights_K = np.exp(logits_K - logits_K.max(-1, keepdims=True))
    return weights_K / weights_K.sum(-1, keepdims=True)


def best_policy(policy_K: np.ndarray, reward_K: np.ndarray, beta: float) -> np.ndarray:
    """policy * exp(reward / beta) / Z: of all policies that with the highest mean reward - beta KL(. || policy).

    Any leading axes of the rewards stay. An arm of probability 0 keeps it.
    """
    with np.errstate(divide="ignore"):
        return softmax(np.log(policy_K) + np.asarray(reward_K, np.float64) / beta)


def draw_samples(
    student_K: np.ndarray, teacher_K: np.ndarray, pairs: int, samples: int, seed: int
) -> Samples:
    """Draws 2 * pairs of the student's arms, labelled by their worth two by two, and `samples` of the teacher's."""
    # Two streams, so that the teacher's samples do not depend on how many pairs there are.
    of_student, of_teacher = np.random.default_rng(seed).spawn(2)
    K = len(student_K)
    arms_N2 = of_student.choice(K, size=(pairs, 2), p=student_K)
    cells_N = arms_N2.max(1) * K + arms_N2.min(1)
    taught_N = of_teacher.choice(K, size=samples, p=teacher_K)
    return Samples(np.bincount(cells_N, minlength=K * K).reshape(K, K), np.bincount(taught_N, minlength=K))


def pair_loss_of(reward_K: Float[Array, " K"], pairs_KK: Float[Array, "K K"]) -> Float[Array, ""]:
    """The mean of -log sigmoid(sign (r_i - r_j)) over pairs; a tie is ln 2 of it, without gradient (i = j)."""
    better_KK = jnp.broadcast_to(reward_K[:, None], pairs_KK.shape)
    other_KK = jnp.broadcast_to(reward_K[None, :], pairs_KK.shape)
    return value(bradley_terry(better_KK.ravel(), other_KK.ravel(), pairs_KK.ravel())["loss"])


def imitation_loss(logits_K: Float[Array, " K"], taught_K: Float[Array, " K"]) -> Float[Array, ""]:
    """The mean negative log-likelihood of the teacher's samples, in nats."""
    return value(masked_mean(-jax.nn.log_softmax(logits_K), taught_K))


def descend(loss_fn: LossOf, counts: np.ndarray, arms: int, steps: int, learning_rate: float) -> Fit:
    """Fits a table [K] of zeros to each seed's counts [S, ...] by SGD on the whole batch, float32."""
    counts = jnp.asarray(counts, jnp.float32)
    return Fit(*map(np.asarray, _descend(loss_fn, counts, arms, steps, learning_rate)))


# By itself, so that what has the same shapes is compiled once.
@partial(jax.jit, static_argnums=(0, 2, 3))
def _descend(
    loss_fn: LossOf, counts: Array, arms: int, steps: int, learning_rate: ScalarLike
) -> tuple[Array, Array, Array]:
    def fitted(counts: Array) -> tuple[Array, Array, Array]:
        def step(table_K: Array, _: None) -> tuple[Array, Array]:
            loss, slope_K = jax.value_and_grad(loss_fn)(table_K, counts)
            return table_K - learning_rate * slope_K, loss

        table_K, losses_T = jax.lax.scan(step, jnp.zeros(arms, jnp.float32), length=steps)
        return table_K, losses_T, loss_fn(table_K, counts)

    return jax.vmap(fitted)(counts)
