"""Two PPO iterations, recomputed by hand from what was sampled: formulas and Adam in NumPy, gradients of an own loss.

Every setting differs from the others of its kind, so that one in another's place shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.methods import ppo
from rlhf_jax.models import decoder
from rlhf_jax.models.huggingface import import_folder as huggingface
from rlhf_jax.models.responses import response_logprobs, response_values
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.run import online_models

B, R, EPOCHS, MINIBATCHES, ITERATIONS = 8, 8, 2, 2, 2
SETTINGS = {
    "steps": ITERATIONS,
    "epochs": EPOCHS,
    "minibatch_size": B // MINIBATCHES,
    "rollout.temperature": 0.9,
    "kl_coef": 0.3,
    "kl_estimator": "k3",
    "adaptive_kl": True,
    "target_kl": 0.05,
    "kl_horizon": 40.0,
    "gamma": 0.9,
    "lam": 0.7,
    "clip": 0.1,
    "value_clip": 0.05,
    "value_coef": 0.4,
    "whiten_rewards": True,
    "missing_eos_penalty": -2.0,
    "optimizer.learning_rate": 0.02,
    "value_learning_rate": 0.03,
    "optimizer.schedule": "linear",
    "optimizer.warmup_steps": 1,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.95,
    "optimizer.eps": 1e-3,  # Large enough that an update is smooth in the gradient.
    "optimizer.max_grad_norm": 0.6,
    "eval_every": 0,
    "save_every": 0,
    "best_metric": "",
}


class Recorded:
    """What a run sampled, how it was scored, and which minibatches its updates saw, in order."""

    def __init__(self):
        self.rollouts, self.scores, self.minibatches = [], [], []


@pytest.fixture(scope="module")
def run(farm, tmp_path_factory):
    """(what was recorded, rows of metrics, the exported policy, page)."""
    folder, recorded = tmp_path_factory.mktemp("ppo"), Recorded()
    generate, score, make_step = (
        DecodeGenerator.generate,
        TokenRewards.__call__,
        online_models.make_train_step,
    )

    def recorded_generate(self, tokens, lengths, rows, key, samples):
        sampled = generate(self, tokens, lengths, rows, key, samples)
        recorded.rollouts.append(jax.device_get((tokens, lengths, rows, jax.random.key_data(key), sampled)))
        return sampled

    def recorded_score(self, *args, **kwargs):
        found = score(self, *args, **kwargs)

        def scored():
            recorded.scores.append(np.float64((result := found()).scores_B))
            return result

        return scored

    def recording_step(*args, **kwargs):
        step = make_step(*args, **kwargs)
        call = step.__class__.__call__

        class Recording(step.__class__):
            def __call__(self, state, batch, frozen=None):
                recorded.minibatches.append(jax.device_get(batch))
                return call(self, state, batch, frozen)

        step.__class__ = Recording
        return step

    page = tiny_farm.settings("ppo", farm, **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeGenerator, "generate", recorded_generate)
        patch.setattr(TokenRewards, "__call__", recorded_score)
        patch.setattr(online_models, "make_train_step", recording_step)
        ppo.run(page, str(folder))
    exported = huggingface.load(folder / "export")[1]
    return recorded, tiny_farm.rows(folder), exported, page


def training(recorded):
    """The rollouts of iterations; the others are evaluations, before the first and after the last."""
    before, *inside, after = recorded.rollouts
    assert len(inside) == ITERATIONS and all(len(x[0]) == B for x in inside)
    return (before, after), inside


def test_every_rollout_has_new_prompts_new_noise_and_rows_of_their_own(run):
    (before, after), inside = training(run[0])
    keys = [x[3].tolist() for x in inside]
    assert keys[0] != keys[1] and before[3].tolist() not in keys
    assert (
        before[3].tolist() == after[3].tolist() and (before[0] == after[0]).all()
    )  # evaluations are comparable
    for prompts, _, rows, _, sampled in inside:
        assert rows.tolist() == list(range(B))
        assert len({x.tobytes() for x in prompts}) > B // 2
        assert len({x.tobytes() for x in sampled.tokens_BR}) > B // 2
    assert not (inside[0][0] == inside[1][0]).all(axis=1).any()


def test_every_epoch_is_a_new_order_of_all_rows(run):
    recorded, *_ = run
    per_epoch = [
        recorded.minibatches[i : i + MINIBATCHES] for i in range(0, len(recorded.minibatches), MINIBATCHES)
    ]
    assert len(per_epoch) == ITERATIONS * EPOCHS
    orders = [np.concatenate([x.old_logprobs_BR for x in epoch]) for epoch in per_epoch]
    for i in range(ITERATIONS):
        one, two = orders[EPOCHS * i : EPOCHS * (i + 1)]
        assert sorted(map(tuple, one)) == sorted(map(tuple, two)) and len(set(map(tuple, one))) == B
        assert (one != two).any()


def test_the_numbers_of_two_iterations(run, farm):
    recorded, rows, exported, page = run
    networks = Networks(farm, page)
    kl_coef = page.kl_coef
    found = [row for row in rows if "loss" in row]
    assert len(found) == ITERATIONS
    clipped = []
    for i, (prompts, prompt_lengths, _, _, sampled) in enumerate(training(recorded)[1]):
        row = found[i]
        wanted, updates = one_iteration(
            networks, page, kl_coef, i, (prompts, prompt_lengths, sampled), recorded
        )
        clipped += [x["clipped"] for x in updates]
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, rel=2e-3, abs=2e-5), (i, name)
        for name in (
            "loss",
            "loss/policy",
            "loss/value",
            "policy/clipfrac",
            "val/clipfrac",
            "policy/approxkl",
        ):
            mean = sum(x[name] * x["tokens"] for x in updates) / sum(x["tokens"] for x in updates)
            assert row[name] == pytest.approx(mean, rel=2e-3, abs=2e-5), (i, name)
        assert row["grad_norm"] == pytest.approx(np.mean([x["grad_norm"] for x in updates]), rel=2e-3)
        share = 1 - max(i - 1, 0) / (ITERATIONS - 1)  # linear, after a warm-up of one iteration
        assert row["learning_rate/policy"] == pytest.approx(0.02 * share)
        assert row["learning_rate/value"] == pytest.approx(0.03 * share)
        error = np.clip(wanted["objective/kl"] / page.target_kl - 1, -0.2, 0.2)
        kl_coef *= 1 + B / page.kl_horizon * error
    assert True in clipped and False in clipped  # small gradients are left as they are
    for got, expected in zip(
        jax.tree.leaves(exported), jax.tree.leaves(networks.params["policy"]), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=3e-4)


class Networks:
    """Policy, value model, reference and reward model, read from their folders, and Adam for the first two."""

    def __init__(self, farm, page):
        checkpoint, policy = huggingface.load(farm / "sft" / "export")
        _, self.reward = huggingface.load(farm / "reward_model" / "export")
        self.config, self.page = checkpoint.config, page
        policy, self.reward = (jax.tree.map(np.float32, x) for x in (policy, self.reward))
        self.reference = policy
        value = self.reward | {"score": np.zeros_like(self.reward["score"])}
        self.params = {"policy": policy, "value": value}
        self.moments = {
            name: [jax.tree.map(lambda x: np.zeros(x.shape), params) for _ in range(2)]
            for name, params in self.params.items()
        }
        self.count = 0

    def logprobs(self, params, tokens, lengths):
        params, tokens, lengths = jax.tree.map(jnp.asarray, (params, tokens, lengths))
        return response_logprobs(self.config, params, tokens, lengths, R, temperature=0.9, chunk=R)[0]

    def values(self, params, tokens, lengths):
        params, tokens, lengths = jax.tree.map(jnp.asarray, (params, tokens, lengths))
        return response_values(self.config, params, tokens, lengths, R)

    def update(self, grads, rates):
        """Adam by the book, each network clipped by itself; whether any was."""
        self.count += 1
        clipped = False
        for name, rate in rates.items():
            norm = np.sqrt(sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(grads[name])))
            factor = min(1.0, 0.6 / norm)
            clipped |= factor < 1
            g = jax.tree.map(lambda x, factor=factor: np.float64(x) * factor, grads[name])
            m, v = self.moments[name]
            m = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)
            self.moments[name] = [m, v]
            self.params[name] = jax.tree.map(
                lambda p, m, v, rate=rate: np.float32(
                    p - rate * (m / (1 - 0.8**self.count)) / (np.sqrt(v / (1 - 0.95**self.count)) + 1e-3)
                ),
                self.params[name],
                m,
                v,
            )
        return clipped


def one_iteration(networks, page, kl_coef, i, rollout, recorded):
    """(metrics of the rollout, those of each update); moves `networks`."""
    prompts, prompt_lengths, sampled = rollout
    mask = np.array(sampled.mask_BR)
    tokens = np.zeros((B, prompts.shape[1] + R), np.int32)
    for b in range(B):
        both = [
            *prompts[b, prompts.shape[1] - prompt_lengths[b] :],
            *sampled.tokens_BR[b, : sampled.lengths_B[b]],
        ]
        tokens[b, : len(both)] = both
    logp = np.float64(networks.logprobs(networks.params["policy"], tokens, prompt_lengths))
    # At the temperature that it was told, the sampler's own log-probs are those of who learns from them.
    np.testing.assert_allclose(np.where(mask, sampled.logprobs_BR, 0), np.where(mask, logp, 0), atol=1e-3)
    ref = np.float64(networks.logprobs(networks.reference, tokens, prompt_lengths))
    values = np.float64(networks.values(networks.params["value"], tokens, prompt_lengths)) * mask
    raw = reward_scores(networks, tokens, prompt_lengths + sampled.lengths_B)
    np.testing.assert_allclose(recorded.scores[i + 1], raw, atol=2e-5)
    scores = np.where(sampled.ended_B, raw, page.missing_eos_penalty)
    assert 0 < sampled.ended_B.sum() < B
    d = (logp - ref) * mask
    kl = np.exp(-d) - 1 + d
    rewards = -kl_coef * kl
    rewards[np.arange(B), sampled.lengths_B - 1] += scores
    white = (rewards[mask] - rewards[mask].mean()) / np.sqrt(rewards[mask].var() + 1e-8) + rewards[
        mask
    ].mean()
    rewards[mask] = white
    advantages = np.zeros((B, R))
    for b in range(B):
        later_value = later = 0.0
        for t in reversed(range(sampled.lengths_B[b])):
            delta = rewards[b, t] + 0.9 * later_value - values[b, t]
            later = advantages[b, t] = delta + 0.9 * 0.7 * later
            later_value = values[b, t]
    returns = advantages + values
    advantages[mask] = (advantages[mask] - advantages[mask].mean()) / np.sqrt(advantages[mask].var() + 1e-8)
    residual = (returns - values)[mask]
    wanted = {
        "objective/kl_coef": kl_coef,
        "objective/kl": kl.sum() / B,
        "objective/scores": scores.mean(),
        "objective/raw_scores": raw.mean(),
        "objective/non_score_reward": -kl_coef * kl.sum() / B,
        "objective/rlhf_reward": scores.mean() - kl_coef * kl.sum() / B,
        "objective/entropy": entropy(networks, tokens, prompt_lengths, mask),
        "val/explained_variance": 1 - residual.var() / returns[mask].var(),
        "val/mean": values[mask].mean(),
        "val/returns": returns[mask].mean(),
        "completions/mean_length": sampled.lengths_B.mean(),
        "completions/ended": sampled.ended_B.mean(),
    }
    rows_of = {tuple(np.float32(x)): b for b, x in enumerate(recorded_logprobs(recorded, i, logp))}
    updates = []
    share = 1 - max(i - 1, 0) / (ITERATIONS - 1)
    per = EPOCHS * MINIBATCHES
    for minibatch in recorded.minibatches[i * per : (i + 1) * per]:
        chosen = [rows_of[tuple(np.float32(x))] for x in minibatch.old_logprobs_BR]
        np.testing.assert_allclose(minibatch.advantages_BR, advantages[chosen], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(minibatch.returns_BR, returns[chosen], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(
            minibatch.old_logprobs_BR * mask[chosen], logp[chosen] * mask[chosen], atol=1e-4
        )
        part = [x[chosen] for x in (tokens, prompt_lengths, mask, logp, values, advantages, returns)]
        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(networks.params, networks, *part)
        norm = np.sqrt(sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(grads)))
        rates = {"policy": 0.02 * share, "value": 0.03 * share}
        updates.append(
            {k: float(x) for k, x in found.items()}
            | {"grad_norm": norm, "clipped": networks.update(grads, rates), "tokens": mask[chosen].sum()}
        )
    return wanted, updates


def recorded_logprobs(recorded, i, logp):
    """The run's own old log-probs in the rollout's order, by which its minibatches are told apart."""
    per = EPOCHS * MINIBATCHES
    seen = np.concatenate([x.old_logprobs_BR for x in recorded.minibatches[i * per : i * per + MINIBATCHES]])
    distance = np.abs(seen[None] - logp[:, None]).max(axis=2)
    return seen[distance.argmin(axis=1)]


def loss(params, networks, tokens, lengths, mask, old, old_values, advantages, returns):
    """(policy loss + 0.4 * value loss, metrics), means over the minibatch's tokens."""
    now = networks.logprobs(params["policy"], tokens, lengths)
    values = networks.values(params["value"], tokens, lengths)
    n = mask.sum()
    log_ratio = jnp.where(mask, now - np.float32(old), 0)
    ratio, A = jnp.exp(log_ratio), np.float32(advantages)
    plain, cut = -A * ratio, -A * jnp.clip(ratio, 0.9, 1.1)
    near = jnp.clip(values, np.float32(old_values) - 0.05, np.float32(old_values) + 0.05)
    far, close = (values - np.float32(returns)) ** 2, (near - np.float32(returns)) ** 2
    policy = jnp.where(mask, jnp.maximum(plain, cut), 0).sum() / n
    value = jnp.where(mask, jnp.maximum(far, close), 0).sum() / n / 2
    found = {
        "loss": policy + 0.4 * value,
        "loss/policy": policy,
        "loss/value": value,
        "policy/clipfrac": jnp.where(mask, cut > plain, 0).sum() / n,
        "val/clipfrac": jnp.where(mask, close > far, 0).sum() / n,
        "policy/approxkl": jnp.where(mask, log_ratio**2, 0).sum() / n / 2,
    }
    return found["loss"], found


def reward_scores(networks, tokens, lengths):
    """At the last token, less the mean that the folder names (0.25)."""
    hidden = hidden_states(networks, networks.reward, tokens)
    return hidden[np.arange(B), lengths - 1] @ np.float64(networks.reward["score"]) - 0.25


def entropy(networks, tokens, lengths, mask):
    """Of the policy that sampled, at its temperature, mean over tokens."""
    policy = networks.params["policy"]
    logits = hidden_states(networks, policy, tokens) @ np.float64(policy["head"]) / 0.9
    logp = logits - logits.max(-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(-1, keepdims=True))
    at = np.minimum(lengths[:, None] - 1 + np.arange(R), tokens.shape[1] - 1)
    found = -(np.exp(logp) * logp).sum(-1)
    return found[np.arange(B)[:, None], at][mask].mean()


def hidden_states(networks, params, tokens):
    params, tokens = jax.tree.map(jnp.asarray, (params, tokens))
    return np.float64(decoder.hidden_states(networks.config, params, tokens))
