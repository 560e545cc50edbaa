"""Limits that a model itself sets: which tokens it has embeddings of, and how long its rows may be."""

import dataclasses

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model, RewardModel, check_embedded, longest_row

CONFIG = ModelConfig(vocab_size=61, width=32, layers=1, heads=4, kv_heads=2, head_dim=8, ff=48)


def test_the_first_token_without_an_embedding_is_refused():
    reward = RewardModel(Model(CONFIG, {}), None, "runs/rm", "brief", "eos", None)
    check_embedded(reward, 60)
    with pytest.raises(
        UserError, match=r"runs/rm: the template brief writes token 61, but there are .* of 61;"
    ):
        check_embedded(reward, 61)


def test_only_learned_positions_end():
    learned = dataclasses.replace(CONFIG, positions="learned", max_positions=64)
    assert longest_row(learned) == 64
    assert longest_row(dataclasses.replace(CONFIG, max_positions=64)) == 2**31 - 1
