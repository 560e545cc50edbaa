"""Differences of weights: made, recovered, in the formats of AlpacaFarm and Wombat, and refused on a wrong base."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_families import write_folder

from rlhf_jax.errors import UserError
from rlhf_jax.jobs import weight_diff as job
from rlhf_jax.models.decoder import trunk
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.settings import load_page

CONFIGS = Path(__file__).parents[2] / "configs"


def run(workdir, **settings):
    config = load_page(f"{CONFIGS}/weight_diff.py")
    config.update({"base": "", "target": "", "diff": ""} | {name: str(x) for name, x in settings.items()})
    job.run(config, str(workdir))


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(source, target, seed=0, new_row=False, **more):
    """A copy of a folder with other weights; with `new_row`, one more row in both embeddings."""
    target.mkdir()
    rng = np.random.default_rng(seed)
    tensors = weights(source)
    if new_row:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = np.concatenate([tensors[name], tensors[name][:1] * 0.5])
    tensors = {
        name: x + rng.normal(scale=0.01, size=x.shape).astype(np.float32) for name, x in tensors.items()
    }
    save_file(tensors | more, target / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text())
    raw["vocab_size"] = len(tensors["model.embed_tokens.weight"])
    (target / "config.json").write_text(json.dumps(raw))
    (target / "tokenizer.json").write_text('{"of": "target"}')
    return target


@pytest.fixture
def base(tmp_path):
    return write_folder(tmp_path / "base", "llama")


@pytest.mark.parametrize("new_row", [False, True])
@pytest.mark.parametrize("new_rows", ["mean", "zero"])
def test_there_and_back(tmp_path, base, new_row, new_rows):
    target = changed(base, tmp_path / "target", new_row=new_row)
    run(tmp_path / "made", base=base, target=target, new_rows=new_rows)
    diff = tmp_path / "made/diff"
    assert all(np.abs(x).max() < (0.1 if x.ndim == 1 else 4) for x in weights(diff).values())
    run(tmp_path / "back", base=base, diff=diff, new_rows=new_rows)
    found, wanted = weights(tmp_path / "back/export"), weights(target)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-6)
    checkpoint, _ = import_folder.load(tmp_path / "back/export")
    assert checkpoint.config.vocab_size == len(wanted["lm_head.weight"])
    assert (tmp_path / "back/export/tokenizer.json").read_text() == '{"of": "target"}'


def test_the_new_row_of_the_base(tmp_path, base):
    target = changed(base, tmp_path / "target", new_row=True)
    for new_rows in ("mean", "zero"):
        run(tmp_path / new_rows, base=base, target=target, new_rows=new_rows)
        made = weights(tmp_path / new_rows / "diff")["model.embed_tokens.weight"]
        table = weights(base)["model.embed_tokens.weight"].astype(np.float64)
        row = table.mean(0) if new_rows == "mean" else np.zeros(table.shape[1])
        wanted = weights(target)["model.embed_tokens.weight"].astype(np.float64)
        np.testing.assert_allclose(made, wanted - np.concatenate([table, row[None]]), rtol=0, atol=1e-6)


def test_reward_model_of_alpaca_farm(tmp_path, base):
    """A whole language model below backbone_model., a head with a bias, a config of their own kind, old buffers."""
    tuned, rng = weights(changed(base, tmp_path / "tuned")), np.random.default_rng(1)
    D = tuned["model.norm.weight"].shape[0]
    head = rng.normal(size=(1, D)).astype(np.float32)
    frequency = (10_000.0 ** (-np.arange(4) / 4)).astype(np.float32)
    target = {f"backbone_model.{name}": x for name, x in tuned.items()}
    diff = {name: x - weights(base)[name.removeprefix("backbone_model.")] for name, x in target.items()}
    more = {"reward_head.weight": head, "reward_head.bias": np.float32([0.25])}
    buffer = {"backbone_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    folder = tmp_path / "diff"
    folder.mkdir()
    save_file(diff | more | buffer, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "reward_model"}')
    total = sum(x.sum(dtype=np.float64) for x in (*target.values(), *more.values(), frequency))
    (folder / "model_sum.txt").write_text(f"{total:.4f}")

    run(tmp_path / "out", base=base, diff=folder)
    checkpoint, params = import_folder.load(tmp_path / "out/export")
    assert checkpoint.is_scalar and checkpoint.reward_mean == -0.25
    np.testing.assert_array_equal(params["score"], head[0])
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(tuned, plain / "model.safetensors")
    (plain / "config.json").write_text((base / "config.json").read_text())
    _, wanted = import_folder.load(plain)
    np.testing.assert_allclose(trunk(params)["embed"], wanted["embed"], atol=1e-6)
    np.testing.assert_allclose(
        params["layers"]["attention"]["q"], wanted["layers"]["attention"]["q"], atol=1e-6
    )


def test_the_papers_formats():
    formats = {x: load_page(f"{CONFIGS}/papers/{x}/weight_diff.py") for x in ("alpaca_farm", "rrhf")}
    assert {n: (c.new_rows, c.dtype) for n, c in formats.items()} == {
        "alpaca_farm": ("mean", "float32"),
        "rrhf": ("zero", "float16"),
    }


def test_rounded_weights(tmp_path, base):
    target = changed(base, tmp_path / "target")
    run(tmp_path / "made", base=base, target=target)
    run(tmp_path / "back", base=base, diff=tmp_path / "made/diff", dtype="float16")
    found = weights(tmp_path / "back/export")["model.norm.weight"]
    assert found.dtype == np.float16
    assert json.loads((tmp_path / "back/export/config.json").read_text())["dtype"] == "float16"


def test_a_wrong_base_is_refused(tmp_path, base):
    target = changed(base, tmp_path / "target")
    run(tmp_path / "made", base=base, target=target)
    other = changed(base, tmp_path / "other", seed=3)
    with pytest.raises(UserError, match=r"base: .*other is not the base .* sum to .* says"):
        run(tmp_path / "back", base=other, diff=tmp_path / "made/diff")
    assert not (tmp_path / "back/export").exists()


def test_another_model_is_refused(tmp_path, base):
    target = changed(base, tmp_path / "target")
    for family in ("qwen2", "gpt2"):
        other = write_folder(tmp_path / family, family)
        with pytest.raises(UserError, match=r"base: .* is not the model .*; give the base"):
            run(tmp_path / "made", base=other, target=target)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({}, "diff, target: set exactly one"),
        ({"target": "a", "diff": "b"}, "diff, target: set exactly one"),
        ({"target": "a"}, "base: not set"),
        ({"target": "a", "new_rows": "median"}, "new_rows: 'median'; use one of mean, zero"),
        ({"target": "a", "dtype": "int8"}, "dtype: 'int8'; use one of float32"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        run(tmp_path / "out", **settings)


def test_missing_sum_is_said_and_a_broken_one_refused(tmp_path, base, capsys):
    target = changed(base, tmp_path / "target")
    run(tmp_path / "made", base=base, target=target)
    (tmp_path / "made/diff/model_sum.txt").write_text("what?")
    with pytest.raises(UserError, match=r"model_sum.txt: 'what\?' is not a number"):
        run(tmp_path / "back", base=base, diff=tmp_path / "made/diff")
    (tmp_path / "made/diff/model_sum.txt").unlink()
    run(tmp_path / "back", base=base, diff=tmp_path / "made/diff")
    assert "is not checked" in capsys.readouterr().out
