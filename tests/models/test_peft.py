"""PEFT's format: the way out and back, what is refused, and PEFT itself where it is installed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import running
import tiny_families
from safetensors.numpy import load_file, save_file
from test_lora import grown, model

from rlhf_jax.errors import UserError
from rlhf_jax.models import lora, peft
from rlhf_jax.models.huggingface import export_folder
from rlhf_jax.models.lora import Lora, joined
from rlhf_jax.parallel import startup

TARGETS = {
    "llama": ("q", "v", "o", "gate", "down"),
    "gpt2": ("q", "k", "v", "o", "up"),
    "gpt_neox": ("q", "k", "v", "down"),
    "opt": ("all",),
    "gptj": ("k", "o", "up"),
    "gemma3_text": ("all",),
    "mixtral": ("all",),
    "qwen3": ("q", "up"),
}


def written(folder, name, tmp_path, targets=None, scalar=False):
    """(config, adapted model) whose adapter is written to `folder`."""
    config, base = model(name, tmp_path, scalar)
    settings = Lora(3, 6.0, targets or TARGETS[name])
    params = joined(base, grown(config, settings))
    peft.save_adapter(folder, config, params, base=str(tmp_path / name))
    return config, params


@pytest.mark.parametrize("name", TARGETS)
def test_out_and_back_and_out_is_bit_equal(name, tmp_path):
    config, params = written(tmp_path / "one", name, tmp_path)
    found = peft.load(tmp_path / "one", config)
    tiny_families.assert_same_tree(found.adapter, lora.split_adapter(params)[1])
    assert found.lora == Lora(
        3, 6.0, tuple(k for s in lora.chosen_sites(config, TARGETS[name]) for k in s.kernels)
    )
    base, _ = lora.split_adapter(params)
    peft.save_adapter(tmp_path / "two", config, joined(base, found.adapter), base=str(tmp_path / name))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_merged_weights_are_those_of_the_files(name, tmp_path):
    """W + alpha / r * B A on the tensors themselves, in float64; fused and transposed ones included."""
    config, params = written(tmp_path / "adapter", name, tmp_path)
    merged = lora.merged(config, params)
    ids = tiny_families.IDS
    export_folder.save_folder(tmp_path / "out", config, merged, token_ids=ids, tokenizer_from=tmp_path / name)
    old, new = (load_file(tmp_path / x / "model.safetensors") for x in (name, "out"))
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    modules = {name.rsplit(".lora_", 1)[0] for name in tensors}
    for weight, before in old.items():
        module = f"base_model.model.{weight.removesuffix('.weight')}"
        wanted = before.astype(np.float64)
        if module in modules:
            A, B = (tensors[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
            wanted = wanted + 2.0 * ((B @ A).T if name == "gpt2" else B @ A)
        np.testing.assert_allclose(new[weight], wanted, rtol=1e-5, atol=1e-5, err_msg=weight)
    assert len(modules) * 2 == len(tensors) == 6 * len({m.rsplit(".", 1)[-1] for m in modules})


@pytest.mark.parametrize("name", TARGETS)
def test_peft_itself_reads_ours_and_computes_the_same(name, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("theirs")
    from peft import PeftModel

    config, params = written(tmp_path / "adapter", name, tmp_path)
    adapted = PeftModel.from_pretrained(theirs.load(tmp_path / name), tmp_path / "adapter").eval()
    tokens, lengths = tiny_families.left_padded()
    ours = running.logits(config, params, tokens, lengths)
    real = np.arange(tokens.shape[1]) >= (tokens.shape[1] - lengths)[:, None]
    np.testing.assert_allclose(ours[real], theirs.logits(adapted, tokens, lengths)[real], atol=2e-4, rtol=0)
    adapted.save_pretrained(tmp_path / "theirs")  # what PEFT writes is read, to the same bits
    found = peft.load(tmp_path / "theirs", config)
    tiny_families.assert_same_tree(found.adapter, lora.split_adapter(params)[1])
    assert found.lora.rank == 3 and found.lora.alpha == 6.0
    with torch.no_grad():
        assert all(torch.isfinite(x).all() for x in adapted.parameters())


def test_peft_itself_reads_a_reward_models_head(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    theirs = pytest.importorskip("theirs")
    from peft import PeftModel

    config, params = written(tmp_path / "adapter", "llama", tmp_path, scalar=True)
    head = np.random.default_rng(3).normal(size=config.width).astype(np.float32)
    params = params | {"score": head}
    peft.save_adapter(tmp_path / "adapter", config, params, base=str(tmp_path / "llama"))
    adapted = PeftModel.from_pretrained(
        theirs.load(tmp_path / "llama", scalar=True), tmp_path / "adapter"
    ).eval()
    tokens, lengths = tiny_families.right_padded()
    ours = running.scores(config, params, tokens, lengths)
    np.testing.assert_allclose(ours, theirs.scores(adapted, tokens, lengths), atol=2e-4, rtol=0)
    np.testing.assert_array_equal(peft.load(tmp_path / "adapter", config).score, head)


def test_names_that_several_layers_end_in_are_written_out(tmp_path):
    written(tmp_path / "a", "gpt2", tmp_path)
    modules = json.loads((tmp_path / "a/adapter_config.json").read_text())["target_modules"]
    assert modules == ["attn.c_proj", "c_attn", "c_fc"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora is True; only False is supported"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
        ({"r": "3"}, "r is '3'; a positive number is needed"),
        ({"lora_alpha": None}, "lora_alpha is None; a positive number is needed"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights is 'pissa', which changes the weights of the model below",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\];.*merge_and_unload"),
        ({"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'"),
        ({"of_next_year": {"a": 1}}, "of_next_year is {'a': 1}; this setting is not known"),
        ({"r": 10**400}, "r is 10+; a positive number is needed"),
        ({"use_rslora": "false"}, "use_rslora is 'false'; true or false is needed"),
        (
            {"target_modules": ["q_proj", "self_attn.k_proj", "absent"]},
            "missing tensors: .*layers.0.self_attn.k_proj.lora_A.weight and 5 more",
        ),
        ({"modules_to_save": ["classifier", "score"]}, "missing tensors: base_model.model.score.weight"),
        ({"r": 4}, "other shapes: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight is"),
    ],
)
def test_settings_that_are_refused(change, said, tmp_path):
    config, _ = written(tmp_path / "a", "llama", tmp_path)
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        peft.load(tmp_path / "a", config)


def test_names_that_say_nothing_of_what_should_be_there(tmp_path):
    """A regular expression, names that are taken out again, and those of other families."""
    config, _ = written(tmp_path / "a", "llama", tmp_path, ("q",))
    path = tmp_path / "a/adapter_config.json"
    for change in (
        {"target_modules": ".*"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj", "c_attn", "proj"]},
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"exclude_modules": None} | change))
        assert peft.load(tmp_path / "a", config).lora.targets == ("q",)


def test_every_setting_of_the_installed_peft_is_known_and_its_defaults_are_accepted(tmp_path):
    found = pytest.importorskip("peft", reason="peft is not installed").LoraConfig
    names = {field.name for field in dataclasses.fields(found)}
    known = peft.INERT | peft.READ | set(peft.PLAIN)
    assert names <= known, names - known
    found(r=3, lora_alpha=6, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert peft.read_peft_settings(tmp_path)[:3] == (3, 2.0, "")


@pytest.mark.parametrize("kind", ["rslora", "gaussian", "bin"])
def test_peft_computes_the_same_with_settings_that_are_honoured(kind, tmp_path):
    """alpha over the root of the rank, beginnings that leave the model alone, and torch's older file."""
    pytest.importorskip("peft", reason="peft is not installed")
    theirs = pytest.importorskip("theirs")
    from peft import PeftModel

    config, params = written(tmp_path / "a", "llama", tmp_path)
    path = tmp_path / "a/adapter_config.json"
    change = {"rslora": {"use_rslora": True}, "gaussian": {"init_lora_weights": "gaussian"}}.get(kind, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if kind == "bin":
        import torch
        from safetensors.torch import load_file as torch_tensors

        weights = tmp_path / "a/adapter_model.safetensors"
        torch.save(torch_tensors(weights), weights.with_suffix(".bin"))
        weights.unlink()
    found = peft.load(tmp_path / "a", config)
    assert found.lora.scale == pytest.approx(6 / (3**0.5 if kind == "rslora" else 3))
    config = dataclasses.replace(config, adapter_scale=found.lora.scale)
    tokens, lengths = tiny_families.left_padded()
    adapted = PeftModel.from_pretrained(theirs.load(tmp_path / "llama"), tmp_path / "a").eval()
    ours = running.logits(config, joined(lora.split_adapter(params)[0], found.adapter), tokens, lengths)
    np.testing.assert_allclose(ours[0], theirs.logits(adapted, tokens, lengths)[0], atol=2e-4, rtol=0)


def test_an_adapter_of_some_layers_says_what_helps(tmp_path):
    config, _ = written(tmp_path / "a", "llama", tmp_path)
    path = tmp_path / "a/adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if ".layers.1." not in k}, path)
    with pytest.raises(UserError, match=r"2 of 3 layers have an adapter.*layers\.1\..*merge_and_unload"):
        peft.load(tmp_path / "a", config)


def test_another_base_than_the_recorded_one_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(startup, "_said", set())
    config, _ = written(tmp_path / "a", "llama", tmp_path)
    peft.describe_adapter(tmp_path / "a", config, base=str(tmp_path / "llama"))
    assert capsys.readouterr().out == ""
    peft.describe_adapter(tmp_path / "a", config, base="runs/other")
    assert f"trained over {tmp_path / 'llama'}, and now laid over runs/other" in capsys.readouterr().out
    assert not peft.other_base("org/name", "/cache/models--org--name/snapshots/0a1b")


def test_tensors_that_are_refused(tmp_path):
    config, _ = written(tmp_path / "a", "llama", tmp_path)
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    lost = tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": lost}, path)
    with pytest.raises(
        UserError, match=r"missing tensors: .*layers.1.self_attn.q_proj.lora_B.*unknown .*lm_head"
    ):
        peft.load(tmp_path / "a", config)
    with pytest.raises(UserError, match=r"other shapes"):
        peft.load(written_other(tmp_path), config)
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        peft.load(tmp_path / "llama", config)


def written_other(tmp_path):
    config, base = model("llama", tmp_path / "x")
    wide = dataclasses.replace(config, ff=48)
    adapter = jax.tree.map(np.asarray, grown(wide, Lora(3, 6.0, ("down",))))
    peft.save_adapter(tmp_path / "wide", wide, joined(base, adapter), base="x")
    return tmp_path / "wide"
