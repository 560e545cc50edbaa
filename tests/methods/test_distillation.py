"""Distillation as every method is tested, what it refuses of a teacher, and two iterations by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_rollouts
import tiny_farm
import tiny_losses
from method_suite import MethodSuite
from tiny_losses import CONFIG, Case

from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.methods import distillation
from rlhf_jax.models.huggingface import export_folder, import_folder
from rlhf_jax.models.lora import Lora
from rlhf_jax.training.run.session import Session


def write_teacher(farm, folder):
    """A language model like the farm's, with other weights; returns its folder."""
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    params = tiny_farm.random_params(scalar=False, eos_id=tokenizer.eos_token_id, seed=5)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    export_folder.save_folder(
        folder, tiny_farm.model_config(), params, token_ids=ids, tokenizer_from=farm / "data/tokenizer"
    )
    return str(folder)


class TestDistillation(MethodSuite):
    job = "distillation"
    steps = {"steps": 13}

    def inputs(self, farm, folder):
        return {"model.teacher": write_teacher(farm, folder / "teacher")}

    def case(self):
        ppo = tiny_losses.cases()["ppo"].batch
        teacher = tiny_farm.random_params(scalar=False, seed=4)
        how = {"divergence": "reverse_kl", "credit": "sequence", "temperature": 0.7, "chunk": 16}

        def make(R):
            loss_fn = distillation.distillation_loss_fn(CONFIG, CONFIG, **how)
            return lambda params, batch: loss_fn({**params, "teacher": teacher}, batch)

        policy = tiny_farm.random_params(scalar=False, seed=1)
        batch = distillation.Sampled(ppo.tokens_BT, ppo.prompt_lengths_B, np.asarray(ppo.mask_BR))
        return Case(make, {"policy": policy}, batch)


@pytest.mark.parametrize(
    ("teacher", "tokens", "said"),
    [
        ("reward_model/export", 0, "is a reward model; give a language model"),
        ("language", 0, "has another tokenizer than the policy"),
        (
            "sft/export",
            8,
            "has embeddings of 320 tokens, and the policy, .* of 328; give a teacher with as many",
        ),
    ],
)
def test_what_is_no_teacher_is_one_line(farm, words, teacher, tokens, said):
    folder = words / teacher if teacher == "language" else farm / teacher
    page = tiny_farm.settings("distillation", farm, **{"model.teacher": str(folder)})
    session = Session(
        page, "", None, "", load_tokenizer(farm / "data/tokenizer"), "", Lora(0, 16.0, ("all",))
    )
    policy = dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + tokens)
    with pytest.raises(UserError, match=f"model.teacher: {folder} {said}"):
        distillation.teacher_of(session, policy)


SETTINGS = recorded_rollouts.PLAIN | {
    "steps": 2,
    "epochs": 2,
    "minibatch_size": 16,
    "rollout.samples": 2,
    "rollout.temperature": 0.8,
    "optimizer.learning_rate": 1e-3,
}


@pytest.mark.parametrize(("divergence", "credit"), [("reverse_kl", "sequence"), ("forward_kl", "token")])
def test_two_iterations_by_hand(farm, tmp_path, divergence, credit):
    """Whole distributions of both models at every sampled token, and descent by a gradient of their sums."""
    teacher = write_teacher(farm, tmp_path / "teacher")
    settings = SETTINGS | {"model.teacher": teacher, "divergence": divergence, "credit": credit}
    page = tiny_farm.settings("distillation", farm, **settings)
    rollouts, rows, last, exported = recorded_rollouts.run(distillation, page, tmp_path / "run")
    assert len(rollouts) == len(rows) == 2
    config = import_folder.describe_folder(farm / "sft/export").config
    start = params = jax.tree.map(np.float32, import_folder.load(farm / "sft/export")[1])
    taught = jax.tree.map(np.float32, import_folder.load(teacher)[1])
    for rollout, row in zip(rollouts, rows, strict=True):
        mask = rollout.mask_BT
        logq = recorded_rollouts.log_distributions(config, taught, rollout.tokens_BT, 0.8)

        def loss(params, rollout=rollout, mask=mask, logq=logq):
            logp = recorded_rollouts.log_distributions(config, params, rollout.tokens_BT, 0.8)
            one, other = (logp, logq) if divergence == "reverse_kl" else (logq, logp)
            apart = jnp.where(mask, (jnp.exp(one) * (one - other)).sum(-1), 0.0)
            if credit == "token":
                return apart.sum() / mask.sum(), apart.sum() / mask.sum()
            said = recorded_rollouts.logprobs(config, params, rollout, 0.8)
            later = jnp.cumsum(jax.lax.stop_gradient(apart)[:, ::-1], axis=1)[:, ::-1]
            blame = (said * jnp.pad(later[:, 1:], ((0, 0), (0, 1)))).sum()
            return (apart.sum() + blame) / len(mask), apart.sum() / len(mask)

        said, would = (recorded_rollouts.logprobs(config, x, rollout, 0.8) for x in (params, taught))
        apart = np.float64(said - would).sum(1)
        losses, norms, descent = [], [], jax.jit(jax.grad(loss, has_aux=True))
        for _ in range(2):
            gradient, mean = descent(params)
            losses.append(float(mean)), norms.append(recorded_rollouts.norm(gradient))
            params = recorded_rollouts.descended(params, gradient, 1e-3)
        wanted = {
            "loss": np.mean(losses),
            "grad_norm": np.mean(norms),
            "objective/teacher_kl": apart.mean(),
            "objective/scores": (-apart / rollout.lengths_B).mean(),
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=2e-3, abs=2e-4)
    recorded_rollouts.assert_params(exported, params, start)
    assert last["eval/teacher_kl"] > 0 > last["eval/scores"]
