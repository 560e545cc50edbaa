"""The whole loop, a few steps each; a second run reuses it. RLHF_JAX_WIDE=1: two processes run it."""

import csv
import json

import pytest
import tiny_farm
from quick import QUICK
from wide import wide

pytestmark = pytest.mark.timeout(900)
METHODS = {"reference", "sft", "dpo", "ppo"}


def command(workdir, *overrides):
    return ["-m", "rlhf_jax.main", "--config=configs/farm.py:smoke", f"--workdir={workdir}", *overrides]


def methods(workdir):
    with (workdir / "leaderboard.csv").open() as file:
        return {row["method"] for row in csv.DictReader(file)}


@pytest.fixture
def first(tmp_path):
    """(workdir, what was printed)."""
    folder = tmp_path / "farm"
    return folder, tiny_farm.finish(tiny_farm.start(command(folder), XLA_FLAGS=QUICK))


def one_command_ends_with_the_leaderboard_and_the_report(first):
    folder, out = first
    assert methods(folder) == METHODS
    table = out[out.index("utility win rate") :]
    assert all(f"  {method} " in table for method in METHODS)
    assert f"report: {folder / 'report.html'}" in out
    report = (folder / "report.html").read_text()
    assert "http://" not in report and "https://" not in report  # one file, no request to anywhere
    assert all(method in report for method in METHODS)


def ppo_says_where_an_iteration_spends_its_time(first):
    rows = [json.loads(line) for line in (first[0] / "ppo" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "timing_s/step" in row]
    assert len(rows) > 1
    for row in rows:
        phases = [row[f"timing_s/{name}"] for name in ("rollout", "score", "update")]
        assert min(phases) > 0
        # What is left is the host's, between the last update and the next prompts.
        assert 0.7 * row["timing_s/step"] < sum(phases) <= 1.001 * row["timing_s/step"]
        assert row["perf/tokens_per_s"] * row["timing_s/step"] == pytest.approx(row["num_tokens"], rel=1e-6)
    assert rows[0]["perf/compiles"] > 0


def a_second_run_reuses_every_stage(first):
    folder, out = first
    again = tiny_farm.finish(tiny_farm.start(command(folder)))
    stages = [line.split(":")[0] for line in out.splitlines() if line.startswith("[")]
    assert len(stages) == 13  # the world and twelve jobs
    for stage in stages[1:]:
        assert f"{stage}: finished before" in again
    assert "step " not in again and "judged" not in again
    assert all(f"  {method} " in again for method in METHODS)


def changed_settings_run_that_stage_again_or_say_what_is_in_the_way(first):
    folder, _ = first
    out = tiny_farm.finish(tiny_farm.start(command(folder, "--config.ppo.kl_coef=0.02")), status=2)
    assert "dpo: finished before" in out
    line = out.splitlines()[-1]
    assert line.startswith("error: ") and "kl_coef" in line and str(folder / "ppo") in line


def test_the_farm(first):
    """One test, as two workers that share these would each run the whole loop first."""
    one_command_ends_with_the_leaderboard_and_the_report(first)
    ppo_says_where_an_iteration_spends_its_time(first)
    a_second_run_reuses_every_stage(first)
    changed_settings_run_that_stage_again_or_say_what_is_in_the_way(first)


@wide
def test_two_processes_run_it_as_well(tmp_path):
    runs = tiny_farm.start_several(2, *command(tmp_path / "farm"), XLA_FLAGS=QUICK)
    outs = [tiny_farm.finish(run) for run in runs]
    assert methods(tmp_path / "farm") == METHODS
    assert "leaderboard" not in outs[1] and "report:" in outs[0]
