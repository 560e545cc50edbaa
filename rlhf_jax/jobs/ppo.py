"""Proximal policy optimisation against a reward model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, pad_prompts, row_indices
from rlhf_jax.data.tokenization import Prompts, decode, load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, fits, hints, inputs, loading, setup
from rlhf_jax.jobs import plan as planning
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, value_from_reward
from rlhf_jax.models.lora import stored
from rlhf_jax.objectives.kl import ESTIMATORS, adaptive_kl_coef
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.rollout.experience import Models, rollout_metrics, score_responses
from rlhf_jax.rollout.generator import DecodeGenerator
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.average import averaged
from rlhf_jax.training.state import TrainState, create, joined
from rlhf_jax.training.step import TrainStep, check_microbatches
from rlhf_jax.training.workdir import prepare, write_samples

ROLLOUT, ORDER, EVALUATION = 0, 1, 2  # What a key is folded with first: the streams of randomness of a run.


class World(NamedTuple):
    """All that stays the same during a run."""

    config: ConfigDict
    mesh: Mesh
    model: ModelConfig
    tokenizer: Any
    frozen: dict[str, Params]
    reference: Params
    reward: Params
    reward_mean: float
    generator: DecodeGenerator
    prompts: Prompts
    P: int

    def models(self, trained: dict[str, Params]) -> Models:
        params = joined(self.frozen, trained)
        return Models(params["policy"], params["value"], self.reference, self.reward)


def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export, the policy of the best evaluation."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    _check(config, mesh)
    lora = adapters.settings(config.lora)
    started_from, rewarded_by = loading.resolve(config.model.policy), loading.resolve(config.model.reward)
    tokenizer_from = loading.tokenizer_folder(started_from)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.SFT)
    split = inputs.prompts(config.data, tokenizer, config.seed, hints.FARM)
    adapter, tokens = config.model.adapter, len(tokenizer)
    sources = (started_from, hints.SFT, adapter), (rewarded_by, hints.REWARD_MODEL, "")
    policy, reward = (
        loading.describe_model(folder, config.model, made_by, tokens=tokens, adapter=laid)
        for folder, made_by, laid in sources
    )
    _check_models(config, policy, reward)
    model, base = adapters.model_of(policy, lora), loading.base_of(started_from)
    setup.describe(workdir, model, tokenizer, tokenizer_from, adapter=lora, base=base)
    P = bucket(max(int(split.train.lengths.max()), int(split.eval.lengths.max())), 8)
    plan = fits.prepare(partial(planning.ppo, model, P, tokenizer.pad_token_id), config, mesh)
    policy_params, reward_params = (
        loading.load_model(
            folder, config.model, mesh, made_by, tokens=tokens, adapter=laid, base_dtype=lora.base_dtype
        )[1]
        for folder, made_by, laid in sources
    )
    reward_params = stored(adapters.plain(reward.config, reward_params), lora.base_dtype)
    starts = {
        "policy": adapters.start(model, policy_params, lora, mesh, config.seed),
        "value": adapters.start(model, value_from_reward(reward_params), lora, mesh, config.seed + 1),
    }
    world = World(
        config=config,
        mesh=mesh,
        model=model,
        tokenizer=tokenizer,
        frozen=fits.placed({name: start.frozen for name, start in starts.items()}, plan.frozen),
        reference=starts["policy"].whole,
        reward=reward_params,
        reward_mean=reward.reward_mean,
        generator=_generator(config, model, mesh, tokenizer, config.rollout.temperature),
        prompts=split.train,
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
            *loading.sources(started_from, adapter),
            *loading.sources(rewarded_by),
        ),
        show=("objective/scores", "objective/kl", "completions/mean_length", "eval/scores"),
        eval_first=True,
    )
    exported = joined(world.frozen, averaged(best.params, best.opt_state))["policy"]
    setup.export(workdir, model, exported, tokenizer, tokenizer_from, base=base)


def make_iteration(
    world: World, step: TrainStep
) -> Callable[[TrainState, int], tuple[TrainState, dict, Any]]:
    """`iterate(state, i)`: rollout i, its scores, and `epochs` passes over it in minibatches."""
    c = world.config
    mine = host_rows(c.rollout.batch_size, world.mesh)
    settings = planning.ppo_settings(c)
    experience_of = planning.scoring_program(world.model, settings, world.tokenizer.pad_token_id)
    # Cut as the step was compiled for; left to itself XLA may leave minibatches on every device whole.
    rows = NamedSharding(world.mesh, PartitionSpec(BATCH_AXES))
    shuffled = jax.jit(_shuffled, static_argnums=2, out_shardings=rows)

    def iterate(state: TrainState, i: int) -> tuple[TrainState, dict, Any]:
        index_B = row_indices(i, c.rollout.batch_size, len(world.prompts), c.seed)
        batch = to_global(_prompt_arrays(world, world.prompts, index_B, mine), world.mesh)
        models = world.models(state.params)
        world.generator.load(models.policy)
        key = _stream(state.key, ROLLOUT, i)
        sampled = world.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        world.generator.close()
        experience, metrics = experience_of(
            models=models,
            prompts_BP=batch["tokens"],
            prompt_lengths_B=batch["lengths"],
            sampled=sampled,
            kl_coef=state.extra["kl_coef"],
            reward_mean=world.reward_mean,
        )
        found = []
        for epoch in range(c.epochs):
            order_key = _stream(state.key, ORDER, i * c.epochs + epoch)
            for minibatch in shuffled(order_key, experience, c.rollout.batch_size // c.minibatch_size):
                state, update = step(state, minibatch, world.frozen)
                found.append(update)
        metrics |= {name: _overall(name, found) for name in found[0]}
        if c.adaptive_kl:
            kl_coef = adaptive_kl_coef(
                state.extra["kl_coef"], metrics["objective/kl"], target=c.target_kl, k_beta=c.kl_horizon
            )
            state = state.replace(extra={"kl_coef": kl_coef})
        return state, metrics, experience

    return iterate


def make_evaluation(
    world: World, workdir: str, prompts: Prompts, rows: list[dict]
) -> Callable[[TrainState, int], dict[str, float]]:
    """`evaluate(state, step)`: the same prompts with the same randomness every time; writes the sample table."""
    c = world.config
    ways = world.mesh.shape["data"] * world.mesh.shape["fsdp"]
    B = -(-len(prompts) // ways) * ways  # the last row is repeated until the mesh divides the batch
    index_B = np.minimum(np.arange(B), len(prompts) - 1)
    batch = to_global(_prompt_arrays(world, prompts, index_B, host_rows(B, world.mesh)), world.mesh)

    @jax.jit
    def score(models: Models, batch: dict, sampled: Generation) -> tuple[dict, dict]:
        # Arguments, not captured: what a compiled function captures becomes part of the program, and arrays
        # that lie on several processes cannot.
        tokens_BP, lengths_B, pad_id = batch["tokens"], batch["lengths"], world.tokenizer.pad_token_id
        s = score_responses(
            world.model,
            models,
            tokens_BP,
            lengths_B,
            sampled,
            planning.ppo_settings(world.config),
            world.reward_mean,
            pad_id,
        )
        s, sampled = jax.tree.map(lambda x: x[: len(prompts)] if x.ndim else x, (s, sampled))
        return s, rollout_metrics(s, sampled, planning.ppo_settings(world.config))

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        models = world.models(averaged(state.params, state.opt_state))
        world.generator.load(models.policy)
        key = _stream(jax.random.key(c.seed), EVALUATION, 0)
        sampled = world.generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        world.generator.close()
        scored, metrics = score(models, batch, sampled)
        tokens_BR, lengths_B, scores_B = gather((sampled.tokens_BR, sampled.lengths_B, scored["scores_B"]))
        write_samples(
            workdir,
            step,
            (
                {
                    **row,
                    "output": decode(world.tokenizer, tokens_BR[b, : lengths_B[b]]),
                    "score": float(scores_B[b]),
                }
                for b, row in enumerate(rows)
            ),
        )
        found = {name.removeprefix("objective/"): float(x) for name, x in metrics.items()}
        return found | {"rlhf_reward": found["scores"] - float(state.extra["kl_coef"]) * found["kl"]}

    return evaluate


def _shuffled(key: jax.Array, experience: Any, count: int) -> list[Any]:
    """`count` minibatches of rows in a fresh order."""
    rows = experience.prompt_lengths_B.shape[0]
    order = jax.random.permutation(key, rows).reshape(count, -1)
    return [jax.tree.map(lambda x, chosen=chosen: x[chosen], experience) for chosen in order]


def _overall(name: str, found: list[dict]) -> Any:
    """A metric of an iteration from those of its updates: the last rate, any non-finite, else the mean."""
    values = [update[name] for update in found]
    if name == "nonfinite":
        return sum(values)
    return values[-1] if name.startswith(("learning_rate", "param_norm")) else sum(values) / len(values)


def _prompt_arrays(world: World, prompts: Prompts, index_B: np.ndarray, mine: slice | np.ndarray) -> dict:
    arrays = pad_prompts(prompts, index_B, world.P, world.tokenizer.pad_token_id, rows=mine)
    return arrays | {"rows": np.arange(len(index_B), dtype=np.int32)[mine]}


def _stream(key: jax.Array, stream: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, stream), number)


def _generator(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, tokenizer: Any, temperature: float
) -> DecodeGenerator:
    return DecodeGenerator(
        model,
        mesh,
        max_new_tokens=config.rollout.max_new_tokens,
        sampling=Sampling(temperature),
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        dtype=config.rollout.dtype,
    )


def _check(config: ConfigDict, mesh: Mesh) -> None:
    rollout = config.rollout.batch_size
    check_batch(rollout, mesh, field="rollout.batch_size")
    check_batch(config.minibatch_size, mesh, field="minibatch_size")
    check_microbatches(config.minibatch_size, config.microbatches, mesh)
    if rollout % config.minibatch_size:
        raise UserError(
            f"minibatch_size: {config.minibatch_size} does not divide rollout.batch_size={rollout}"
        )
    if config.steps < 1:
        raise UserError(f"steps: {config.steps}; use 1 or more rollouts")
    if config.epochs < 1:
        raise UserError(f"epochs: {config.epochs}; use 1 or more passes over each rollout")
    if config.kl_estimator not in ESTIMATORS:
        raise UserError(f"kl_estimator: {config.kl_estimator!r}; use one of {', '.join(ESTIMATORS)}")
    if config.rollout.temperature <= 0:
        raise UserError(
            f"rollout.temperature: {config.rollout.temperature}; PPO samples, so use a positive one"
        )


def _check_models(config: ConfigDict, policy: Any, reward: Any) -> None:
    if policy.is_scalar:
        raise UserError(f"model.policy: {config.model.policy} is a reward model; give a language model")
    if not reward.is_scalar:
        raise UserError(
            f"model.reward: {config.model.reward} is a language model; give what reward_model exported"
        )
    if policy.config.vocab_size != reward.config.vocab_size:
        raise UserError(
            f"model.reward: vocabulary of {reward.config.vocab_size}, but the policy's has "
            f"{policy.config.vocab_size}; both must read the same tokens"
        )
