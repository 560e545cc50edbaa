"""What each method makes of fixed rows in a few steps: the numbers that PyTorch finds in float64.

Weights, rows and, of PPO, responses come from NumPy, so that the numbers hang on the method alone. Every setting of a
page is unlike its default, and unlike the others of its kind: one that is ignored, or taken for another, shows. Limits
of gradient norms lie between the norms of the steps, so that some are clipped and some must stay as they are.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_words
from tiny_words import EOS, PAD, VOCABULARY

from rlhf_jax.methods import dpo, grpo, ppo, reward_model, sft
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.run import load_models, reference_logprobs

# Three steps on ten rows: the numbers of the third are those of what two steps have made.
THREE_STEPS = {"seed": 3, "batch_size": 4, "microbatches": 2, "epochs": 1.2, "eval_every": 0, "save_every": 0}
# A large epsilon makes every update smooth in the gradient, whose smallest entries are rounding.
ADAM = {"optimizer.learning_rate": 0.05, "optimizer.b1": 0.8, "optimizer.b2": 0.9, "optimizer.eps": 1e-2}


def numbers(folder, start, *names):
    """Those of the third step, and `moved`: how far the exported weights are from where they started."""
    rows = tiny_farm.rows(folder)
    third = next(row for row in rows if row["step"] == 3 and "loss" in row)
    measured = {**third, **next(row for row in rows if row["step"] == 3 and "loss" not in row)}
    moved = tiny_words.moved(tiny_words.load(start), tiny_words.load(folder / "export"))
    return {name: measured[name] for name in names} | {"moved": moved}


def test_sft(words, tmp_path):
    page = tiny_words.settings(
        "sft",
        tmp_path,
        {"data.train": tiny_words.demonstrations(10, 0), "data.eval": tiny_words.demonstrations(6, 2)},
        **{
            "model.init": str(words / "language"),
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 0,
        },
        **{"optimizer.weight_decay": 0.1, "optimizer.max_grad_norm": 1.2, "optimizer.ema": 0.3},
        **THREE_STEPS | ADAM,
    )
    sft.run(page, str(tmp_path / "run"))
    found = numbers(tmp_path / "run", words / "language", "loss", "grad_norm", "entropy", "eval/loss")
    assert found == pytest.approx(SFT, rel=1e-4, abs=2e-5)


def test_reward_model(words, tmp_path):
    page = tiny_words.settings(
        "reward_model",
        tmp_path,
        {
            "data.train": tiny_words.pairs(10, 4),
            "data.eval": tiny_words.pairs(6, 7),
            "center_on": tiny_words.demonstrations(5, 10),
        },
        **{"model.init": str(words / "reward"), "optimizer.schedule": "linear", "optimizer.warmup_steps": 1},
        **{"optimizer.name": "adamw_tf", "optimizer.weight_decay": 0.2, "optimizer.max_grad_norm": 1.5},
        **THREE_STEPS | ADAM,
    )
    reward_model.run(page, str(tmp_path / "run"))
    found = numbers(tmp_path / "run", words / "reward", "loss", "grad_norm", "rewards/margins", "eval/loss")
    assert found == pytest.approx(REWARD_MODEL, rel=1e-4, abs=2e-5)
    # Readers subtract the mean score of demonstrations from every score.
    after = tiny_words.load(tmp_path / "run/export")
    texts = [tiny_words.encoded(row["prompt"], row["output"]) for row in tiny_words.demonstrations(5, 10)]
    mean = np.mean([tiny_words.score(after, row) for row in texts])
    assert tiny_words.reward_mean(tmp_path / "run/export") == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("reference", ["cached", "step"])
def test_dpo(words, tmp_path, reference):
    page = tiny_words.settings(
        "dpo",
        tmp_path,
        {"data.train": tiny_words.pairs(10, 14), "data.eval": tiny_words.pairs(6, 24)},
        **{
            "model.init": str(words / "language"),
            "beta": 0.3,
            "label_smoothing": 0.15,
            "reference": reference,
        },
        **{"optimizer.name": "rmsprop", "optimizer.schedule": "inverse_sqrt", "optimizer.warmup_steps": 0},
        **{"optimizer.max_grad_norm": 0.7, "reference_cache": str(tmp_path / "cache")},
        **THREE_STEPS | ADAM | {"optimizer.learning_rate": 0.01},
    )
    dpo.run(page, str(tmp_path / "run"))
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval/loss")
    found = numbers(tmp_path / "run", words / "language", *names)
    assert found == pytest.approx(DPO, rel=1e-4, abs=2e-5)


def test_a_loss_of_tokens_without_a_reference(words, tmp_path, monkeypatch):
    """SimPO, smoothed, with an SFT term; no reference is computed, nor is a second model kept."""
    monkeypatch.setattr(reference_logprobs, "logprobs", None)
    page = tiny_words.settings(
        "dpo",
        tmp_path,
        {"data.train": tiny_words.pairs(10, 14), "data.eval": tiny_words.pairs(6, 24)},
        **{"model.init": str(words / "language"), "loss": "simpo", "beta": 1.5, "simpo_gamma": 0.4},
        **{"label_smoothing": 0.1, "sft_coef": 0.2, "reference_cache": str(tmp_path / "cache")},
        **{"optimizer.name": "sgd", "optimizer.schedule": "constant", "optimizer.warmup_steps": 0},
        **THREE_STEPS
        | {"optimizer.b1": 0.5, "optimizer.learning_rate": 0.05, "optimizer.max_grad_norm": 0.0},
    )
    dpo.run(page, str(tmp_path / "run"))
    assert not (tmp_path / "cache").exists()
    names = ("loss", "grad_norm", "rewards/margins", "nll_loss", "eval/loss")
    found = numbers(tmp_path / "run", words / "language", *names)
    assert found == pytest.approx(SIMPO, rel=1e-4, abs=2e-5)


def test_ppo(words, tmp_path, monkeypatch):
    """Minibatches are whole rollouts here, so that no order is drawn."""
    calls, seeds, start = [], [], load_models.start_network

    def scripted(self, tokens, lengths, rows, key, samples):
        calls.append(tokens.shape)
        return responses(len(calls), *tokens.shape[:1])

    def started(config, params, lora, mesh, seed):
        seeds.append(seed)
        return start(config, params, lora, mesh, seed)

    monkeypatch.setattr(DecodeGenerator, "generate", scripted)
    monkeypatch.setattr(load_models, "start_network", started)
    prompts = [{"prompt": x} for x in tiny_words.sentences(10, 5, 18)]
    page = tiny_words.settings(
        "ppo",
        tmp_path,
        {"data.train": prompts, "data.eval": prompts[:3]},
        **{
            "model.policy": str(words / "language"),
            "model.reward": str(words / "reward"),
            "steps": 3,
            "epochs": 2,
        },
        **{"rollout.batch_size": 4, "minibatch_size": 4, "microbatches": 2, "rollout.max_new_tokens": 5},
        **{"rollout.temperature": 0.8, "kl_coef": 0.4, "kl_estimator": "k3", "adaptive_kl": True},
        **{"target_kl": 0.5, "kl_horizon": 12.0, "missing_eos_penalty": -1.5, "gamma": 0.9, "lam": 0.7},
        **{"clip": 0.15, "value_clip": 0.02, "value_coef": 0.6, "whiten_rewards": True, "best_metric": ""},
        **{"optimizer.schedule": "linear", "optimizer.warmup_steps": 0, "optimizer.max_grad_norm": 0.65},
        **{"value_learning_rate": 0.03, "optimizer.ema": 0.3, "seed": 3, "eval_every": 0, "save_every": 0},
        **ADAM,
    )
    ppo.run(page, str(tmp_path / "run"))
    assert (
        len(calls) == 5 and len(set(seeds)) == 2
    )  # An evaluation before and after; two adapters would differ.
    names = ("loss", "objective/kl", "val/explained_variance", "policy/entropy", "eval/rlhf_reward")
    found = numbers(tmp_path / "run", words / "language", *names)
    assert found == pytest.approx(PPO, rel=1e-4, abs=2e-5)


def test_grpo(words, tmp_path, monkeypatch):
    """Minibatches are whole rollouts here, too; what samples is another policy than the one that learns."""
    calls = []

    def scripted(self, tokens, lengths, rows, key, samples):
        calls.append(samples)
        found = responses(len(calls), tokens.shape[0] * samples)
        said = np.random.RandomState(200 + len(calls)).normal(-2.5, 1, found.tokens_BR.shape)
        return found._replace(logprobs_BR=jnp.asarray(np.where(found.mask_BR, said, 0), jnp.float32))

    monkeypatch.setattr(DecodeGenerator, "generate", scripted)
    prompts = [{"prompt": x} for x in tiny_words.sentences(10, 5, 18)]
    page = tiny_words.settings(
        "grpo",
        tmp_path,
        {"data.train": prompts, "data.eval": prompts[:3]},
        **{
            "model.policy": str(words / "language"),
            "model.reward": str(words / "reward"),
            "steps": 3,
            "epochs": 2,
        },
        **{"rollout.batch_size": 3, "rollout.samples": 4, "minibatch_size": 12, "microbatches": 2},
        **{"rollout.max_new_tokens": 5, "rollout.temperature": 0.8, "missing_eos_penalty": -1.5},
        **{"rollout.correction": "token", "rollout.correction_cap": 1.3, "ratio": "sequence"},
        **{"clip_low": 0.3, "clip_high": 0.4, "dual_clip": 1.6, "aggregation": "sequences"},
        **{"baseline": "leave_one_out", "scale": "batch", "filter_groups": True, "kl_in": "loss"},
        **{"kl_coef": 0.4, "kl_estimator": "k3", "kl_gradient": "exact", "adaptive_kl": True},
        **{"target_kl": 0.5, "kl_horizon": 24.0, "best_metric": "", "optimizer.schedule": "constant"},
        **{"optimizer.warmup_steps": 0, "optimizer.max_grad_norm": 0.65},
        **{"seed": 3, "eval_every": 0, "save_every": 0},
        **ADAM | {"optimizer.learning_rate": 0.02},
    )
    grpo.run(page, str(tmp_path / "run"))
    assert calls == [1, 4, 4, 4, 1]
    names = (
        "loss",
        "loss/kl",
        "objective/kl",
        "policy/clipfrac",
        "sampling/correction_mean",
        "eval/rlhf_reward",
    )
    found = numbers(tmp_path / "run", words / "language", *names)
    assert found == pytest.approx(GRPO, rel=1e-4, abs=2e-5)


def responses(call, count):
    """What a policy is made to say at a call: words of any number, and the end in some rows only."""
    rng, R = np.random.RandomState(100 + call), 5
    lengths = rng.randint(1, R + 1, count)
    ended = np.arange(count) % 3 != 1
    tokens = rng.randint(4, len(VOCABULARY), (count, R))
    tokens[np.arange(count)[ended], lengths[ended] - 1] = VOCABULARY[EOS]
    lengths[~ended] = R
    mask = np.arange(R) < lengths[:, None]
    tokens = np.where(mask, tokens, VOCABULARY[PAD])
    return Generation(
        jnp.asarray(tokens, jnp.int32),
        jnp.zeros((count, R), jnp.float32),
        jnp.asarray(mask),
        jnp.asarray(lengths, jnp.int32),
        jnp.asarray(ended),
        jnp.int32(R),
    )


SFT = {"loss": 2.963512, "grad_norm": 1.163626, "entropy": 2.70454, "eval/loss": 3.377778, "moved": 0.2316843}
REWARD_MODEL = {
    "loss": 0.4678927,
    "grad_norm": 1.597346,
    "rewards/margins": 0.6194304,
    "eval/loss": 0.8004019,
}
REWARD_MODEL |= {"moved": 1.897297}
DPO = {"loss": 0.598583, "grad_norm": 0.6404904, "rewards/margins": 0.3679906, "logps/chosen": -12.79944}
DPO |= {"eval/loss": 0.7112168, "moved": -0.05154273}
SIMPO = {"loss": 1.318427, "grad_norm": 1.491508, "rewards/margins": 0.5749398, "nll_loss": 3.012668}
SIMPO |= {"eval/loss": 1.792688, "moved": -0.1742754}
PPO = {"loss": 0.3260543, "objective/kl": 1.187671, "val/explained_variance": 0.04499368}
PPO |= {"policy/entropy": 2.510932, "eval/rlhf_reward": -2.112381, "moved": 3.05058}
GRPO = {"loss": -0.01053645, "loss/kl": 0.05975319, "objective/kl": 0.2088517, "policy/clipfrac": 0.0}
GRPO |= {"sampling/correction_mean": 0.4092710, "eval/rlhf_reward": -0.8026715, "moved": 0.5287320}
