"""A trainer starts from another one's checkpoint: its parameters alone, on any mesh."""

import json

import jax
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.programs import program
from rlhf_jax.training.run import load_models, reward_models


def run(job, farm, folder, **changes):
    program(job).run(tiny_farm.settings(job, farm, **changes), str(folder))


@pytest.fixture(scope="module")
def trained(farm, tmp_path_factory):
    """Workdirs of an SFT run, a reward model that starts from its checkpoint, and PPO from both checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    run("sft", farm, folder / "sft", epochs=0.16, save_every=2)
    run(
        "reward_model",
        farm,
        folder / "reward_model",
        epochs=0.2,
        save_every=1,
        **{"model.init": str(folder / "sft")},
    )
    sources = {"model.policy": str(folder / "sft"), "model.reward": str(folder / "reward_model")}
    run("ppo", farm, folder / "ppo", steps=2, **sources)
    return folder


def loaded(folder, farm):
    config = tiny_farm.settings("dpo", farm).model
    return load_models.load_model(
        load_models.resolve_folder(str(folder)), config, make_mesh(1, 1, 1), "a command", tokens=0
    )


@pytest.mark.parametrize("job", ["sft", "reward_model"])
def test_a_workdir_means_its_last_checkpoint_and_holds_what_its_export_does(trained, farm, job):
    source = load_models.resolve_folder(str(trained / job))
    steps = [int(path.name) for path in (trained / job / "checkpoints").iterdir()]
    assert len(steps) > 1 and source == str(trained / job / f"checkpoints/{max(steps)}")
    found, params = loaded(trained / job, farm)
    exported, wanted = import_folder.load(trained / job / "export")
    assert (found.config, found.is_scalar) == (exported.config, exported.is_scalar)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    before = str(trained / job / f"checkpoints/{min(steps)}")
    _, earlier = load_models.load_model(
        before, tiny_farm.settings("dpo", farm).model, make_mesh(1, 1, 1), "", tokens=0
    )
    assert any(
        (np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (earlier, wanted)), strict=True)
    )


def test_a_reward_model_keeps_its_mean_with_its_checkpoints(trained, farm, tmp_path):
    """That of each checkpoint: its scores are its export's, and not those of a model that nothing is subtracted of."""
    exported = json.loads((trained / "reward_model/export/config.json").read_text())
    page, mesh = tiny_farm.settings("score", farm).model, make_mesh(1, 1, 1)
    means = []
    for folder in ("reward_model", "reward_model/checkpoints/1"):
        found = reward_models.described(str(trained / folder), page, field="model.path", template="brief")
        means.append(reward_models.loaded(found, page, mesh).mean)
    assert means[0] == pytest.approx(exported["reward_mean"], abs=1e-5) and exported["score_at"] == "eos"
    assert abs(means[0]) > 0.01 and abs(means[0] - means[1]) > 1e-6


def test_the_best_checkpoint_and_the_average_are_taken_as_in_an_export(farm, tmp_path, capsys):
    changes = {"epochs": 0.32, "eval_every": 1, "save_every": 1, "keep_checkpoints": 4, "optimizer.ema": 0.8}
    run("sft", farm, tmp_path, **changes, best_metric="eval/loss", best_mode="max")
    assert "best eval/loss" in capsys.readouterr().out
    _, params = loaded(tmp_path, farm)
    taken = capsys.readouterr().out.splitlines()[0]
    assert taken.startswith(f"{tmp_path}: checkpoint ") and taken.endswith("is taken, the best eval/loss")
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert f"checkpoint {max(steps)} " not in taken
    jax.tree.map(np.testing.assert_array_equal, params, import_folder.load(tmp_path / "export")[1])


def test_of_ppo_the_policy_is_taken(trained, farm, tmp_path):
    found, params = loaded(trained / "ppo", farm)
    assert not found.is_scalar and "head" in params
    run("dpo", farm, tmp_path, epochs=0.1, **{"model.init": str(trained / "ppo")})
    first = tiny_farm.rows(tmp_path)[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "export/tokenizer.json").read_bytes() == (
        farm / "data/tokenizer/tokenizer.json"
    ).read_bytes()


def test_a_run_from_an_export_is_the_run_from_its_checkpoint(trained, farm, tmp_path):
    for name, source in (("checkpoint", trained / "sft"), ("export", trained / "sft/export")):
        run("dpo", farm, tmp_path / name, epochs=0.1, **{"model.init": str(source)})
    assert tiny_farm.rows(tmp_path / "checkpoint") == tiny_farm.rows(tmp_path / "export")


def test_a_broken_checkpoint_is_named(trained, farm, tmp_path):
    broken = tmp_path / "checkpoints" / "7"
    (broken / "state").mkdir(parents=True)
    (tmp_path / "model").symlink_to(trained / "sft/model")
    with pytest.raises(UserError, match="checkpoints/7: not a readable checkpoint"):
        loaded(tmp_path, farm)
