"""A model folder survives the way out and back bit for bit, and says what is wrong with a bad one."""

import dataclasses
import json
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder, import_folder

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
    export_folder.save_folder(
        folder, config, params, token_ids=IDS, tokenizer_from=tokenizer, reward_mean=reward_mean
    )
    return folder, params


@pytest.mark.parametrize("tie", [False, True])
def test_a_language_model_comes_back_bit_equal(tmp_path, tie):
    config = dataclasses.replace(CONFIG, tie_embeddings=tie)
    folder, params = write(tmp_path, config)
    back, same = import_folder.load(folder)
    assert back.config == config
    assert not back.is_scalar
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "secrets.txt").exists()


def test_a_reward_model_keeps_its_score_head_and_mean(tmp_path):
    folder, params = write(tmp_path, scalar=True, reward_mean=0.25)
    back, same = import_folder.load(folder)
    assert back.is_scalar
    assert back.reward_mean == 0.25
    np.testing.assert_array_equal(same["score"], params["score"])
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
    folder, params = write(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (2 * 4, 16)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.q_proj.weight"].T.reshape(16, 4, 4),
        params["layers"]["attention"]["q"][0],
    )


def test_the_tokenizer_its_templates_and_generation_settings_are_copied_unchanged(tmp_path):
    folder, params = write(tmp_path)
    source = tmp_path / "tokenizer"
    ids = json.loads((folder / "generation_config.json").read_text())
    assert ids == IDS  # written where the source has none
    copied = {
        "tokenizer_config.json": '{"a": 1}',
        "special_tokens_map.json": "{}",
        "merges.txt": "a b",
        "chat_template.jinja": "{{ messages }}",
        "generation_config.json": '{"eos_token_id": [2, 3]}',
    }
    for name, text in copied.items():
        (source / name).write_text(text)
    export_folder.save_folder(folder, CONFIG, params, token_ids=IDS, tokenizer_from=source)
    assert {name: (folder / name).read_text() for name in copied} == copied


def rewrite(folder, change):
    """The folder's tensors after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(NAME), f"missing tensors: {NAME};"),
        (
            lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.bias": np.zeros(24, np.float32)}),
            "unknown tensors: model.layers.1.mlp.up_proj.bias;",
        ),
        (
            lambda tensors: tensors.update({NAME: np.zeros((24, 15), np.float32)}),
            f"other shapes: {NAME} is [24, 15] and should be [24, 16];",
        ),
        (
            lambda tensors: tensors.update({NAME: np.zeros((24, 16), np.int8)}),
            f"tensor {NAME} is I8; quantized weights",
        ),
    ],
)
def test_a_missing_unknown_or_misshaped_tensor_is_named(tmp_path, change, said):
    folder, _ = write(tmp_path)
    rewrite(folder, change)
    with pytest.raises(UserError) as error:
        import_folder.load(folder)
    assert said in str(error.value)


def test_buffers_that_older_files_hold_are_passed_over(tmp_path):
    folder, params = write(tmp_path)
    buffer = np.ones(2, np.float32)
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": buffer}))
    _, same = import_folder.load(folder)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_pytorch_model_bin_without_torch_says_what_to_install(tmp_path, monkeypatch):
    folder, _ = write(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        import_folder.load(folder)


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    folder, _ = write(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {name: f"model-0000{i}-of-00002.safetensors" for name, i in (("a", 1), ("b", 2))}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        import_folder.load(folder)


def test_bad_folders_are_one_line_errors(tmp_path):
    with pytest.raises(UserError, match="no config"):
        import_folder.load(tmp_path)
    folder, _ = write(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 3}))
    with pytest.raises(
        UserError, match=r"missing tensors: model\.layers\.2\.input_layernorm\.weight, .* and 5 more"
    ):
        import_folder.load(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        import_folder.load(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "bert"}))
    with pytest.raises(UserError, match="bert"):
        import_folder.load(folder)
