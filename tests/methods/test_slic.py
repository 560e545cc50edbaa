"""A method is one file and one page: this one is neither in the package nor known to it, and trains."""

import importlib
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import load
from rlhf_jax.settings import load_page


@pytest.fixture(scope="module")
def slic():
    """The method's file, whose import adds rows to the table of ranges; they go with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "RANGES", dict(ranges.RANGES))
        # Imported anew: workers that share the tests may come back to this file, and the rows went the first time.
        patch.delitem(sys.modules, "slic", raising=False)
        yield importlib.import_module("slic")


def settings(farm: Path, **changes) -> ConfigDict:
    page = load_page(str(Path(__file__).with_name("slic_page.py")))
    page.update_from_flattened_dict(
        {"data.train": f"{farm}/labels/labels.parquet", "model.init": f"{farm}/sft/export"}
        | {"data.max_length": 96, "data.eval_rows": 12, "logprob_chunk": 16, "batch_size": 8}
        | {"epochs": 4.0, "log_every": 1, "eval_every": 5, "save_every": 5, "optimizer.warmup_steps": 1}
        | {"optimizer.learning_rate": 1e-2}
        | changes
    )
    return page


def test_it_learns_which_side_is_better(slic, farm, tmp_path):
    slic.run(settings(farm), str(tmp_path / "run"))
    rows = tiny_farm.rows(tmp_path / "run")
    train = [row for row in rows if "loss" in row]
    assert np.mean([row["loss"] for row in train[-3:]]) < np.mean([row["loss"] for row in train[:3]])
    assert np.mean([row["ranked"] for row in train[-3:]]) > np.mean([row["ranked"] for row in train[:3]])
    assert any("eval/ranked" in row for row in rows)
    _, before = load(farm / "sft/export")
    _, after = load(tmp_path / "run/export")
    assert not np.array_equal(before["embed"], after["embed"])
    assert (tmp_path / "run/model/config.json").is_file()  # from which another run can start


def test_its_own_setting_is_checked_like_any_other(slic, farm, tmp_path):
    with pytest.raises(UserError, match=r"^margin: -1.0; use a finite number of at least 0$"):
        slic.run(settings(farm, margin=-1.0), str(tmp_path / "run"))


def test_the_loss_is_the_hinge_of_both_log_probs(slic, farm, monkeypatch):
    page = settings(farm, margin=0.5)
    chosen, rejected = jnp.array([-1.0, -3.0, -2.0]), jnp.array([-2.0, -2.8, -2.0])
    monkeypatch.setattr(slic, "pair_logprobs", lambda *_: lambda params, batch: (chosen, rejected))
    batch = {"chosen_lengths": jnp.array([4, 4, 4]), "weight": jnp.array([1.0, 1.0, 0.0])}
    found = slic.slic_loss_fn(tiny_farm.model_config(), 4, page)({}, batch)
    assert float(found["loss"].sum) == pytest.approx(0.5 + 0.2) and float(found["loss"].weight) == 2
    assert float(found["ranked"].sum) == 1
