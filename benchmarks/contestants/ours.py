"""rlhf_jax: the functions that its jobs call, on the same weights and tokens."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import setting
from ml_collections import ConfigDict
from session import Job, Session
from setting import GREEDY, PAD, TRAINING

from rlhf_jax.data.batches import Pairs, Sequences, bucket, flattened, permutation, row_indices
from rlhf_jax.data.tokens.scored_text import EOS, Closing
from rlhf_jax.methods import dpo, ppo, reward_model, sft
from rlhf_jax.models import peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, value_from_reward
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.lora import Lora, joined
from rlhf_jax.models.model import Model, RewardModel
from rlhf_jax.parallel.mesh import host_rows, make_mesh, to_global
from rlhf_jax.rollout.experience import RolloutSettings, read_rollout
from rlhf_jax.rollout.on_policy import READ, Unread, for_later, unread
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.settings.pages import PAGES, load_page
from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import LossFn, make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer, partitioned
from rlhf_jax.training.rows.shared_prompt_rows import pair_rows
from rlhf_jax.training.run import reference_logprobs
from rlhf_jax.training.run.encoded_rows import Rows, Split, rows_of
from rlhf_jax.training.run.load_models import Start, start_network

CHUNK = 128
NO_EOS = -1  # Nothing ends a row early.
# How long a run packing plans for, as long as fine-tuning is: for a few steps it would compile one program alone.
RUN_STEPS = 600


def run(job: Job, session: Session) -> None:
    mesh = make_mesh()
    {"generate": _generate, "ppo": _ppo}.get(job.task, _offline)(job, session, mesh)


def _offline(job: Job, session: Session, mesh: Any) -> None:
    page = _page(job)
    config, start = _start(job, mesh)
    rows, R = _rows(job, page, config)
    about = (page, mesh, config, start, rows.pairs, R)
    add_reference = (
        reference_logprobs.with_every_step(*about) if job.task == "dpo" else lambda batch, _: batch
    )
    loss_fn = {
        "sft": lambda: sft.sft_loss_fn(config, R, CHUNK),
        "reward_model": lambda: reward_model.reward_model_loss_fn(config),
        "dpo": lambda: dpo.dpo_loss_fn(config, R, CHUNK, beta=TRAINING.dpo_beta, label_smoothing=0.0),
    }[job.task]()
    optimizer = _optimizer(job.repetitions * job.steps)
    step, state = make_train_step(loss_fn, optimizer), create(start.trained, optimizer, 0)
    while True:
        session.turn()
        for i in range(job.steps):
            index_B = row_indices(i, page.batch_size, rows.count, page.seed)
            batch = to_global(rows.make(index_B, host_rows(page.batch_size, mesh)), mesh)
            state, metrics = step(state, add_reference(batch, None), start.frozen)
            first = metrics if i == 0 else first
        session.note(loss=first["loss"], grad_norm=first["grad_norm"])
        jax.block_until_ready(state)


def _page(job: Job) -> ConfigDict:
    """The method's own page with this job's batch, so that all that is `auto` is decided as in a run of RUN_STEPS."""
    page = load_page(str(PAGES / f"{job.task}.py"))
    page.update({"batch_size": job.step_rows, "epochs": max(1.0, RUN_STEPS * job.step_rows / len(job.rows))})
    return page


def _start(job: Job, mesh: Any) -> tuple[ModelConfig, Start]:
    """The model, divided into what is frozen and what is trained."""
    config, params = _load(job.trained, mesh)
    if not job.lora:
        return config, start_network(config, params, Lora(0, 0.0, ()), mesh, 0)
    found = peft.load(f"{job.trained}_adapter", config, mesh)
    adapted = joined(params, found.adapter)
    config = dataclasses.replace(config, adapter_scale=found.lora.scale)
    return config, start_network(config, adapted, found.lora, mesh, 0)


def _rows(job: Job, page: ConfigDict, config: ModelConfig) -> tuple[Rows, int]:
    """(rows, R) as the job makes them: packed, or with prompts that are computed once, where that pays."""
    # Steps take rows in an order drawn with the seed; they are laid so that it comes to the given one.
    order = np.argsort(permutation(0, len(job.rows), page.seed))
    given = [job.rows[i] for i in order]
    found = [_sequences(given, side) for side in ("response", "chosen", "rejected") if side in given[0]]
    rows = found[0] if job.task == "sft" else Pairs(*found)
    about = (Split(rows, rows, []), page.data, PAD, page.seed)
    if job.task == "sft":
        made, _, R = rows_of(*about, auto=(page, config))
    else:
        made, _, R = pair_rows(*about, config, logits=job.task == "dpo")
    return made, R


def _sequences(rows: list[dict[str, list[int]]], side: str) -> Sequences:
    whole = [np.array(row["prompt"] + row[side], np.int32) for row in rows]
    return Sequences(*flattened(whole), np.array([len(row["prompt"]) for row in rows], np.int32))


def _generate(job: Job, session: Session, mesh: Any) -> None:
    config, params = _load(job.policy, mesh)
    batch = to_global(_prompt_batch(setting.prompts(job.size, job.size.generated, job.ragged)), mesh)
    check = _sampler(config, mesh, GREEDY, Sampling(0.0))
    check.load(params)
    greedy = check.generate(batch["tokens"], batch["lengths"], batch["rows"], jax.random.key(0))
    loss = -float(greedy.logprobs_BR.mean())
    sampler = _sampler(config, mesh, job.size.response, Sampling())
    for i in range(job.repetitions):
        session.turn()
        sampler.load(params)
        jax.block_until_ready(
            sampler.generate(batch["tokens"], batch["lengths"], batch["rows"], jax.random.key(i))
        )
        session.note(loss=loss)
    session.turn()


def _ppo(job: Job, session: Session, mesh: Any) -> None:
    config, reference = _load(job.policy, mesh)
    _, reward = _load(job.reward, mesh)
    prompts = setting.prompts(job.size, job.size.ppo_prompts, job.ragged)
    batch = to_global(_prompt_batch(prompts), mesh)
    R = job.size.response
    params = jax.tree.map(lambda x: x.copy(), {"policy": reference, "value": value_from_reward(reward)})
    tx = partitioned({name: _optimizer(job.repetitions) for name in params})
    settings = RolloutSettings(
        temperature=1.0,
        kl_estimator="k1",
        missing_eos_penalty=0.0,
        logprob_chunk=CHUNK,
    )
    advantage = ppo.AdvantageSettings(TRAINING.gamma, TRAINING.lam, whiten_rewards=False)
    # One minibatch is all of a rollout, which its updates read themselves then, as the job has it.
    loss_fn = ppo.ppo_loss_fn(
        config,
        config,
        clip=TRAINING.clip,
        value_clip=TRAINING.value_clip,
        value_coef=TRAINING.value_coef,
        temperature=1.0,
        chunk=CHUNK,
        experience_of=partial(ppo.make_experience, settings=settings, advantage=advantage),
    )
    read = jax.jit(partial(read_rollout, settings=settings, pad_id=PAD))
    rewards = TokenRewards(RewardModel(Model(config, reward), None, "", "", EOS, Closing(setting.EOS)), PAD)
    before_updates, later = jax.jit(partial(unread, scalar=("value",))), jax.jit(for_later)

    def rollout(sampled: Generation) -> Unread:
        where = {"prompts_BP": batch["tokens"], "prompt_lengths_B": batch["lengths"]}
        readings = read({"reference": Model(config, reference)}, {}, sampled=sampled, **where)
        scored = rewards([], sampled=sampled, **where)()
        return before_updates(readings, sampled, scored, {"kl_coef": np.float32(TRAINING.kl_coef)})

    check = _check(loss_fn, params, rollout(to_global(_given(job, len(prompts)), mesh)))
    state, step = create(params, tx, 0), make_train_step(loss_fn, tx, divided=False)
    del params
    sampler = _sampler(config, mesh, R, Sampling())
    for i in range(job.repetitions):
        session.turn()
        sampler.load(state.params["policy"])
        sampled = sampler.generate(batch["tokens"], batch["lengths"], batch["rows"], jax.random.key(i))
        sampler.close()
        found = rollout(sampled)
        for _ in range(TRAINING.ppo_epochs):
            state, metrics = step(state, found)
            found = later(found, metrics[READ])
        jax.block_until_ready(state)
        session.note(**check)
    session.turn()


def _check(loss_fn: LossFn, params: dict[str, Params], experience: Any) -> dict[str, Any]:
    """Loss and gradient norm of the first update on given responses."""

    def mean_loss(params: dict[str, Params]) -> Any:
        loss = loss_fn(params, experience)["loss"]
        return loss.sum / loss.weight

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    squares = sum(float((x.astype(np.float32) ** 2).sum()) for x in jax.tree.leaves(gradient))
    return {"loss": loss, "grad_norm": squares**0.5}


def _given(job: Job, count: int) -> Generation:
    """Fixed responses that count as ended, so that their scores are used as they are."""
    R = job.size.response
    tokens_BR = np.array(setting.responses(job.size, count), np.int32)
    full_B, yes_B = np.full(count, R, np.int32), np.ones(count, bool)
    return Generation(
        tokens_BR, np.zeros((count, R), np.float32), np.ones((count, R), bool), full_B, yes_B, np.int32(R)
    )


def _load(folder: str, mesh: Any) -> tuple[ModelConfig, Params]:
    found, params = import_folder.load(folder, mesh)
    return found.config, params


def _optimizer(repetitions: int) -> Any:
    return make_optimizer(
        learning_rate=TRAINING.learning_rate,
        schedule="constant",
        total_steps=repetitions,
        b1=TRAINING.b1,
        b2=TRAINING.b2,
        eps=TRAINING.eps,
        max_grad_norm=TRAINING.max_grad_norm,
    )


def _sampler(config: ModelConfig, mesh: Any, new: int, sampling: Sampling) -> DecodeGenerator:
    return DecodeGenerator(config, mesh, max_new_tokens=new, sampling=sampling, end_ids=(NO_EOS,), pad_id=PAD)


def _prompt_batch(rows: list[list[int]]) -> dict[str, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int32)
    P = bucket(lengths.max(), 8)
    tokens = np.array([[PAD] * (P - len(row)) + row for row in rows], np.int32)
    return {"tokens": tokens, "lengths": lengths, "rows": np.arange(len(rows), dtype=np.int32)}
