"""Which responses the report shows, and the text beside its table."""

import json
import math
import random

import numpy as np

from rlhf_jax.evaluation.measures.agreement import calibration
from rlhf_jax.jobs.evaluate.evaluation_inputs import Outputs
from rlhf_jax.jobs.evaluate.evaluation_results import (
    Results,
    as_json,
    reward_model_lines,
    samples,
    write_files,
)
from rlhf_jax.jobs.evaluate.true_utility import Rate, RewardModelAgreement
from rlhf_jax.microfarm import world
from rlhf_jax.microfarm.families import parse


def world_of(names):
    rows = world.generate_splits(seed=1, scale=0.005)["sft"]
    prompts = [(row["instruction"], row["input"]) for row in rows]
    return Outputs(prompts, {name: [f"{name} {i}" for i in range(len(rows))] for name in names}, names[0], {})


def test_samples_are_of_many_kinds_drawn_first_then_where_methods_differ():
    rng, outputs = random.Random(0), world_of(("base", "a", "b"))
    kinds = [parse(*prompt).family for prompt in outputs.prompts]
    utilities = {name: np.array([rng.random() for _ in kinds]) for name in outputs.texts}
    found = Results(outputs, (), {}, {}, {}, utilities, kinds)
    shown = samples(found, seed=0)
    assert shown == samples(found, seed=0) and shown != samples(found, seed=1)
    at = [outputs.prompts.index((s.instruction, s.input)) for s in shown]
    assert len(set(at)) == 12 and [*shown[0].responses] == ["base", "a", "b"]
    assert len({kinds[i] for i in at[:6]}) == 6 and len({kinds[i] for i in at[6:]}) == 6
    gaps = np.abs(utilities["a"] - utilities["b"])
    assert at[6] == max(set(range(len(kinds))) - set(at[:6]), key=lambda i: gaps[i])
    assert shown[0].responses["b"].utility == utilities["b"][at[0]]


def test_samples_without_utilities_go_by_the_labels():
    outputs = world_of(("base", "a"))
    labels = np.full(len(outputs.prompts), 1.5)
    labels[7], labels[3] = 2.0, math.nan
    shown = samples(Results(outputs, (), {"a": labels}, {}, {}), seed=0)
    assert len(shown) == 7 and shown[-1].responses["a"].text == "a 7"
    assert shown[0].responses["a"].utility is None


def test_a_reward_model_without_a_clear_pair_says_so():
    nothing = Rate(math.nan, (math.nan, math.nan), 0)
    human = calibration([0, 1], [1, 0], [2, 1])
    first, second = reward_model_lines(
        RewardModelAgreement(0.2, nothing, nothing, human, Rate(50, (9, 91), 2), None, {})
    )
    assert first.endswith("0.2 apart): there is none among its pairs")
    assert "100.0 %" in second and "of 2 pairs (longer output wins 50.0 %)" in second
    assert reward_model_lines(None) == []


def test_files_are_replaced_whole(tmp_path):
    write_files(tmp_path / "new", {"a.json": as_json({"x": "\ud800"}), "b.txt": "old"})
    write_files(tmp_path / "new", {"b.txt": "new"})
    assert json.loads((tmp_path / "new/a.json").read_text()) == {"x": "?"}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.json", "b.txt"]
    assert (tmp_path / "new/b.txt").read_text() == "new"
