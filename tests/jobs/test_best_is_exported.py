"""With `best_metric` a trainer exports the checkpoint that was best, also when the run was interrupted after it."""

import jax
import numpy as np
import observed
import pytest
import tiny_farm
from safetensors.numpy import load_file

from rlhf_jax.training.checkpoints.checkpoint import params_shapes, restore_params
from rlhf_jax.training.run import offline

WORST = {
    "best_metric": "eval/loss",
    "best_mode": "max",
    "eval_every": 2,
    "save_every": 0,
    "keep_checkpoints": 1,
}


def test_without_a_finite_evaluation_the_last_is_exported_and_that_is_said(
    farm, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(offline, "make_evaluator", lambda loss_fn: lambda *_: {"loss": float("nan")})
    observed.run("sft", tiny_farm.settings("sft", farm, **WORST), tmp_path)
    assert "best_metric: no kept checkpoint has a finite eval/loss, so there is no best one" in (
        capsys.readouterr().out
    )
    last = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    found = load_file(tmp_path / "export/model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, embeddings(tmp_path / "checkpoints" / str(last)))


def embeddings(checkpoint):
    shape = params_shapes(checkpoint)["embed"]
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"embed": jax.ShapeDtypeStruct(shape, np.float32, sharding=where)}
    return restore_params(checkpoint, like)["embed"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_is_exported(farm, tmp_path, interrupted, capsys):
    """The loss falls, so that the largest one is the first."""
    config = tiny_farm.settings("sft", farm, **WORST)
    if interrupted:
        observed.run("sft", config, tmp_path, stop_before=5)
    observed.run("sft", config, tmp_path)
    losses = {row["step"]: row["eval/loss"] for row in tiny_farm.rows(tmp_path) if "eval/loss" in row}
    best, last = max(losses, key=losses.get), max(losses)
    assert best == 2 < last and len(losses) > 2
    assert f"best eval/loss: step {best}" in capsys.readouterr().out
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [best, last]
    found = load_file(tmp_path / "export/model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, embeddings(tmp_path / "checkpoints" / str(best)))
    assert np.abs(found - embeddings(tmp_path / "checkpoints" / str(last))).max() > 0
