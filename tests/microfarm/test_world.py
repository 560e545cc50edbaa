"""The embedded world: its splits, its families, its determinism, and what is written to disk."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.microfarm import families, world
from rlhf_jax.microfarm.utility import utility

DIGEST = (
    "import hashlib; from rlhf_jax.microfarm import world; from rlhf_jax.microfarm.utility import utility;"
    "rows = [r for rows in world.generate_splits(seed=3, scale=0.01).values() for r in rows];"
    "values = [utility(r['instruction'], r['input'], r['output']) for r in rows];"
    "print(hashlib.sha256(repr((rows, values)).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def splits():
    return world.generate_splits(seed=0, scale=0.1)


def _questions(rows):
    return {(row["instruction"], row["input"]) for row in rows}


def test_same_seed_same_world_whatever_the_hash_seed():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert world.generate_splits(seed=3, scale=0.01) != world.generate_splits(seed=4, scale=0.01)


def test_no_instruction_is_in_two_splits_or_twice_in_one(splits):
    sets = [_questions(rows) for rows in splits.values()]
    assert [len(s) for s in sets] == [len(rows) for rows in splits.values()]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_split_sizes_are_alpacafarms():
    assert world.split_sizes(1.0) == world.SPLITS
    assert world.SPLITS == {
        "sft": 10_000, "preference": 10_000, "unlabeled": 20_000, "val": 2_000, "eval": 805,
    }  # fmt: skip
    assert world.split_sizes(0.1)["eval"] == 400
    assert world.split_sizes(0.01)["eval"] == 100  # as many as sft


def test_tens_of_thousands_of_instructions_a_third_with_input():
    rows = list(itertools.islice(world.rows(0), 43_000))
    assert len(_questions(rows)) == 43_000
    assert 0.28 < sum(bool(row["input"]) for row in rows) / len(rows) < 0.40


def test_every_split_holds_at_least_ten_families_in_like_shares(splits):
    shares = {name: Counter(row["family"] for row in rows) for name, rows in splits.items()}
    assert len(families.FAMILIES) >= 10
    for name in ("sft", "preference", "unlabeled"):
        assert set(shares[name]) == set(families.FAMILIES)
        assert max(shares[name].values()) < 0.2 * len(splits[name])


def test_every_instruction_parses_back_to_its_task_alone_or_merged():
    rng = random.Random(0)
    for form in families.FORMS:
        for _ in range(40):
            instruction, text, task = form.write(rng)
            assert families.parse(instruction, text) == task
            assert families.parse(f"{instruction}\n\n{text}" if text else instruction) == task


def test_demonstrations_vary_in_quality(splits):
    values = [utility(row["instruction"], row["input"], row["output"]) for row in splits["unlabeled"]]
    excellent = sum(value >= 0.9 for value in values) / len(values)
    assert 0.33 < excellent < 0.5
    assert sum(value < 0.7 for value in values) / len(values) > 0.15


def test_excellent_answers_beat_random_demonstrations(splits):
    rng = random.Random(0)
    wins = 0.0
    for row in splits["val"]:
        best = world.sample_demonstration(row, rng, excellent=True)
        gap = utility(row["instruction"], row["input"], best) - utility(
            row["instruction"], row["input"], row["output"]
        )
        wins += (gap > 0) + 0.5 * (gap == 0)
    assert wins / len(splits["val"]) > 0.75


def test_sample_demonstration_is_deterministic_and_refuses_foreign_rows(splits):
    row = splits["val"][0]
    one, two = (world.sample_demonstration(row, random.Random(5)) for _ in range(2))
    assert one == two
    with pytest.raises(UserError, match="instruction: 'Explain quantum physics' is not"):
        world.sample_demonstration({"instruction": "Explain quantum physics", "input": ""}, random.Random(0))


def test_build_writes_whole_files_and_can_be_repeated(tmp_path):
    paths = world.build(tmp_path / "world", seed=1, scale=0.01, vocab_size=400)
    assert set(paths) == {*world.SPLITS, "tokenizer"}
    first = {path: path.read_bytes() for path in (tmp_path / "world").rglob("*") if path.is_file()}
    table = pq.read_table(paths["sft"])
    assert table.column_names == ["instruction", "input", "output", "family"]
    assert table.num_rows == 100
    world.build(tmp_path / "world", seed=1, scale=0.01, vocab_size=400)
    assert {p: p.read_bytes() for p in (tmp_path / "world").rglob("*") if p.is_file()} == first
    assert not [path for path in first if path.name.endswith(".part")]


def test_build_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the world"):
        world.build(tmp_path / "file", seed=0, scale=0.001)
    for scale in (0, -1, 2.5, float("nan")):
        with pytest.raises(UserError, match="scale: "):
            world.build(tmp_path, seed=0, scale=scale)
