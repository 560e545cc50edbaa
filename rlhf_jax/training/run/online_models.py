"""The networks of an online method: planned from shapes before any weight is read, and opened as one actor.

The policy is trained, and so are further networks with a scalar head, such as a value model. A reference, which is the
policy as it starts, other language models that are only read, and reward models stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model
from rlhf_jax.models.placement import planned_params
from rlhf_jax.parallel.host_memory import check_host_memory, to_host
from rlhf_jax.rollout.experience import Actor, RolloutSettings, reading_program
from rlhf_jax.rollout.rewards import Rewards
from rlhf_jax.rollout.rollout_shapes import RolloutShapes
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.loop.program_costs import bytes_per_device
from rlhf_jax.training.loop.state import planned_state
from rlhf_jax.training.loop.step import Losses, make_train_step
from rlhf_jax.training.optimizers.optimizer import map_moments, partitioned
from rlhf_jax.training.run import load_models, reward_models
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Phase, Plan, batch_shapes, optimizer_of
from rlhf_jax.training.run.online import models_wait, moments_wait, rows_of_experience, updates_per_iteration
from rlhf_jax.training.run.session import Session


class Scorer(NamedTuple):
    """A reward model as the plan sees it.

    Attributes:
      model: as it was described, without parameters.
      closing: what it reads behind a response, see `rollout.rewards`.
      text_length: tokens of the rows that it reads, where these are not the policy's own tokens; else 0.
    """

    model: Model
    closing: tuple[int, ...] = (0,)
    text_length: int = 0


class OnlineModels(NamedTuple):
    """The settings of an online method's models, before any weight is read.

    Attributes:
      scorers: the reward models on the devices.
      scalar: what is trained beside the policy, by name; each has a scalar head.
      of_reward: the names among `scalar` whose trunk is the first reward model's, and not the policy's.
      read: language models that are read beside policy and reference, by name.
      of_loss: the names among `read` that the loss reads, too; its parameters have them beside what is trained. Of
        `REFERENCE` only those that the policy trains, to be laid over the policy's.
      marker: see `RolloutSettings`.
      carried: shapes, with shardings, of large arrays that the method carries from one iteration to the next.
    """

    policy: ModelConfig
    scorers: tuple[Scorer, ...] = ()
    scalar: Mapping[str, ModelConfig] = MappingProxyType({})
    of_reward: tuple[str, ...] = ()
    read: Mapping[str, ModelConfig] = MappingProxyType({})
    of_loss: tuple[str, ...] = ()
    marker: int = -1
    carried: Any = ()


# The name of the policy as it starts, among what is read and what the loss reads.
REFERENCE = "reference"


def kept_dtype(page: ConfigDict) -> str:
    """Dtype in which an online run keeps the weights of models that it does not train, such as a reward model.

    It is that of matrix products, to which these weights would be rounded at every use anyway. With an adapter it is
    what the page says, since models then share weights.
    """
    return page.lora.base_dtype if page.lora.rank else page.model.dtype


def reference_of(policy: Start, page: ConfigDict) -> Start:
    """The policy as it starts, arrays or shapes, as it is kept beside the one that is trained; see `kept_dtype`.

    What need not be rounded are the policy's own arrays.
    """
    return Start(
        policy.frozen, policy.trained if page.lora.rank else stored(policy.trained, kept_dtype(page))
    )


LossesOf = Callable[[Mapping[str, ModelConfig], ConfigDict], Losses]


def rollout_settings(config: ConfigDict, marker: int = -1) -> RolloutSettings:
    """Returns the numbers of a page that every rollout needs, and the column of a marker."""
    rollout = config.rollout
    return RolloutSettings(
        rollout.temperature,
        config.kl_estimator,
        # A method that no score teaches has none to put in the place of another.
        config.get("missing_eos_penalty", 0.0),
        config.logprob_chunk,
        rollout.get("correction", "none"),
        rollout.get("correction_cap", 1.0),
        marker,
        rollout.microbatches,
    )


def plan_online(
    models: OnlineModels,
    loss: LossesOf,
    row: Any,
    P: int,
    pad_id: int,
    config: ConfigDict,
    mesh: Mesh,
    *,
    rates: Mapping[str, float] = MappingProxyType({}),
    rows: int = 0,
    provided: int = 0,
    unread: bool = False,
) -> Plan:
    """Plans an online method from shapes: the update, and the programs of sampling, reading and scoring.

    loss: (settings of the networks it reads by name, page) -> the loss of a minibatch of experience.
    row: the shapes of one row of experience.
    P: columns of a batch of prompts.
    rates: learning rates of networks beside the policy.
    rows: of experience that a rollout gives; 0 means one for every response.
    provided: responses of each prompt that are read and scored beside those that are sampled.
    unread: whether updates read a rollout themselves, so that beforehand only what is not trained does.
    """
    if config.rollout.offload != "none":
        check_host_memory(mesh, "rollout.offload", config.rollout.offload, "none")
    # The page may be another than the models were described for: the advice about memory plans changed ones.
    computed = partial(load_models.computed_as, model=config.model)
    lora = load_models.lora_settings(config.lora)
    policy_config = computed(models.policy)
    scalar = {name: computed(c) for name, c in models.scalar.items()}
    in_loss = {name: computed(models.read[name]) for name in models.of_loss if name != REFERENCE}
    loss_fn = loss({"policy": policy_config, **scalar, **in_loss}, config)
    tx = optimizer_by_network(config, {"policy": config.optimizer.learning_rate, **rates}, rows)
    policy = load_models.planned_start(policy_config, lora, mesh)
    beside_it = {name: load_models.planned_start(c, lora, mesh, scalar=True) for name, c in scalar.items()}
    planned = {"policy": policy, **beside_it}
    state = planned_state({name: start.trained for name, start in planned.items()}, tx)
    frozen = {name: start.frozen for name, start in planned.items()}
    dtype, reference = kept_dtype(config), reference_of(policy, config)
    rewards = [reward_models.planned(scorer.model, mesh, dtype) for scorer in models.scorers]
    read = {
        name: Model(computed(c), stored(planned_params(c, mesh), dtype)) for name, c in models.read.items()
    }
    # What is frozen of the policy is the reference's, too, and what is frozen of a network that starts from a reward
    # model's trunk is that model's; so the reference costs what is trained of the policy, once more.
    kept = bytes_per_device(reference.trained)
    # An ensemble's members are stacked, of which one that is taken out is a copy.
    alone = bool(models.scorers) and not models.scorers[0].model.reading.members
    common = bytes_per_device([frozen[name] for name in models.of_reward]) if alone else 0
    others = bytes_per_device([m.params for m in read.values()])
    scoring_models = bytes_per_device([m.params for m in rewards])
    # Old and new stand side by side until the iteration ends.
    carried = 2 * bytes_per_device(models.carried)
    behind = config.rollout.staleness * bytes_per_device(policy.trained)
    beside = max(0, kept + behind + scoring_models + others + carried - common)
    R, N, settings = (
        config.rollout.max_new_tokens,
        config.rollout.samples,
        rollout_settings(config, models.marker),
    )
    sizes = (mesh, config.rollout.batch_size, P, R, settings.temperature, pad_id)
    cut = (config.rollout.microbatches, config.rollout.tensor)
    rollout, whole_groups = RolloutShapes(*sizes, N, *cut), RolloutShapes(*sizes, N + provided, *cut)

    def reading() -> jax.stages.Traced:
        whole, first = (Model(policy_config, x.whole) for x in (policy, reference))
        prompts = whole_groups.prompts(N + provided)
        values = {name: Model(scalar[name], start.whole) for name, start in beside_it.items()}
        return reading_program(settings, pad_id).trace(
            language=({} if unread else {"policy": whole}) | {REFERENCE: first, **read},
            scalar={} if unread else values,
            prompts_BP=prompts["tokens"],
            prompt_lengths_B=prompts["lengths"],
            sampled=whole_groups.sampled(policy_config),
        )

    own = bytes_per_device((state.params, state.opt_state))
    alive = own + bytes_per_device(frozen) + beside
    waiting = waiting_bytes(config, state.opt_state, kept + others + scoring_models)
    away, models_away = sum(waiting.values()), waiting.get(MODELS, 0)
    # Reading gets policy and reference as arguments: so `beside` counts no copy for the reference there, and what two
    # of its arguments share counts once.
    twice = [x for name, x in frozen.items() if name not in models.of_reward]
    aside, shared = bytes_per_device(state.opt_state) + beside - kept - others, bytes_per_device(twice)
    if unread:
        # Of the trained networks it has as arguments only what the reference shares with the policy.
        aside, shared = alive - kept - others, bytes_per_device(frozen["policy"])
    # Of what waits, it reads all but the reward models.
    aside -= away - models_away + (scoring_models if models_away else 0)
    sampling = partial(rollout.trace_sampling, policy_config, config.rollout.dtype)
    phases = [
        Phase("sampling", sampling, alive - away, mesh=rollout.sampling),
        Phase("reading", reading, aside, shared=shared),
    ]
    for i, (scorer, reward) in enumerate(zip(models.scorers, rewards, strict=True)):
        name = f"scoring {i + 1}" if len(rewards) > 1 else "scoring"
        trace = partial(whole_groups.trace_scoring, reward, policy_config, scorer.closing, scorer.text_length)
        own = 0 if models_away else bytes_per_device(reward.params)
        phases.append(Phase(name, trace, max(0, alive - away - own)))
    # Minibatches hold unequal numbers of tokens, so their sums are added up before anything is divided.
    step = make_train_step(loss_fn, tx, microbatches=config.microbatches, divided=False)
    batch = batch_shapes(mesh, config.minibatch_size, row)
    # What the loss reads is an argument of the step, and so no longer beside it.
    arguments = {
        name: reference.trained if name == REFERENCE else read[name].params for name in models.of_loss
    }
    beside -= models_away or bytes_per_device(arguments)
    frozen |= arguments
    # Models come to be read, once more for a loss that reads them, and nothing of them has changed; moments go back.
    again = bytes_per_device(arguments) if models_away else 0
    moved = models_away + again + 2 * waiting.get(MOMENTS, 0)
    about = {"updates": updates_per_iteration(config, rows), "waiting": waiting, "moved": moved}
    return Plan(loss_fn, tx, step, state, batch, frozen, beside, tuple(phases), **about)


# What `Plan.waiting` has: models that nobody trains, and the optimizer's moments.
MODELS, MOMENTS = "other models", "optimizer"


def waiting_bytes(config: ConfigDict, opt_state: Any, models: int) -> dict[str, int]:
    """Bytes per device that wait in the hosts' memory, by name, as `rollout.offload` says. models: of all that could.

    Raises UserError where they cannot.
    """
    found = {}
    if models_wait(config):
        if config.lora.rank:
            raise UserError(
                f"rollout.offload: {config.rollout.offload}, but with lora.rank={config.lora.rank} models share their "
                "weights with those that are trained, which stay; use optimizer or none"
            )
        found[MODELS] = models
    if moments_wait(config):
        moments: list[Any] = []
        map_moments(moments.append, opt_state)
        found[MOMENTS] = bytes_per_device(moments)
    return found


def optimizer_by_network(config: ConfigDict, rates: Mapping[str, float], rows: int = 0) -> Any:
    """One optimizer for each network, alike but for the learning rate; the schedule moves once an iteration.

    rows: of experience that a rollout gives; 0 means one for every response.
    """
    updates = updates_per_iteration(config, rows or rows_of_experience(config))
    return partitioned(
        {
            name: optimizer_of(config.optimizer, config.steps, updates_per_step=updates, learning_rate=rate)
            for name, rate in rates.items()
        }
    )


def open_actor(
    session: Session,
    models: OnlineModels,
    params: Params,
    rewards: Rewards,
    pad_id: int,
    *,
    scalar: Mapping[str, Params] = MappingProxyType({}),
    read: Mapping[str, Model] = MappingProxyType({}),
) -> tuple[Actor, dict[str, Start]]:
    """Makes the actor of a run, and says how its trained networks start, from weights that have been read.

    params: the policy's, whose first state is the reference. scalar: those of the networks trained beside it.
    read: language models that are read beside policy and reference.
    """
    c, mesh = session.config, session.mesh
    # Every adapter is drawn with a seed of its own, so that none is a copy of the policy's.
    starts = {
        name: load_models.start_network(config, given, session.lora, mesh, c.seed + i)
        for i, (name, config, given) in enumerate(
            [("policy", models.policy, params), *((n, models.scalar[n], x) for n, x in scalar.items())]
        )
    }
    # No copy here: the driver copies what is trained, and these arrays stay the policy's first ones.
    reference = Model(models.policy, reference_of(starts["policy"], c).whole)
    frozen = {REFERENCE: reference, **read}
    if models_wait(c):
        frozen = jax.block_until_ready(to_host(frozen))
    generator = DecodeGenerator(
        models.policy,
        mesh,
        max_new_tokens=c.rollout.max_new_tokens,
        sampling=Sampling(c.rollout.temperature),
        end_ids=session.ends,
        pad_id=pad_id,
        dtype=c.rollout.dtype,
        microbatches=c.rollout.microbatches,
        tensor=c.rollout.tensor,
    )
    trained = {"policy": models.policy, **models.scalar}
    settings = rollout_settings(c, models.marker)
    return Actor(trained, tuple(models.scalar), frozen, generator, rewards, settings, pad_id), starts
