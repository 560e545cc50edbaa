"""PAD is EOS, a token of its own, or missing: the same losses, parameters, samples and scores; exports score alike."""

import json
import shutil

import numpy as np
import pytest
import tiny_farm
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_jax.data.records.records import read_table
from rlhf_jax.data.templates import render
from rlhf_jax.jobs import generate, score
from rlhf_jax.methods import reward_model, sft
from rlhf_jax.models.huggingface import import_folder

WAYS = ("own", "eos", "none")


def with_pad(source, target, way):
    """A copy of a folder whose tokenizer has this PAD."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    pad = {"own": raw["pad_token"], "eos": raw["eos_token"], "none": None}[way]
    path.write_text(json.dumps(raw | {"pad_token": pad}))
    assert AutoTokenizer.from_pretrained(str(target)).pad_token == pad
    return str(target)


@pytest.fixture(scope="module")
def folders(farm, tmp_path_factory):
    root = tmp_path_factory.mktemp("pads")
    return {
        way: {
            "model.init": with_pad(farm / "sft/export", root / f"sft_{way}", way),
            "reward": with_pad(farm / "reward_model/export", root / f"rm_{way}", way),
        }
        for way in WAYS
    }


def test_training_sampling_and_scores_are_equal(farm, folders, tmp_path):
    found = {}
    for way, models in folders.items():
        out = tmp_path / way
        config = tiny_farm.settings("sft", farm, epochs=0.08, **{"model.init": models["model.init"]})
        sft.run(config, str(out / "sft"))
        path = {"model.path": str(out / "sft/export")}
        generate.run(tiny_farm.settings("generate", farm, temperature=1.0, **path), str(out / "outputs"))
        config = tiny_farm.settings("score", farm, **{"model.path": models["reward"]})
        score.run(config, str(out / "scores"))
        params = import_folder.load(out / "sft/export")[1]
        outputs, scores = (
            read_table(out / name) for name in ("outputs/outputs.parquet", "scores/scores.parquet")
        )
        found[way] = tiny_farm.rows(out / "sft"), params, outputs, scores
    losses, params, outputs, scores = found["own"]
    assert len([row for row in losses if "loss" in row]) >= 2 and any(not row["ended"] for row in outputs)
    for way in WAYS[1:]:
        assert found[way][0] == losses, way
        assert found[way][2:] == (outputs, scores), way
        np.testing.assert_array_equal(found[way][1]["embed"], params["embed"])


@pytest.mark.parametrize("way", WAYS)
def test_an_exported_reward_model_scores_the_same_in_transformers(farm, folders, tmp_path, way, capsys):
    changes = {"model.init": folders[way]["model.init"], "epochs": 0.1}
    reward_model.run(tiny_farm.settings("reward_model", farm, **changes), str(tmp_path / "rm"))
    said = "export: the tokenizer has no PAD token of its own; PAD is" in capsys.readouterr().out
    assert said == (way != "own")
    path = str(tmp_path / "rm/export")
    changes = {"model.path": path, "data.max_length": 200}  # the test's own rows are cut nowhere
    score.run(tiny_farm.settings("score", farm, **changes), str(tmp_path / "scores"))
    rows = read_table(tmp_path / "scores/scores.parquet")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts = [(render(row, "brief"), text) for row in rows[:3] for text in row["responses"]]
    encoded = [[*bos, *ids(prompt), *ids(text), tokenizer.eos_token_id] for prompt, text in texts]
    batch = tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
    assert not batch["attention_mask"].all()
    mean = json.loads((tmp_path / "rm/export/config.json").read_text())["reward_mean"]
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        single = [model(torch.tensor([one])).logits[0, 0] for one in encoded]
    wanted = [x for row in rows[:3] for x in row["scores"]]
    np.testing.assert_allclose(together.numpy() - mean, wanted, atol=1e-4)
    np.testing.assert_allclose(np.array(single) - mean, wanted, atol=1e-4)


def test_a_second_end_token_stops_as_in_transformers(farm, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(farm / "sft/export", folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = read_table(farm / "data/eval.parquet")[:4]
    bos = "" if tokenizer.bos_token is None else tokenizer.bos_token
    prompts = [bos + render(row, "brief") for row in rows]

    def sampled(ends):
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
        found = []
        for text in prompts:
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            found.append(
                model.generate(ids, attention_mask=torch.ones_like(ids), **options)[
                    0, ids.shape[1] :
                ].tolist()
            )
        return found

    eos = tokenizer.eos_token_id
    longest = max(sampled([eos]), key=len)
    ends = [eos, longest[3]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    config = tiny_farm.settings(
        "generate", farm, temperature=0.0, **{"model.path": str(folder), "data.rows": 4}
    )
    generate.run(config, str(tmp_path / "out"))
    outputs = read_table(tmp_path / "out/outputs.parquet")
    wanted = sampled(ends)
    kept = {row["instruction"] + row["input"]: row for row in outputs}
    assert len(kept) >= 3
    for row, ids in zip(rows, wanted, strict=True):
        found = kept.get(row["instruction"] + row["input"])
        if found is not None:
            ended = ids[-1] in ends
            assert found["ended"] == ended
            assert found["output"] == tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    assert any(ids[-1] == ends[1] and len(ids) < 8 for ids in wanted)
