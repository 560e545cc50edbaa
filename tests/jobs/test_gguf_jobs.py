"""Every field that names a language model takes a GGUF file, and what it needs is said before anything is read."""

import sys
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.programs import program
from rlhf_jax.settings import load_page

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("page", "field"),
    [
        ("sft", "model.init"),
        ("sft", "model.tokenizer"),
        ("reward_model", "model.init"),
        ("dpo", "model.init"),
        ("ppo", "model.policy"),
        ("ppo", "model.reward"),
        ("generate", "model.path"),
        ("score", "model.path"),
        ("inspect_data", "tokenizer"),
    ],
)
def test_a_missing_package_comes_before_missing_data(page, field, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.chdir(tmp_path)
    config = load_page(f"{CONFIGS}/{page}.py")
    changes = {field: "some.gguf"}
    if field == "model.reward":
        (tmp_path / "policy").mkdir()
        changes["model.policy"] = "policy"
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=r"some.gguf: reading it needs the package gguf; pip install gguf"):
        program(page).run(config, str(tmp_path / "run"))
