"""A user's own instruction file among the farm's stages."""

from pathlib import Path

import pytest

from rlhf_jax.data.records import read_table, write_jsonl
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import farm, own_data
from rlhf_jax.settings import load_page

CONFIGS = Path(__file__).parents[2] / "configs"


def _file(path, n):
    rows = [
        {"instruction": f"Say {i}.", "input": "now" if i % 3 else "", "output": f"{i}!"} for i in range(n)
    ]
    write_jsonl(path, [*rows, rows[0], rows[1], {"instruction": "Say nothing.", "output": ""}])
    return str(path)


def test_every_row_is_in_one_stage(tmp_path):
    said = own_data.split(_file(tmp_path / "x.jsonl", 200), tmp_path, rows=0, seed=0)
    splits = {name: read_table(str(tmp_path / f"{name}.parquet")) for name in own_data.SHARES}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "sft": 80,
        "preference": 50,
        "unlabeled": 40,
        "val": 10,
        "eval": 20,
    }
    prompts = [(row["instruction"], row["input"]) for rows in splits.values() for row in rows]
    assert sorted(prompts) == sorted((f"Say {i}.", "now" if i % 3 else "") for i in range(200))
    assert all(row["output"] == row["instruction"][4:-1] + "!" for rows in splits.values() for row in rows)
    assert "200 rows" in said and "repeated instruction 2, empty response 1" in said


def test_so_many_rows_are_drawn_with_the_seed(tmp_path):
    file = _file(tmp_path / "x.jsonl", 200)
    drawn = []
    for i, seed in enumerate((0, 0, 1)):
        own_data.split(file, tmp_path / str(i), rows=120, seed=seed)
        drawn.append([row["instruction"] for row in read_table(str(tmp_path / str(i) / "sft.parquet"))])
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 48


def test_a_file_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"world.instructions: .*has 30 different instructions with an output"
    ):
        own_data.split(_file(tmp_path / "x.jsonl", 30), tmp_path, rows=0, seed=0)


def test_the_farm_splits_it_anew_when_the_file_changes(tmp_path):
    config = load_page(f"{CONFIGS}/farm.py:real_model")
    config.world.instructions = _file(tmp_path / "x.jsonl", 200)
    config.world.rows = 150
    first = farm._build_world(config, tmp_path / "run")
    (tmp_path / "run" / "data" / "eval.parquet").unlink()
    assert farm._build_world(config, tmp_path / "run") == first  # It is finished, so nothing is written.
    assert not (tmp_path / "run" / "data" / "eval.parquet").exists()
    _file(tmp_path / "x.jsonl", 201)
    assert farm._build_world(config, tmp_path / "run") != first
    assert len(read_table(str(tmp_path / "run" / "data" / "eval.parquet"))) == 15
    stages = {stage.name: stage.config for stage in farm.plan(config, str(tmp_path / "run"))}
    assert stages["sft"].data.train == str(tmp_path / "run" / "data" / "sft.parquet")
    assert stages["evaluate"].baseline == str(tmp_path / "run" / "data" / "eval.parquet")
