"""A model folder survives the way out and back bit for bit, and says what is wrong with a bad one."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder, huggingface
from rlhf_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff=24, rope_theta=5000.0
)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def write(tmp_path, config=CONFIG, scalar=False, reward_mean=None):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "secrets.txt").write_text("not a tokenizer file")
    params = jax.tree.map(np.asarray, nn.unbox(decoder.init(config, jax.random.key(1), scalar=scalar)))
    folder = tmp_path / "export"
    huggingface.save(folder, config, params, token_ids=IDS, tokenizer_from=tokenizer, reward_mean=reward_mean)
    return folder, params


@pytest.mark.parametrize("tie", [False, True])
def test_a_language_model_comes_back_bit_equal(tmp_path, tie):
    config = dataclasses.replace(CONFIG, tie_embeddings=tie)
    folder, params = write(tmp_path, config)
    back = huggingface.load(folder)
    assert back.config == config
    assert not back.is_scalar
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "secrets.txt").exists()


def test_a_reward_model_keeps_its_score_head_and_mean(tmp_path):
    folder, params = write(tmp_path, scalar=True, reward_mean=0.25)
    back = huggingface.load(folder)
    assert back.is_scalar
    assert back.reward_mean == 0.25
    np.testing.assert_array_equal(back.params["score"], params["score"])
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]


def test_exporting_again_replaces_the_folder_whole(tmp_path):
    folder, _ = write(tmp_path)
    (folder / "stale.bin").write_text("old")
    write(tmp_path)
    assert not (folder / "stale.bin").exists()
    assert not folder.with_name("export.partial").exists()


def test_tensor_names_and_shapes_are_those_of_llama(tmp_path):
    from safetensors.numpy import load_file

    folder, params = write(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (2 * 4, 16)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.q_proj.weight"].T.reshape(16, 4, 4),
        params["layers"]["attention"]["q"][0],
    )


def test_bad_folders_are_one_line_errors(tmp_path):
    with pytest.raises(UserError, match="no config"):
        huggingface.load(tmp_path)
    folder, _ = write(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"model\.layers\.2\.input_layernorm\.weight is missing"):
        huggingface.load(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        huggingface.load(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "bert"}))
    with pytest.raises(UserError, match="bert"):
        huggingface.load(folder)
