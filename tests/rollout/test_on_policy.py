"""An update that reads its rollout itself is one on a rollout that was read beforehand: the first, and later ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.methods import grpo, ppo
from rlhf_jax.models.model import Model
from rlhf_jax.objectives.policy_losses import PolicyLoss
from rlhf_jax.rollout.experience import RolloutSettings, read_rollout
from rlhf_jax.rollout.on_policy import READ, for_later, unread, unread_shapes
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation

B, P, R, SAMPLES = 6, 4, 6, 2
CONFIG = tiny_farm.model_config()
SETTINGS = RolloutSettings(0.8, "k3", -1.0, 4, "token", 1.2)
EXTRA = {"kl_coef": 0.3}


def rollout():
    """(prompts, their lengths), responses of all lengths of which one did not end, and scores of which one is none."""
    rng = np.random.default_rng(0)
    tokens_BP, tokens_BR = (rng.integers(3, CONFIG.vocab_size, (B, n)).astype(np.int32) for n in (P, R))
    prompts_B, lengths_B = np.array([4, 4, 1, 1, 3, 3], np.int32), np.array([1, R, 3, 2, 5, 4], np.int32)
    mask_BR = np.arange(R) < lengths_B[:, None]
    logprobs_BR = np.where(mask_BR, rng.normal(-5, 1, (B, R)), 0).astype(np.float32)
    sampled = Generation(tokens_BR, logprobs_BR, mask_BR, lengths_B, np.arange(B) != 1, np.int32(R))
    scored = Scored(np.float32(rng.normal(0, 2, B)), np.arange(B) != 3, {"length": np.float32(lengths_B)})
    return jax.tree.map(jnp.asarray, ((tokens_BP, prompts_B), sampled, scored))


def ways(method):
    """(networks that are trained, the loss of either way, what makes experience, names of value models)."""
    policy = tiny_farm.random_params(scalar=False, seed=1)
    if method == "ppo":
        params = {"policy": policy, "value": tiny_farm.random_params(scalar=True, seed=2)}
        made = partial(
            ppo.make_experience, settings=SETTINGS, advantage=ppo.AdvantageSettings(0.9, 0.7, True)
        )
        how = {"clip": 0.1, "value_clip": 0.2, "value_coef": 0.4, "temperature": 0.8, "chunk": 4}
        return params, partial(ppo.ppo_loss_fn, CONFIG, CONFIG, **how), made, ("value",)
    groups = grpo.GroupSettings(SAMPLES, "group", "batch", True, method)
    loss = PolicyLoss("sequence_token", "ppo", 0.1, 0.1, 2.0, "sequences", R, "k3", "exact")
    made = partial(grpo.make_group_experience, settings=SETTINGS, groups=groups)
    return {"policy": policy}, partial(grpo.grpo_loss_fn, CONFIG, loss, temperature=0.8, chunk=4), made, ()


def graded(loss_fn, params, batch):
    """(loss and the other means, readings if any, gradient)."""

    def mean_loss(params):
        means = loss_fn(params, batch)
        return means["loss"].sum / means["loss"].weight, means

    (_, means), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
    read = means.pop(READ, None)
    return {name: x.sum / x.weight for name, x in means.items()}, read, gradient


def assert_same(found, wanted):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()), err_msg=str(path))


@pytest.mark.parametrize("method", ["ppo", "loss", "reward_to_go"])
def test_own_readings_are_as_good_as_those_before(method):
    """Of GRPO with the KL in the loss and in the reward."""
    (tokens_BP, prompts_B), sampled, scored = rollout()
    params, loss, made, scalar = ways(method)
    first = tiny_farm.random_params(scalar=False, seed=3)
    params, first = jax.tree.map(jnp.asarray, (params, first))
    reference = {"reference": Model(CONFIG, first)}
    read = partial(read_rollout, settings=SETTINGS, pad_id=0, sampled=sampled)
    read = partial(read, prompts_BP=tokens_BP, prompt_lengths_B=prompts_B)

    @jax.jit
    def plain(acted, params):
        """An update of `params` on a rollout that was read when they were `acted`: (all readings, what is graded)."""
        models = {name: Model(CONFIG, x) for name, x in acted.items()}
        values = {name: models.pop(name) for name in scalar}
        before = read(models | reference, values)
        experience, _ = made(before, sampled, scored, jnp.float32(EXTRA["kl_coef"]))
        return before, graded(loss(), params, experience)

    alone = jax.jit(partial(graded, loss(experience_of=made)))
    others = jax.jit(lambda: read(reference, {}))()
    assert others.entropy_BR is None and list(others.logprobs) == ["reference"]
    own = unread(others, sampled, scored, EXTRA, scalar)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((B, *x.shape[1:]), x.dtype), unread_shapes(P, R, scalar)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), own) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )

    means, found, gradient = alone(params, own)
    before, (wanted, _, wanted_gradient) = plain(params, params)
    assert_same((means, gradient), (wanted, wanted_gradient))
    assert float(means["policy/ratio"]) == 1.0
    assert_same(found, before)
    # One that moved, so that ratios are clipped and values held.
    moved = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), params)
    means, kept, gradient = alone(moved, for_later(own, found))
    _, (wanted, _, wanted_gradient) = plain(params, moved)
    assert 0.05 < float(wanted["policy/clipfrac"]) < 0.95
    assert_same((means, gradient), (wanted, wanted_gradient))
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (kept, found)), strict=True))
