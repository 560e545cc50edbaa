"""A model that SFT makes from nothing: its shape, its weights, its tokenizer."""

import jax
import numpy as np
import observed
import tiny_farm
import tiny_losses
import tiny_words
from method_suite import MethodSuite

from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.methods import sft
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.run import load_models
from rlhf_jax.training.run.session import Session


class TestSft(MethodSuite):
    job = "sft"
    steps = {"epochs": 0.52}

    def case(self):
        return tiny_losses.cases()["sft"]

    def read_elsewhere(self, farm, folder):
        page = tiny_farm.settings("sft", farm, **{"model.tokenizer": "", "model.vocab_size": 300})
        trained = observed.reads(sft._tokenizer_folder, page, str(folder), "")
        brought = observed.reads(sft._tokenizer_folder, page, str(folder), str(farm / "sft/export"))
        return trained | brought


def fresh(folder, seed):
    """A model for a tokenizer of 23 tokens, which are fewer than the page asks for."""
    page = tiny_farm.settings("sft", folder, seed=seed, **{"model.vocab_size": 40, "model.width": 24})
    page.model.update({"layers": 1, "heads": 6, "kv_heads": 2, "ff": 20})
    lora = load_models.lora_settings(page.lora)
    return sft._fresh(Session(page, str(folder), make_mesh(1, 1, 1), "", range(23), "", lora))


def test_a_fresh_model_has_the_pages_shape_and_an_embedding_for_each_token(tmp_path):
    network = fresh(tmp_path, 0)
    params = network.read()
    attention = params["layers"]["attention"]
    assert params["embed"].shape == (23, 24) and params["layers"]["mlp"]["up"].shape == (1, 24, 20)
    assert attention["q"].shape == (1, 24, 6, 4) and attention["k"].shape == (1, 24, 2, 4)
    assert not network.scalar and network.config.vocab_size == 23


def test_fresh_weights_are_drawn_with_the_seed(tmp_path):
    one, again, other = (fresh(tmp_path, seed).read() for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (np.asarray(one["embed"]) != np.asarray(other["embed"])).all()


def test_a_tokenizer_is_trained_on_prompts_and_on_outputs(tmp_path):
    """A word that is said often is a token, also where one of the two alone says it."""
    rows = [{"prompt": f"quagga {i}", "output": f"zyzzyvas {i}"} for i in range(40)]
    page = tiny_words.settings("sft", tmp_path, {"data.train": rows}, **{"model.vocab_size": 320})
    page.model.tokenizer = ""
    tokenizer = load_tokenizer(sft._tokenizer_folder(page, str(tmp_path / "run"), ""))
    assert [tokenizer.tokenize(word) for word in ("quagga", "zyzzyvas")] == [["quagga"], ["zyzzyvas"]]
