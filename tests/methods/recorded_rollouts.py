"""Runs an online method and keeps what it sampled and how that was scored, to recompute its numbers from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.models import decoder
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.decode_generator import DecodeGenerator

# Plain gradient descent, one update of all rows in each epoch: their order does not matter.
PLAIN = {
    "optimizer.name": "sgd",
    "optimizer.b1": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.max_grad_norm": 0.0,
    "eval_every": 0,
    "save_every": 0,
    "best_metric": "",
}


class Rollout(NamedTuple):
    """Of one iteration, in NumPy: rows of prompt + response, right-padded, and the scores of a reward model, if any."""

    tokens_BT: np.ndarray
    prompt_lengths_B: np.ndarray
    lengths_B: np.ndarray
    ended_B: np.ndarray
    scores_B: np.ndarray | None

    @property
    def mask_BT(self) -> np.ndarray:
        """Where a response's token stands."""
        at = np.arange(self.tokens_BT.shape[1])
        end_B = self.prompt_lengths_B + self.lengths_B
        return (at >= self.prompt_lengths_B[:, None]) & (at < end_B[:, None])


def run(method, page, folder):
    """(rollouts of the iterations, rows of metrics that have a loss, the last evaluation's, exported parameters)."""
    sampled, scores = [], []
    generate, score = DecodeGenerator.generate, TokenRewards.__call__

    def generating(self, tokens, lengths, rows, key, samples):
        found = generate(self, tokens, lengths, rows, key, samples)
        sampled.append(jax.device_get((tokens, lengths, found, samples)))
        return found

    def scoring(self, *args, **kwargs):
        called = score(self, *args, **kwargs)

        def scored():
            scores.append(np.float64((found := called()).scores_B))
            return found

        return scored

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeGenerator, "generate", generating)
        patch.setattr(TokenRewards, "__call__", scoring)
        method.run(page, str(folder))
    # Evaluations come before the first iteration and after the last.
    both = [_rollout(*x, scores[i] if scores else None) for i, x in enumerate(sampled)]
    rows = tiny_farm.rows(folder)
    exported = import_folder.load(folder / "export")[1]
    return both[1:-1], [x for x in rows if "loss" in x], [x for x in rows if "eval/kl" in x][-1], exported


def _rollout(prompts_BP, prompt_lengths, sampled, samples, scores_B):
    prompts_BP, prompt_lengths_B = (np.repeat(x, samples, axis=0) for x in (prompts_BP, prompt_lengths))
    tokens_BT = np.zeros((len(prompts_BP), prompts_BP.shape[1] + sampled.tokens_BR.shape[1]), np.int32)
    for b, (prompt, n, m) in enumerate(zip(prompts_BP, prompt_lengths_B, sampled.lengths_B, strict=True)):
        row = [*prompt[len(prompt) - n :], *sampled.tokens_BR[b, :m]]
        tokens_BT[b, : len(row)] = row
    return Rollout(tokens_BT, prompt_lengths_B, sampled.lengths_B, sampled.ended_B, scores_B)


def log_distributions(config, params, tokens_BT, temperature):
    """Of the token at each position, from all before it [B, T, V]; zeros at the first position."""
    params = jax.tree.map(jnp.asarray, params)
    hidden_BTD = decoder.hidden_states(config, params, jnp.asarray(tokens_BT))
    logp_BTV = jax.nn.log_softmax(hidden_BTD @ params["head"] / temperature)
    return jnp.pad(logp_BTV[:, :-1], ((0, 0), (1, 0), (0, 0)))


def logprobs(config, params, rollout, temperature):
    """Log-probs of the tokens of responses [B, T]; 0 elsewhere."""
    logp_BTV = log_distributions(config, params, rollout.tokens_BT, temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, rollout.tokens_BT[..., None], axis=-1)[..., 0]
    return jnp.where(rollout.mask_BT, logp_BT, 0.0)


def descended(params, gradient, rate):
    return jax.tree.map(lambda x, g: np.float32(np.float64(x) - rate * np.float64(g)), params, gradient)


def norm(gradient):
    return np.sqrt(sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(gradient)))


def assert_params(found, wanted, start):
    """Equal but for rounding, which is small beside how far they have come."""
    for a, b, first in zip(*map(jax.tree.leaves, (found, wanted, start)), strict=True):
        assert np.abs(b - first).max() > 1e-4
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3 * np.abs(b - first).max() + 1e-7)
