"""Every family against transformers run live under torch, on tiny random models."""

import dataclasses

import numpy as np
import pytest
import running
import tiny_families
from tiny_families import CONFIGS, left_padded, right_padded, write_folder

from rlhf_jax.models.huggingface import export_folder, import_folder

torch = pytest.importorskip("torch")
import theirs  # noqa: E402

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_with_left_padding_and_greedy_samples_equal_those_of_transformers(tmp_path, name):
    folder = write_folder(tmp_path / name, name)
    found, params = import_folder.load(folder)
    model = theirs.load(folder)
    tokens_BP, lengths_B = left_padded()
    ours_BPV = running.logits(found.config, params, tokens_BP, lengths_B)
    theirs_BPV = theirs.logits(model, tokens_BP, lengths_B)
    for b, length in enumerate(lengths_B):
        np.testing.assert_allclose(ours_BPV[b, -length:], theirs_BPV[b, -length:], atol=TOLERANCE, rtol=0)

    # Twice as many as the longest window, so that a cache that forgets too much or too little is seen.
    tokens_BR, logprobs_BR = running.greedy(found.config, params, tokens_BP, lengths_B, 12)
    their_tokens_BR, their_logprobs_BR = theirs.greedy(model, tokens_BP, lengths_B, 12)
    np.testing.assert_array_equal(tokens_BR, their_tokens_BR)
    np.testing.assert_allclose(logprobs_BR, their_logprobs_BR, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_equal_those_of_transformers_at_batch_1_and_8(tmp_path, name):
    folder = write_folder(tmp_path / name, name, scalar=True)
    found, params = import_folder.load(folder)
    assert found.is_scalar
    model = theirs.load(folder, scalar=True)
    tokens_BT, lengths_B = right_padded()
    together_B = running.scores(found.config, params, tokens_BT, lengths_B)
    np.testing.assert_allclose(together_B, theirs.scores(model, tokens_BT, lengths_B), atol=TOLERANCE, rtol=0)
    alone = [
        running.scores(found.config, params, tokens_BT[b : b + 1], lengths_B[b : b + 1])[0] for b in range(8)
    ]
    their_alone = [
        theirs.scores(model, tokens_BT[b : b + 1, :length], lengths_B[b : b + 1])[0]
        for b, length in enumerate(lengths_B)
    ]
    np.testing.assert_allclose(alone, their_alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(alone, together_B, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scalar", [False, True])
def test_folders_go_both_ways_without_a_changed_bit(tmp_path, name, scalar):
    """Ours is read by transformers; what it saves is read by us, with the same parameters and settings."""
    folder = write_folder(tmp_path / name, name, scalar=scalar)
    found, params = import_folder.load(folder)
    export_folder.save_folder(
        tmp_path / "export", found.config, params, token_ids=tiny_families.IDS, tokenizer_from=folder
    )
    model = theirs.load(tmp_path / "export", scalar=scalar)
    for (key, tensor), (_, original) in zip(
        model.state_dict().items(), theirs.load(folder, scalar=scalar).state_dict().items(), strict=True
    ):
        assert torch.equal(tensor, original), key
    model.save_pretrained(tmp_path / "saved")
    again, same = import_folder.load(tmp_path / "saved")
    # An export says where its score is read; the makers of a bare model did not.
    assert again == dataclasses.replace(found, score_at="eos" if scalar else "")
    tiny_families.assert_same_tree(same, params)


def test_an_old_pytorch_model_bin_is_read(tmp_path):
    folder = write_folder(tmp_path / "gpt_neox", "gpt_neox")
    found, params = import_folder.load(folder)
    state = {key: tensor.half() for key, tensor in theirs.load(folder).state_dict().items()}
    for i in range(found.config.layers):  # buffers that old files hold
        state[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        state[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
        state[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = torch.ones(1)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    again, same = import_folder.load(folder)
    assert again == found
    tiny_families.assert_same_tree(same, params, lambda x: x.astype(np.float16).astype(np.float32))
