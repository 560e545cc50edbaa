"""A PAD token that is added to a tokenizer without one, from training to sampling."""

import json
import shutil

import numpy as np
import pytest
import tiny_farm
from transformers import AutoTokenizer

from rlhf_jax.data.records.records import read_table
from rlhf_jax.jobs import generate
from rlhf_jax.methods import sft
from rlhf_jax.models.huggingface import import_folder


@pytest.fixture
def without_pad(farm, tmp_path):
    """The farm's SFT model with a tokenizer whose PAD token is its EOS token."""
    folder = tmp_path / "model"
    shutil.copytree(farm / "sft/export", folder)
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"pad_token": raw["eos_token"]}))
    (folder / "generation_config.json").write_text('{"temperature": 0.7}')
    return folder


def test_pad_token_is_added_trained_and_exported(farm, without_pad, tmp_path, capsys):
    changes = {"model.init": str(without_pad), "epochs": 0.04}
    config = tiny_farm.settings("sft", farm, **changes, **{"model.pad_token": "[PADDING]"})
    sft.run(config, str(tmp_path / "run"))
    assert "embeddings of 1 new tokens, at the mean of the" in capsys.readouterr().out
    export = tmp_path / "run/export"
    old, _ = import_folder.load(without_pad)
    new, params = import_folder.load(export)
    tokenizer = AutoTokenizer.from_pretrained(str(export))
    assert new.config.vocab_size == old.config.vocab_size + 1 == len(tokenizer) == len(params["embed"])
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PADDING]", old.config.vocab_size)
    assert json.loads((export / "config.json").read_text())["pad_token_id"] == old.config.vocab_size
    assert json.loads((export / "generation_config.json").read_text()) == {
        "temperature": 0.7,
        "eos_token_id": tokenizer.eos_token_id,  # it named none
    }
    assert np.isfinite(params["embed"]).all()
    settings = tiny_farm.settings("generate", farm, **{"model.path": str(export)})
    generate.run(settings, str(tmp_path / "outputs"))
    assert len(read_table(tmp_path / "outputs/outputs.parquet")) == 11  # one prompt is too long


def test_a_pad_of_its_own_is_kept(farm, tmp_path):
    changes = {"model.init": str(farm / "sft/export"), "model.pad_token": "[PADDING]", "epochs": 0.04}
    sft.run(tiny_farm.settings("sft", farm, **changes), str(tmp_path / "run"))
    found = AutoTokenizer.from_pretrained(str(tmp_path / "run/export"))
    assert "[PADDING]" not in found.get_vocab() and not (tmp_path / "run/tokenizer").exists()
