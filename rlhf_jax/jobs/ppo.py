"""Proximal policy optimisation against a reward model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, row_indices
from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.special_ids import end_ids, fill_id
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, fits, hints, inputs, loading, ppo_models, setup
from rlhf_jax.jobs import plan as planning
from rlhf_jax.jobs.ppo_evaluation import make_evaluation
from rlhf_jax.jobs.ppo_world import ORDER, ROLLOUT, World, generator_of, key_of, prompt_arrays
from rlhf_jax.models.model import Model
from rlhf_jax.objectives.kl import adaptive_kl_coef
from rlhf_jax.objectives.reduce import Mean, add, value
from rlhf_jax.parallel.arrays import check_batch, host_rows, to_global
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.rollout.experience import make_experience
from rlhf_jax.training.average import averaged
from rlhf_jax.training.clock import done_at
from rlhf_jax.training.state import TrainState, create, joined
from rlhf_jax.training.step import TrainStep, check_microbatches
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export, the policy of the best evaluation."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    _check(config, mesh)
    lora = adapters.settings(config.lora)
    folder = loading.resolve(config.model.policy)
    tokenizer_from = loading.tokenizer_folder(folder)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.SFT)
    inputs.keep_date(config, workdir, tokenizer)
    ends = end_ids(tokenizer, tokenizer_from, config.data.template, handling_of(config.data))
    split = inputs.prompts(config.data, tokenizer, config.seed, hints.FARM)
    models = ppo_models.describe(config, folder, tokenizer, [*split.train_rows, *split.eval_rows], lora)
    model, base = models.networks.policy, loading.base_of(folder)
    setup.describe(workdir, model, tokenizer, tokenizer_from, adapter=lora, base=base)
    P = bucket(max(int(split.train.lengths.max()), int(split.eval.lengths.max())), 8)
    plan = fits.prepare(partial(planning.ppo, models.networks, P, fill_id(tokenizer)), config, mesh)
    starts, reward = ppo_models.load(config, models, tokenizer, lora, mesh)
    world = World(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        configs={"policy": model, "value": models.networks.value},
        frozen=fits.placed({name: start.frozen for name, start in starts.items()}, plan.frozen),
        reference=Model(model, starts["policy"].whole),
        rewards=ppo_models.rewards_of(models, reward, tokenizer, mesh),
        generator=generator_of(config, model, mesh, tokenizer, ends),
        prompts=split.train,
        rows=split.train_rows,
        P=P,
    )
    # The train step donates what it is given; the reference and the reward model must outlive it.
    params = jax.tree.map(lambda x: x.copy(), {name: start.trained for name, start in starts.items()})
    state = create(
        fits.placed(params, plan.state.params),
        plan.optimizer,
        config.seed,
        extra={"kl_coef": float(config.kl_coef)},
    )
    best = fit.fit(
        config,
        workdir,
        state,
        make_iteration(world, plan.step),
        make_evaluation(world, workdir, split.eval, split.eval_rows),
        steps=config.steps,
        inputs=inputs.digests(
            config.data.train,
            config.data.eval,
            *loading.sources(folder, config.model.adapter),
            *loading.sources(reward.folder, config.model.reward_adapter),
        ),
        show=("objective/scores", "objective/kl", "completions/mean_length", "eval/scores"),
        eval_first=True,
        flops=float(plan.flops) * planning.updates_per_iteration(config),
    )
    exported = joined(world.frozen, averaged(best.params, best.opt_state))["policy"]
    setup.export(workdir, model, exported, tokenizer, tokenizer_from, base=base, ends=ends)


def make_iteration(
    world: World, step: TrainStep
) -> Callable[[TrainState, int], tuple[TrainState, dict, Any]]:
    """`iterate(state, i)`: rollout i, its scores, and `epochs` passes over it in minibatches."""
    c = world.config
    mine = host_rows(c.rollout.batch_size, world.mesh)
    settings = planning.ppo_settings(c)
    read = planning.reading_program(settings, fill_id(world.tokenizer))
    experience_of = jax.jit(partial(make_experience, settings=settings))
    # Cut as the step was compiled for; left to itself XLA may leave minibatches on every device whole.
    rows = NamedSharding(world.mesh, PartitionSpec(BATCH_AXES))
    shuffled = jax.jit(_shuffled, static_argnums=2, out_shardings=rows)
    overall = jax.jit(_overall)

    def iterate(state: TrainState, i: int) -> tuple[TrainState, dict, Any]:
        index_B = row_indices(i, c.rollout.batch_size, len(world.prompts), c.seed)
        batch = to_global(prompt_arrays(world, world.prompts, index_B, mine), world.mesh)
        models = world.models(state.params)
        world.generator.load(models.policy.params)
        key = key_of(state.key, ROLLOUT, i)
        sampled = world.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        world.generator.close()
        rolled_out = done_at(sampled.lengths_B)
        where = {"prompts_BP": batch["tokens"], "prompt_lengths_B": batch["lengths"]}
        score = world.rewards([world.rows[i] for i in index_B], sampled=sampled, **where)
        # The devices are given this first, so that a reward model which reads text can be prepared for meanwhile.
        readings = read(models=models, sampled=sampled, **where)
        scores = score()
        experience, metrics = experience_of(
            readings, batch["lengths"], sampled, scores, state.extra["kl_coef"]
        )
        scored = done_at(metrics)
        found = []
        for epoch in range(c.epochs):
            order_key = key_of(state.key, ORDER, i * c.epochs + epoch)
            for minibatch in shuffled(order_key, experience, c.rollout.batch_size // c.minibatch_size):
                state, update = step(state, minibatch, world.frozen)
                found.append(update)
        metrics |= overall(found)
        updated = done_at(found[-1])
        metrics |= {
            "timing_s/rollout": rolled_out,
            "timing_s/score": scored,
            "timing_s/update": updated,
        }
        if c.adaptive_kl:
            kl_coef = adaptive_kl_coef(
                state.extra["kl_coef"],
                metrics["objective/kl"],
                target=c.target_kl,
                responses=c.rollout.batch_size,
                horizon=c.kl_horizon,
            )
            state = state.replace(extra={"kl_coef": kl_coef})
        return state, metrics, experience

    return iterate


def _shuffled(key: jax.Array, experience: Any, count: int) -> list[Any]:
    """`count` minibatches of rows in a fresh order."""
    rows = experience.prompt_lengths_B.shape[0]
    order = jax.random.permutation(key, rows).reshape(count, -1)
    return [jax.tree.map(lambda x, chosen=chosen: x[chosen], experience) for chosen in order]


def _overall(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of an iteration from those of its updates.

    Means are over all tokens or rows of the updates together, of which minibatches have unequal numbers. Of rates and
    norms of parameters it is the last, of non-finite updates how many, of what else is one number an update the mean.
    """

    def one(name: str) -> Any:
        values = [update[name] for update in found]
        if isinstance(values[0], Mean):
            return value(reduce(add, values))
        if name == "nonfinite":
            return sum(values)
        return values[-1] if name.startswith(("learning_rate", "param_norm")) else sum(values) / len(values)

    return {name: one(name) for name in found[0]}


def _check(config: ConfigDict, mesh: Mesh) -> None:
    rollout = config.rollout.batch_size
    check_batch(rollout, mesh, field="rollout.batch_size")
    check_batch(config.minibatch_size, mesh, field="minibatch_size")
    check_microbatches(config.minibatch_size, config.microbatches, mesh)
    if rollout % config.minibatch_size:
        raise UserError(
            f"minibatch_size: {config.minibatch_size} does not divide rollout.batch_size={rollout}"
        )
    if config.adaptive_kl and config.kl_horizon < rollout:
        raise UserError(
            f"kl_horizon: {config.kl_horizon:g} responses are fewer than the {rollout} of one rollout, so that kl_coef "
            f"would swing; use ten rollouts ({10 * rollout}) or more"
        )
    fit.tell_warmup(config, config.steps)
