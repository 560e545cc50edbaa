"""Quark as every method is tested; its pool, what is drawn of it, and iterations by hand from what was sampled."""

import dataclasses
from types import SimpleNamespace

import chat_tokenizers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_losses
from method_suite import MethodSuite
from tiny_losses import CONFIG, Case

from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer, prefix_text, with_prefix
from rlhf_jax.errors import UserError
from rlhf_jax.methods import quark
from rlhf_jax.models import decoder
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.rollout.pool import Drawing, Pool, PoolRows, Ranked, draw
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.rollout.text_rewards import TextRewards
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.settings import load_page
from rlhf_jax.training.run import online_models


class TestQuark(MethodSuite):
    """With a pool of three rollouts, which wraps before the run is stopped, and one that is not full at first."""

    job = "quark"
    steps = {"steps": 13, "pool_rollouts": 3, "rollout.samples": 2, "updates": 3}

    def case(self):
        reference, policy = (tiny_farm.random_params(scalar=False, seed=s) for s in (1, 3))
        rows = tiny_losses.cases()["ppo"].batch
        batch = PoolRows(rows.tokens_BT, rows.prompt_lengths_B, rows.mask_BR)
        how = {"kl_coef": 0.7, "entropy_coef": 0.3, "temperature": 0.7, "chunk": 16}

        def make(R):
            loss_fn = quark.quark_loss_fn(CONFIG, **how)
            # A constant: what nobody trains has no gradient.
            return lambda params, batch: loss_fn(params | {"reference": reference}, batch)

        return Case(make, {"policy": policy}, batch)


S, B, UPDATES, SIZE, K, ITERATIONS = 2, 8, 3, 2, 4, 3
MARKER = tiny_farm.VOCAB  # The id of the first new token.
SETTINGS = {
    "steps": ITERATIONS,
    "pool_rollouts": S,
    "quantiles": K,
    "updates": UPDATES,
    "minibatch_size": SIZE,
    "rollout.temperature": 0.9,
    "kl_coef": 0.4,
    "entropy_coef": 0.1,
    "missing_eos_penalty": -2.0,
    "optimizer.learning_rate": 0.02,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.95,
    "optimizer.eps": 1e-3,
    "optimizer.max_grad_norm": 0.0,
    "eval_every": 0,
    "save_every": 0,
    "best_metric": "",
}


class Recorded:
    """What a run sampled, how it was scored, and which minibatches its updates saw, in order."""

    def __init__(self):
        self.rollouts, self.scores, self.minibatches = [], [], []


@pytest.fixture(scope="module", params=["best", "all"])
def recorded(farm, tmp_path_factory, request):
    """(what was recorded, rows of metrics, the run's folder, train_on)."""
    folder, found = tmp_path_factory.mktemp("quark"), Recorded()
    # With quantiles' tokens the policy has another tokenizer than the reward model, which then reads text.
    rewards = {"best": TokenRewards, "all": TextRewards}[request.param]
    generate, score, make_step = (
        DecodeGenerator.generate,
        rewards.__call__,
        online_models.make_train_step,
    )

    def recorded_generate(self, tokens, lengths, rows, key, samples):
        sampled = generate(self, tokens, lengths, rows, key, samples)
        found.rollouts.append(jax.device_get((tokens, lengths, sampled)))
        return sampled

    def recorded_score(self, *args, **kwargs):
        wanted = score(self, *args, **kwargs)

        def scored():
            result = wanted()
            # One response that could not be scored; it would be the best of all.
            if len(found.scores) == 2:
                result = result._replace(
                    readable_B=result.readable_B.at[3].set(False), scores_B=result.scores_B.at[3].set(99.0)
                )
            found.scores.append(jax.device_get(result))
            return result

        return scored

    def recording_step(*args, **kwargs):
        step = make_step(*args, **kwargs)
        call = step.__class__.__call__

        class Recording(step.__class__):
            def __call__(self, state, batch, frozen=None):
                found.minibatches.append(jax.device_get(batch))
                return call(self, state, batch, frozen)

        step.__class__ = Recording
        return step

    page = tiny_farm.settings("quark", farm, **SETTINGS, train_on=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeGenerator, "generate", recorded_generate)
        patch.setattr(rewards, "__call__", recorded_score)
        patch.setattr(online_models, "make_train_step", recording_step)
        quark.run(page, str(folder))
    return found, tiny_farm.rows(folder), folder, request.param


def pools(found, train_on):
    """For each iteration (all responses, the best, those that are learned from), each as (score, tokens, prompt length,
    response length); the learned ones without score."""
    ring, told = [None] * S, []
    for i, (prompts, lengths, sampled) in enumerate(found.rollouts[1:-1]):
        scored = found.scores[i + 1]
        rows = []
        for b in range(B):
            prompt = prompts[b, prompts.shape[1] - lengths[b] :].tolist()
            response = sampled.tokens_BR[b, : sampled.lengths_B[b]].tolist()
            score = scored.scores_B[b] if sampled.ended_B[b] else SETTINGS["missing_eos_penalty"]
            if scored.readable_B[b]:
                rows.append((float(score), (*prompt, *response), len(prompt), len(response)))
        ring[i % S] = rows
        everyone = sorted((row for rows in ring for row in rows or ()), key=lambda row: -row[0])
        best = everyone[: -(-len(everyone) // K)]
        learned = [row[1:] for row in best]
        if train_on == "all":
            learned = [
                ((x[0], MARKER + r * K // len(everyone), *x[2:]), *lengths)
                for r, (_, x, *lengths) in enumerate(everyone)
            ]
        told.append((everyone, best, learned))
    return told


def minibatch_rows(batch):
    for tokens, n, mask in zip(batch.tokens_BT, batch.prompt_lengths_B, batch.mask_BR, strict=True):
        yield tuple(tokens[: n + mask.sum()].tolist()), int(n), int(mask.sum())


def test_rows_are_drawn_from_the_whole_pool_by_quantile(recorded):
    found, metrics, _, train_on = recorded
    told = [row for row in metrics if "loss" in row]
    for i, (everyone, best, learned) in enumerate(pools(found, train_on)):
        assert told[i]["pool/rows"] == len(everyone) == (8, 15, 15)[i]  # one could not be scored
        assert told[i]["pool/best_rows"] == len(best)
        assert told[i]["pool/best_scores"] == pytest.approx(np.mean([row[0] for row in best]), rel=1e-4)
        assert told[i]["pool/scores"] == pytest.approx(np.mean([row[0] for row in everyone]), rel=1e-4)
        batches = found.minibatches[UPDATES * i : UPDATES * (i + 1)]
        drawn = [row for batch in batches for row in minibatch_rows(batch)]
        for k in range(0, len(drawn), len(learned)):  # every pass has each of them once
            one = drawn[k : k + len(learned)]
            assert len(set(one)) == len(one) and set(one) <= set(learned)


def test_the_end_token_is_a_target(recorded):
    """Where a response ended the last token that is trained is the end token: the reference code had lost it."""
    found, *_ = recorded
    ended = {
        tuple(x.tokens_BR[b, : x.lengths_B[b]].tolist())
        for _, _, x in found.rollouts[1:-1]
        for b in np.flatnonzero(x.ended_B)
    }
    rows = [tokens[n:] for batch in found.minibatches for tokens, n, _ in minibatch_rows(batch)]
    assert sum(row in ended for row in rows) >= len(rows) // 3
    assert all(row[-1] == 2 for row in rows if row in ended)


def test_with_tokens_prompts_are_sampled_behind_the_best_ones(recorded):
    found, _, folder, train_on = recorded
    for prompts, lengths, _ in found.rollouts:  # evaluations, too
        second = prompts[np.arange(len(lengths)), prompts.shape[1] - lengths + 1]
        assert (second == MARKER).all() if train_on == "all" else (second < MARKER).all()
    exported = load_tokenizer(folder / "export")
    assert prefix_text(exported) == ("<|quantile_0|>" if train_on == "all" else "")
    if train_on == "all":
        assert [exported.convert_tokens_to_ids(f"<|quantile_{q}|>") for q in range(K)] == [
            *range(MARKER, MARKER + K)
        ]


def test_the_marker_is_found_before_a_bos_that_opens_turns(monkeypatch):
    tokenizer = chat_tokenizers.build(
        chat_tokenizers.CHATML,
        ["<|im_end|>", "<|im_start|>", "<|quantile_0|>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    monkeypatch.setattr(quark, "pool_shapes", lambda *_: ())
    config = load_page("configs/quark.py:all_quantiles")
    for template, column in ((tokenizer.chat_template, 0), (None, 1)):
        tokenizer.chat_template = template
        session = SimpleNamespace(
            config=config, tokenizer=with_prefix(tokenizer, "<|quantile_0|>"), mesh=None
        )
        assert quark.quark_models(CONFIG, SimpleNamespace(scorers=()), 8, session).marker == column


@jax.jit
def dense_loss(params, reference, tokens, trained, bare):
    """The loss in one piece: [B, T, V] logits of both models, no chunks, no windows.

    trained: [B, T], of targets. bare: what the reference is shown, with or without a column less.
    """
    config = dataclasses.replace(CONFIG, vocab_size=params["embed"].shape[0])
    logp, logq = (
        jax.nn.log_softmax(decoder.hidden_states(config, x, seen) @ x["head"] / 0.9)
        for x, seen in ((params, tokens), (reference, bare))
    )
    logq = jnp.concatenate([logp[:, : tokens.shape[1] - bare.shape[1]], logq], axis=1)
    p = jnp.exp(logp)
    nll = -jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    kl, entropy = (p * (logp - logq)).sum(-1), -(p * logp).sum(-1)
    loss = nll + 0.4 * kl[:, :-1] - 0.1 * entropy[:, :-1]
    return jnp.where(trained[:, 1:], loss, 0).sum() / trained.sum()


def test_the_numbers_of_all_iterations(recorded, farm):
    found, metrics, folder, train_on = recorded
    policy, exported = (
        jax.tree.map(jnp.asarray, import_folder.load(x / "export")[1]) for x in (farm / "sft", folder)
    )
    if train_on == "all":  # New tokens start as the mean of the others.
        mean = {"embed": policy["embed"].mean(0), "head": policy["head"].mean(1)}
        policy["embed"] = jnp.concatenate([policy["embed"], jnp.tile(mean["embed"], (K, 1))])
        policy["head"] = jnp.concatenate([policy["head"], jnp.tile(mean["head"][:, None], (1, K))], axis=1)
    reference = policy
    m = v = jax.tree.map(lambda x: np.zeros(x.shape), policy)
    told, count = [row for row in metrics if "loss" in row], 0
    for i in range(ITERATIONS):
        losses, tokens, norms = [], [], []
        for batch in found.minibatches[UPDATES * i : UPDATES * (i + 1)]:
            column, n = np.arange(batch.tokens_BT.shape[1]), batch.prompt_lengths_B[:, None]
            trained = (column >= n) & (column < n + batch.mask_BR.sum(1)[:, None])
            bare = np.delete(batch.tokens_BT, 1, axis=1) if train_on == "all" else batch.tokens_BT
            loss, g = gradient(policy, reference, batch.tokens_BT, trained, bare)
            g, count = jax.tree.map(np.float64, g), count + 1
            losses.append(float(loss))
            tokens.append(batch.mask_BR.sum())
            norms.append(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g))))
            m = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)
            policy = jax.tree.map(
                lambda p, m, v, c=count: jnp.float32(
                    p - 0.02 * (m / (1 - 0.8**c)) / (np.sqrt(v / (1 - 0.95**c)) + 1e-3)
                ),
                policy,
                m,
                v,
            )
        assert told[i]["loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-3), i
        assert told[i]["grad_norm"] == pytest.approx(np.mean(norms), rel=2e-3), i
    for got, wanted in zip(jax.tree.leaves(exported), jax.tree.leaves(policy), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=3e-4)


gradient = jax.jit(jax.value_and_grad(dense_loss))


def pool_of(scores, usable):
    scores, usable = np.float32(scores), np.asarray(usable)
    lengths = np.ones(scores.shape, np.int32)
    return Pool(
        np.arange(scores.size, dtype=np.int32).reshape(*scores.shape, 1), lengths, lengths, scores, usable, 1
    )


@pytest.mark.parametrize(("kept", "weights"), [(3, 1), (1, 1), (0, 0)])
def test_what_is_drawn_comes_once_before_it_comes_twice(kept, weights):
    pool, order = pool_of(np.zeros((2, 6)), np.ones((2, 6), bool)), np.random.default_rng(0).permutation(12)
    found = Ranked(pool, jnp.asarray(order), jnp.zeros(12, jnp.int32), jnp.int32(kept))
    batches = draw(jax.random.key(0), found, Drawing(updates=4, size=3, R=1, parts=3))
    rows = np.concatenate([x.tokens_BT[:, 0] for x in batches])
    assert [x.mask_BR.sum() for x in batches] == [3 * weights] * 4
    if kept:
        passes = rows.reshape(-1, kept)
        assert all(sorted(x) == sorted(order[:kept]) for x in passes)
        assert kept == 1 or len({tuple(x) for x in passes}) > 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"quantiles": 9},
            r"quantiles: 9 of the 8 responses of a rollout; use at most 8, or a larger rollout",
        ),
        ({"quantiles": 1}, r"quantiles: 1; use a whole number of at least 2"),
        ({"train_on": "worst"}, r"train_on: 'worst'; use one of best, all"),
        (
            {"train_on": "all", "lora.rank": 2},
            r"train_on: all with lora.rank=2, which does not train .*; use train_on=best, or lora.rank=0",
        ),
        ({"pool_rollouts": 0}, r"pool_rollouts: 0; use a whole number of rollouts"),
        ({"updates": 0}, r"updates: 0; use a whole number"),
        ({"entropy_coef": -0.1}, r"entropy_coef: -0.1; use"),
    ],
)
def test_settings_that_cannot_work_are_refused(farm, tmp_path, changes, why):
    with pytest.raises(UserError, match=f"^{why}"):
        quark.run(tiny_farm.settings("quark", farm, **changes), str(tmp_path / "run"))
