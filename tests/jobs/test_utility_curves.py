"""True utility along a run and along the n of best-of-n, against counting all subsets by hand."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.files.tables import read_rows, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import utility_curves
from rlhf_jax.microfarm.utility import utility

QUESTION = "What is the capital of France?"
ANSWERS = ["I do not know.", "The capital of France is Paris.", "Rome.", "rome rome rome rome rome"]
SCORES = [0.1, 0.9, 0.9, -1.0]  # Of two equal ones the earlier is the better.


@pytest.fixture
def settings(tmp_path):
    write_parquet(
        tmp_path / "scores.parquet",
        [{"instruction": QUESTION, "input": "", "responses": ANSWERS, "scores": SCORES}],
    )
    write_parquet(tmp_path / "val.parquet", [{"instruction": QUESTION, "input": "", "output": ANSWERS[0]}])
    run = tmp_path / "ppo"
    (run / "samples").mkdir(parents=True)
    rows = [{"step": step, "eval/kl": step / 8} for step in (0, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, answer in ((0, ANSWERS[2]), (4, ANSWERS[1])):
        kept = {"instruction": QUESTION, "input": "", "output": answer, "score": float(step)}
        lines = [kept, {"prompt": "no instruction", "output": "x"}]
        (run / f"samples/{step:06d}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))

    def make(**changes):
        named = {"runs": f"ppo={run}", "scored": f"best={tmp_path}/scores.parquet"}
        return tiny_farm.settings(
            "utility_curves", tmp_path, **named | {"baseline": f"{tmp_path}/val.parquet"} | changes
        )

    return make


def win(own, base):
    return 0.5 if own == base else float(own > base)


def test_best_of_n_is_the_mean_over_all_subsets(settings, tmp_path):
    utility_curves.run(settings(), str(tmp_path / "out"))
    rows = {row["n"]: row for row in read_rows(str(tmp_path / "out/best_of.parquet"))}
    assert sorted(rows) == [1, 2, 4]
    own = [utility(QUESTION, "", answer) for answer in ANSWERS]
    assert len(set(own)) == 4
    for n, row in rows.items():
        chosen = [max(some, key=lambda i: (SCORES[i], -i)) for some in combinations(range(4), n)]
        assert row["score"] == pytest.approx(np.mean([SCORES[i] for i in chosen]))
        assert row["utility"] == pytest.approx(np.mean([own[i] for i in chosen]))
        assert row["true_win"] == pytest.approx(np.mean([win(own[i], own[0]) for i in chosen]))
        assert row["kl"] == pytest.approx(math.log(n) - 1 + 1 / n)


def test_along_a_run_every_sample_has_its_step_s_kl(settings, tmp_path, capsys):
    utility_curves.run(settings(), str(tmp_path / "out"))
    first, last = read_rows(str(tmp_path / "out/steps.parquet"))
    own = [utility(QUESTION, "", answer) for answer in ANSWERS]
    assert (first["step"], first["kl"], first["utility"]) == (0, 0.0, own[2])
    assert (last["step"], last["kl"], last["true_win"]) == (4, 0.5, win(own[1], own[0]))
    # Samples of prompts that the world does not know are counted.
    assert "sample without an instruction 2" in capsys.readouterr().out


def test_a_run_without_samples_and_no_run_are_refused(settings, tmp_path):
    with pytest.raises(UserError, match="runs: names none, and scored neither"):
        utility_curves.run(settings(runs="", scored=""), str(tmp_path / "out"))
    (tmp_path / "dpo").mkdir()
    with pytest.raises(UserError, match=r"dpo has no samples/\*.jsonl"):
        utility_curves.run(settings(runs=f"dpo={tmp_path}/dpo"), str(tmp_path / "out"))
