"""Embeddings of new tokens: mean rows, on any mesh, and a model that knows the old tokens as before."""

import jax
import numpy as np
import pytest
import running
from tiny_families import VOCAB, left_padded, write_folder

from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.placement import grow
from rlhf_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gptj", "opt"]
)  # untied, tied, with a head bias, positions
def test_grow(tmp_path, family):
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoint, params = import_folder.load(write_folder(tmp_path / "model", family), mesh)
    before = jax.tree.map(np.asarray, params)
    config, grown = grow(checkpoint.config, params, VOCAB + 3, mesh)
    assert config.vocab_size == VOCAB + 3
    axes = {"embed": 0, "head": 1, "head_bias": 0}
    for name, leaf in before.items():
        if name not in axes:
            jax.tree.map(np.testing.assert_array_equal, leaf, grown[name])
            continue
        old, new = np.split(np.asarray(grown[name]), [VOCAB], axis=axes[name])
        np.testing.assert_array_equal(old, leaf)
        mean = leaf.astype(np.float64).mean(axes[name], keepdims=True)
        np.testing.assert_allclose(new, np.repeat(mean, 3, axes[name]), rtol=0, atol=1e-6)
    tokens, lengths = left_padded()
    wanted = running.logits(checkpoint.config, before, tokens, lengths)
    found = running.logits(config, grown, tokens, lengths)
    np.testing.assert_allclose(found[..., :VOCAB], wanted, rtol=0, atol=1e-5)
