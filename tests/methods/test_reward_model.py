"""What a reward model is made of beside its training: the head it starts with, its rows, and what is said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_losses
import tiny_words
from method_suite import MethodSuite
from tiny_words import CONFIG

from rlhf_jax.data.batches import Pairs, Sequences
from rlhf_jax.methods import reward_model
from rlhf_jax.training.run import load_models
from rlhf_jax.training.run.session import Network, Session


class TestRewardModel(MethodSuite):
    job = "reward_model"
    steps = {"epochs": 1.3}

    def case(self):
        return tiny_losses.cases()["reward_model"]


class TestEnsemble(MethodSuite):
    """Members side by side, each with an order of its own. Its loss is that of one model."""

    job = "reward_model"
    small = {"members": 2, "member_order": True}
    steps = {"epochs": 1.3}
    files = ("export/ensemble.json", "export/*/*")


def start(folder, seed):
    """The parameters that a reward model of a language model starts with."""
    page = tiny_farm.settings("reward_model", folder, seed=seed)
    session = Session(page, "", None, "", None, "", load_models.lora_settings(page.lora))
    params = jax.tree.map(jnp.asarray, tiny_words.draw_params(scalar=False, seed=0))
    return reward_model._with_score_head(session, Network(CONFIG, lambda: params)).read()


def test_a_fresh_score_head_is_drawn_with_the_seed(tmp_path):
    one, again, other = (start(tmp_path, seed) for seed in (0, 0, 1))
    assert one["score"].tolist() == again["score"].tolist() and "head" not in one
    assert (one["score"] != other["score"]).all()
    np.testing.assert_array_equal(one["embed"], other["embed"])


def sequences(*responses):
    """Rows of a prompt of two tokens and responses of so many."""
    lengths = np.array(responses) + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(np.zeros(offsets[-1], np.int32), offsets, np.full(len(lengths), 2, np.int32))


def test_pairs_of_equal_length_count_half_for_the_longer(capsys):
    found = reward_model._longer_wins(Pairs(sequences(5, 4, 3, 1), sequences(2, 4, 3, 6)))
    assert found == {"longer_wins": 0.5}
    assert capsys.readouterr().out == ("held-out pairs: the longer output is the chosen one in 50.0% of 4\n")


class EnoughError(Exception):
    """Ends a run before it computes anything."""


def test_how_often_the_longer_wins_is_told_of_held_out_pairs(words, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise EnoughError

    monkeypatch.setattr(reward_model, "network_of", stop)

    def pair(prompt, chosen, rejected):
        return {"prompt": prompt, "output_1": chosen, "output_2": rejected, "preference": 1}

    longer = [pair(f"w{i}", "w2 w3", "w2") for i in range(4)]
    shorter = [pair(f"w{i}", "w2", "w2 w3") for i in range(4, 8)]
    page = tiny_words.settings(
        "reward_model",
        tmp_path,
        {"data.train": longer[:3], "data.eval": [*shorter, longer[3]]},
        **{"model.init": str(words / "language"), "center_on": ""},
    )
    with pytest.raises(EnoughError):
        reward_model.run(page, str(tmp_path / "run"))
    said = "held-out pairs: the longer output is the chosen one in 20.0% of 5"
    assert capsys.readouterr().out.count(said) == 1
