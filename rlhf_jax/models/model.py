"""A model as one thing: the settings that its parameters were made for, and the parameters.

Whoever computes with a model takes it whole. So a reward model of another size, rope base or epsilon than the policy's
is never run with the policy's settings.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params


@partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("config",))
@dataclasses.dataclass(frozen=True)
class Model:
    """A tree to jax, whose leaves are the parameters: compiled functions take it, and compile once a config.

    params: arrays, or shapes with shardings before any weight is read.
    """

    config: ModelConfig
    params: Params
