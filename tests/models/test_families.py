"""Every family without torch: recorded outputs of transformers, the way out and back, and what is refused."""

import dataclasses
import json
import os
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from safetensors.numpy import load_file, save_file
from tiny_families import CONFIGS, IDS, assert_same_tree, left_padded, right_padded, write_folder

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora, responses
from rlhf_jax.models.huggingface import export_folder, import_folder
from rlhf_jax.models.huggingface.families import FAMILIES

RECORDED = np.load(Path(__file__).with_name("recorded_outputs.npz"))  # written by record_outputs.py


def rewritten(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_the_tiny_models_are_of_every_family(tmp_path):
    kinds = {import_folder.read_config(write_folder(tmp_path / name, name))[0].family for name in CONFIGS}
    assert kinds == set(FAMILIES)


@pytest.mark.skipif(
    find_spec("torch") is not None and os.environ.get("RLHF_JAX_WIDE") != "1",
    reason="torch is here, and test_parity.py compares the same with transformers itself; RLHF_JAX_WIDE=1 runs both",
)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_samples_and_scores_are_the_recorded_ones(tmp_path, name):
    found, params = import_folder.load(write_folder(tmp_path / "causal", name))
    tokens_BP, lengths_B = left_padded()
    ours_BPV = running.logits(found.config, params, tokens_BP, lengths_B)
    np.testing.assert_allclose(ours_BPV[:, -1], RECORDED[f"{name}/logits"], atol=1e-4, rtol=0)
    recorded_BR = RECORDED[f"{name}/tokens"]
    tokens_BR, _ = running.greedy(found.config, params, tokens_BP, lengths_B, recorded_BR.shape[1])
    np.testing.assert_array_equal(tokens_BR, recorded_BR)
    found, params = import_folder.load(write_folder(tmp_path / "scalar", name, scalar=True))
    scores_B = running.scores(found.config, params, *right_padded())
    np.testing.assert_allclose(scores_B, RECORDED[f"{name}/scores"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_computed_in_bfloat16_may_be_kept_in_it(tmp_path, name):
    """As references and reward models are: to the bit, since every use would round the weights anyway."""
    for scalar, run, rows in ((False, running.logits, left_padded()), (True, running.scores, right_padded())):
        found, params = import_folder.load(write_folder(tmp_path / f"{name} {scalar}", name, scalar=scalar))
        config, kept = dataclasses.replace(found.config, dtype="bfloat16"), lora.stored(params, "bfloat16")
        assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
        np.testing.assert_array_equal(run(config, kept, *rows), run(config, params, *rows))
        assert not np.array_equal(run(found.config, kept, *rows), run(found.config, params, *rows))


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_either_side_and_the_cache_change_nothing(tmp_path, name):
    """Training's view (no masks), prefill's and the decode loop's, one row at a time and together."""
    found, params = import_folder.load(write_folder(tmp_path / name, name))
    tokens_BP, lengths_B = left_padded()
    left_BPV = running.logits(found.config, params, tokens_BP, lengths_B)
    rolled = [np.roll(row, length) for row, length in zip(tokens_BP, lengths_B, strict=True)]
    right_BPV = running.right_padded_logits(found.config, params, np.stack(rolled))
    for b, length in enumerate(lengths_B):
        np.testing.assert_allclose(left_BPV[b, -length:], right_BPV[b, :length], atol=2e-4, rtol=0)
    R = 12
    tokens_BR, logprobs_BR = running.greedy(found.config, params, tokens_BP, lengths_B, R)
    tokens_BP, lengths_B, tokens_BR = (jnp.asarray(x) for x in (tokens_BP, lengths_B, tokens_BR))
    full = responses.join(tokens_BP, lengths_B, tokens_BR, jnp.full(len(lengths_B), R, jnp.int32), 0)
    forced = jax.jit(lambda *x: responses.response_logprobs(found.config, *x, R, chunk=5))
    forced_BR, _ = forced(params, full, lengths_B)
    np.testing.assert_allclose(logprobs_BR, forced_BR, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scalar", [False, True])
def test_the_way_out_and_back_changes_no_bit(tmp_path, name, scalar):
    folder = write_folder(tmp_path / name, name, scalar=scalar)
    found, params = import_folder.load(folder)
    out = tmp_path / "export"
    export_folder.save_folder(
        out, found.config, params, token_ids=IDS, tokenizer_from=folder, reward_mean=0.5, shard_bytes=20_000
    )
    assert (out / "model.safetensors.index.json").is_file() and not (out / "model.safetensors").exists()
    again, same = import_folder.load(out)
    assert again.config == found.config
    assert again.reward_mean == (0.5 if scalar else 0.0)
    assert_same_tree(same, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_come_back_bit_equal(tmp_path, dtype):
    folder = write_folder(tmp_path / "llama", "llama")
    found, params = import_folder.load(folder)
    options = {"token_ids": IDS, "tokenizer_from": folder, "dtype": dtype}
    export_folder.save_folder(tmp_path / "half", found.config, params, **options)
    _, rounded = import_folder.load(tmp_path / "half")
    assert_same_tree(rounded, params, lambda x: x.astype(jnp.dtype(dtype)).astype(np.float32))
    export_folder.save_folder(tmp_path / "again", found.config, rounded, **options)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "half/model.safetensors"
    ).read_bytes()


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "beta": 1}}, "rope_scaling.beta is 1"),
    ("llama", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"model_type": "mamba"}, "model_type is 'mamba'; use one of llama"),
    ("llama", {"vocab_size": None}, "vocab_size is None"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim is 16; only hidden_size=32"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias is False"),
]


@pytest.mark.parametrize(("name", "fields", "said"), REFUSED)
def test_a_setting_that_would_change_the_numbers_is_refused_by_name(tmp_path, name, fields, said):
    folder = rewritten(write_folder(tmp_path / name, name), **fields)
    with pytest.raises(UserError, match=r"config\.json: ") as error:
        import_folder.read_config(folder)
    assert said in str(error.value)


def test_settings_of_transformers_5_are_those_of_4(tmp_path):
    old, _ = import_folder.read_config(write_folder(tmp_path / "old", "llama3_rope"))
    folder = write_folder(tmp_path / "new", "llama3_rope")
    raw = json.loads((folder / "config.json").read_text())
    parameters = raw["rope_scaling"] | {"rope_theta": raw["rope_theta"]}
    rewritten(folder, rope_parameters=parameters, rope_scaling=None, rope_theta=None)
    assert import_folder.read_config(folder)[0] == old


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt2", "transformer."), ("opt", "model."), ("llama", "model.")]
)
def test_base_models_saved_without_their_prefix_are_read(tmp_path, name, prefix):
    """As gpt2 and older OPT files are on the hub, masks and a second copy of a tied head included."""
    folder = write_folder(tmp_path / name, name)
    found, params = import_folder.load(folder)
    tensors = {key.removeprefix(prefix): x for key, x in load_file(folder / "model.safetensors").items()}
    if name == "gpt2":
        tensors |= {
            "h.0.attn.bias": np.ones((1, 1, 8, 8), np.uint8),
            "lm_head.weight": tensors["wte.weight"].copy(),
        }
    save_file(tensors, folder / "model.safetensors")
    again, same = import_folder.load(folder)
    assert again == found
    assert_same_tree(same, params)


def test_a_classifier_of_two_labels_is_refused_by_the_shape_of_its_head(tmp_path):
    folder = write_folder(tmp_path / "llama", "llama", scalar=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = np.zeros((2, 32), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"score\.weight has 2 rows, so this is a classifier of 2 labels"):
        import_folder.load(folder)


def test_sequences_longer_than_the_learned_positions_are_refused(tmp_path):
    found, params = import_folder.load(write_folder(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(UserError, match="64 learned positions"):
        running.right_padded_logits(found.config, params, np.ones((1, 65), np.int32))
    tokens_BP, lengths_B = left_padded((12,))
    with pytest.raises(UserError, match="64 learned positions"):
        running.greedy(found.config, params, tokens_BP, lengths_B, 60)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt_neox", "gptj", "mixtral", "opt"])
def test_remat_changes_no_gradient_of_any_shape_of_block(tmp_path, name):
    found, params = import_folder.load(write_folder(tmp_path / name, name))
    again, _ = import_folder.load(tmp_path / name, remat="full")
    tokens_BT, lengths_B = (jnp.asarray(x) for x in right_padded((13, 9)))

    def loss(params, config):
        logprobs_BR, _ = responses.response_logprobs(config, params, tokens_BT, lengths_B - 4, 4, chunk=3)
        return logprobs_BR.sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, recomputed = (gradient(params, x.config) for x in (found, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, recomputed)
    assert all(bool(np.abs(x).max() > 0) for x in jax.tree.leaves(plain))  # every parameter has an effect


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gemma2"])
def test_what_is_read_and_written_adds_up(family, tmp_path):
    """Fused tensors are read once for each parameter they hold."""
    told = []
    found, params = import_folder.load(write_folder(tmp_path / "in", family), tell=lambda *x: told.append(x))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert told[-1] == (count, count) and told == sorted(told)
    told.clear()
    options = {"token_ids": {}, "tokenizer_from": tmp_path / "in", "tell": lambda *x: told.append(x)}
    export_folder.save_folder(tmp_path / "out", found.config, params, **options)
    assert told[-1] == (count, count) and told == sorted(told)
