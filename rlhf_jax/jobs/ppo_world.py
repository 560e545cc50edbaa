"""What PPO's iterations and its evaluation share: models, prompts, generator, and the streams of randomness."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import pad_prompts
from rlhf_jax.data.special_ids import fill_id
from rlhf_jax.data.tokenization import Prompts
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.model import Model
from rlhf_jax.rollout.experience import Models
from rlhf_jax.rollout.generator import DecodeGenerator
from rlhf_jax.rollout.rewards import Rewards
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.training.state import joined

ROLLOUT, ORDER, EVALUATION = 0, 1, 2  # What a key is folded with first: the streams of randomness of a run.


class World(NamedTuple):
    """All that stays the same during a run."""

    config: ConfigDict
    mesh: Mesh
    tokenizer: Any
    configs: dict[str, ModelConfig]  # of policy and value model
    frozen: dict[str, Params]  # likewise
    reference: Model
    rewards: Rewards
    generator: DecodeGenerator
    prompts: Prompts
    rows: tuple[dict, ...]  # the records of the prompts
    P: int

    def models(self, trained: dict[str, Params]) -> Models:
        params = joined(self.frozen, trained)
        policy, value = (Model(self.configs[name], params[name]) for name in ("policy", "value"))
        return Models(policy, value, self.reference)


def generator_of(
    config: ConfigDict, model: ModelConfig, mesh: Mesh, tokenizer: Any, ends: tuple[int, ...]
) -> DecodeGenerator:
    return DecodeGenerator(
        model,
        mesh,
        max_new_tokens=config.rollout.max_new_tokens,
        sampling=Sampling(config.rollout.temperature),
        end_ids=ends,
        pad_id=fill_id(tokenizer),
        dtype=config.rollout.dtype,
    )


def prompt_arrays(world: World, prompts: Prompts, index_B: np.ndarray, mine: slice | np.ndarray) -> dict:
    """This process's part of a batch of prompts, as the generator takes them."""
    arrays = pad_prompts(prompts, index_B, world.P, fill_id(world.tokenizer), rows=mine)
    return arrays | {"rows": np.arange(len(index_B), dtype=np.int32)[mine]}


def key_of(key: jax.Array, stream: int, number: int) -> jax.Array:
    """The number-th key of a stream."""
    return jax.random.fold_in(jax.random.fold_in(key, stream), number)
