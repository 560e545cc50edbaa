"""The negative log-likelihood over trained tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from objectives_oracles import number, split_and_add

from rlhf_jax.objectives.logprobs import sft_loss

LOSS = jax.jit(sft_loss)


def test_loss_is_the_token_mean_over_the_whole_batch_not_a_mean_of_rows():
    rng = np.random.default_rng(1)
    logprobs, entropy = -rng.exponential(size=(3, 8)), rng.random((3, 8))
    mask = np.arange(8)[None, :] < np.array([8, 1, 4])[:, None]
    metrics = LOSS(jnp.asarray(logprobs), jnp.asarray(entropy), jnp.asarray(mask))
    np.testing.assert_allclose(number(metrics["loss"]), -logprobs[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(number(metrics["entropy"]), entropy[mask].mean(), rtol=1e-6)
    by_row = -np.mean([logprobs[i][mask[i]].mean() for i in range(3)])
    assert abs(number(metrics["loss"]) - by_row) > 1e-2
    parts = split_and_add(LOSS, tuple(jnp.asarray(a) for a in (logprobs, entropy, mask)), cut=1)
    for name, mean in metrics.items():
        np.testing.assert_allclose((mean.sum, mean.weight), parts[name], rtol=1e-6)
