"""Methods that train on fixed rows are judged at their evaluations, by what their policy samples."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import annotate
from rlhf_jax.methods import dpo
from rlhf_jax.programs import load_program
from rlhf_jax.training.run import offline

CLEAN = str(tiny_farm.ROOT / "configs/judges/micro_clean.yaml")
JUDGED = {
    "win_rate.judges": CLEAN,
    "win_rate.max_instructions": 5,
    "win_rate.max_prompt_length": 80,
    "win_rate.max_new_tokens": 8,
    "eval_every": 4,
}


def run(job, farm, folder, **changes):
    page = tiny_farm.settings(job, farm, **JUDGED | changes)
    load_program(page).run(page, str(folder))
    return tiny_farm.rows(folder)


def samples(folder):
    paths = sorted((folder / "samples").glob("*.jsonl"))
    return {int(p.stem): [json.loads(line) for line in p.read_text().splitlines()] for p in paths}


@pytest.fixture(scope="module")
def judged(farm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged") / "sft"
    return folder, run("sft", farm, folder, **{"model.init": str(farm / "sft/export"), "epochs": 0.32})


def test_every_evaluation_is_judged_and_costs_what_it_says(judged):
    folder, rows = judged
    evaluated = [row for row in rows if "eval/win_rate" in row]
    assert [row["step"] for row in evaluated] == list(samples(folder)) and len(evaluated) > 1
    # The first is of the policy as it starts, which is what the others are compared with.
    assert evaluated[0]["step"] == 0 and evaluated[0]["eval/win_rate"] == 0.5
    for row in evaluated:
        assert 0 <= row["eval/win_rate"] <= 1
        assert row["eval/judge_usd"] == 0 == row["eval/win_rate_unjudged"] and row["eval/loss"] > 0


def test_the_same_prompts_are_sampled(judged, farm):
    prompts = [row["instruction"] for row in read_table(farm / "data/val.parquet")[:5]]
    for found in samples(judged[0]).values():
        assert [row["instruction"] for row in found] == prompts
        assert all(isinstance(row["ended"], bool) for row in found)


def test_a_judge_changes_nothing_that_is_learned(judged, farm, tmp_path):
    rows = judged[1]
    page = tiny_farm.settings("sft", farm, **{"model.init": str(farm / "sft/export"), "epochs": 0.32})
    load_program(page).run(page, str(tmp_path / "alone"))
    kept = [{k: v for k, v in row.items() if not k.startswith(("eval/win", "eval/judge"))} for row in rows]
    alone = tiny_farm.rows(tmp_path / "alone")
    assert [row for row in kept if row["step"]] == alone
    assert not (tmp_path / "alone/samples").exists()


def test_the_win_rate_is_that_of_the_samples_against_a_file(judged, farm, tmp_path):
    prompts = read_table(farm / "data/val.parquet")[:5]
    rows = [{"instruction": r["instruction"], "input": r["input"], "output": r["output"]} for r in prompts]
    write_parquet(tmp_path / "baseline.parquet", rows)
    changes = {"win_rate.baseline": str(tmp_path / "baseline.parquet"), "epochs": 0.1, "batch_size": 4}
    found = run("dpo", farm, tmp_path / "dpo", **changes)
    # Both start from one model, and batches of 4 sample what batches of 8 do.
    assert samples(tmp_path / "dpo")[0] == samples(judged[0])[0]
    for step, said in samples(tmp_path / "dpo").items():
        pairs = [
            base | {"output_1": base["output"], "output_2": row["output"]}
            for base, row in zip(rows, said, strict=True)
        ]
        write_parquet(
            tmp_path / f"{step}.parquet", [{k: v for k, v in p.items() if k != "output"} for p in pairs]
        )
        page = tiny_farm.settings(
            "annotate",
            farm,
            samples="",
            pairs=str(tmp_path / f"{step}.parquet"),
            judges=CLEAN,
            p_label_flip=0.0,
        )
        annotate.run(page, str(tmp_path / f"labels{step}"))
        labels = read_table(tmp_path / f"labels{step}/labels.parquet")
        (row,) = (row for row in found if row["step"] == step and "eval/win_rate" in row)
        assert row["eval/win_rate"] == pytest.approx(np.mean([x["preference"] - 1 for x in labels]))


def test_the_best_checkpoint_can_be_that_of_the_win_rate(farm, tmp_path):
    rows = run("kto", farm, tmp_path, best_metric="eval/win_rate", best_mode="max", epochs=0.1)
    assert any("eval/win_rate" in row for row in rows)
    assert (tmp_path / "export/config.json").exists()


def test_sampling_is_part_of_the_memory_plan(farm, tmp_path, monkeypatch):
    """Planned at all, with the weights and the optimizer's state beside it."""
    plans, whole = [], offline.memory_check.prepare_step

    def prepare(*args):
        plans.append(whole(*args))
        raise UserError("enough")

    monkeypatch.setattr(offline.memory_check, "prepare_step", prepare)
    for changes in ({}, {"win_rate.judges": ""}):
        with pytest.raises(UserError, match="enough"):
            run(
                "sft",
                farm,
                tmp_path / f"{len(changes)}",
                **{"model.init": str(farm / "sft/export")} | changes,
            )
    judged, alone = plans
    assert [phase.name for phase in judged.others] == ["sampling"] and alone.others == ()
    params = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(judged.state.params))
    assert judged.others[0].beside >= 3 * params  # And AdamW's two means.
    assert judged.others[0].trace().lower().compile() is not None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"win_rate.judges": "nowhere.yaml"}, "^win_rate.judges: nowhere.yaml"),
        ({"win_rate.prompts": "nowhere.parquet"}, "^win_rate.prompts: nowhere.parquet"),
        ({"win_rate.judges": "", "best_metric": "eval/win_rate"}, "^best_metric: eval/win_rate, but"),
        ({"win_rate.max_prompt_length": 1}, r"^win_rate.max_prompt_length: "),
        (
            {"win_rate.judges": str(tiny_farm.ROOT / "configs/judges/micro_rating.yaml")},
            "win_rate.judges: micro_rating is of kind rating; give a judge of kind pairwise",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_first_step(farm, tmp_path, changes, why):
    with pytest.raises(UserError, match=why):
        run("dpo", farm, tmp_path, **changes)


def test_a_run_that_nobody_judges_loads_no_judge(tmp_path):
    code = (
        "import sys; from rlhf_jax.programs import load_program; from rlhf_jax.settings import load_page; "
        "load_program(load_page('configs/sft.py')); "
        "rooms = ('rlhf_jax.feedback.', 'rlhf_jax.annotation'); "
        "ours = {name for name in sys.modules if name.startswith(rooms)}; "
        "sys.exit(ours != {'rlhf_jax.feedback.running_findings'})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny_farm.ROOT).returncode == 0


def test_without_what_asks_it_is_refused_and_not_passed_over(farm, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "open_win_rate", [])
    page = tiny_farm.settings("dpo", farm, **JUDGED)
    with pytest.raises(UserError, match=r"win_rate.judges: .* import rlhf_jax.feedback.sampled_win_rate"):
        dpo.run(page, str(tmp_path))
