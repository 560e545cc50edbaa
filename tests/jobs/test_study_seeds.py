"""Stages for several seeds, and stages that fail. The programs are stood in for."""

import errno
import re

import pytest
from ml_collections import ConfigDict
from stood_in_programs import FARM, farm, stand_in

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study.study_stages import plan_stages


@pytest.fixture
def programs(monkeypatch):
    return stand_in(monkeypatch)


@pytest.mark.parametrize("error", [UserError("beta: 7; use less"), ZeroDivisionError("division by zero")])
def test_a_stage_that_fails_is_named_and_leaves_the_others(programs, tmp_path, capsys, error):
    programs.fail["dpo"] = error
    name = "" if isinstance(error, UserError) else "ZeroDivisionError: "
    with pytest.raises(UserError) as found:
        programs.run(farm(), tmp_path / "run")
    assert str(found.value) == (
        f"dpo: {name}{error}; not run for want of it: outputs/dpo, evaluate; the same command runs what is missing, "
        "and keeps what is done, 10 of 13 stages"
    )
    assert programs.ran == [name for name in FARM if name not in ("outputs/dpo", "evaluate")]
    out, told = capsys.readouterr()
    assert "[10] outputs/dpo: not run, as it reads dpo\n" in out and f"error: dpo: {name}{error}\n" in told
    assert ("Traceback" in told) == bool(name)
    programs.fail.clear()
    assert programs.run(farm(), tmp_path / "run") == ["dpo", "outputs/dpo", "evaluate"]


def test_a_full_disk_is_no_failure_of_one_stage(programs, tmp_path):
    programs.fail["sft"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError):
        programs.run(farm(), tmp_path / "run")
    assert programs.ran == ["data", "sft"]


def seeded(**changes):
    """One world and SFT model, and for each of two seeds a DPO run and its outputs; a ranking of all of them."""
    page = farm(**{"seeds": (3, 5), "once": ("data", "sft", "evaluate")} | changes)
    page.evaluate.outputs = "sft={data}/eval.parquet,dpo={outputs/dpo}/outputs.parquet"
    page.evaluate.runs, page.evaluate.labels, page.evaluate.scored = "sft={sft},dpo={dpo}", "", ""
    keep = {"data", "sft", "pairs", "labels", "dpo", "outputs/dpo", "evaluate"}
    page.stages = tuple(stage for stage in page.stages if stage[0] in keep)
    return page


def test_stages_are_run_for_every_seed_and_read_those_of_their_own(programs, tmp_path):
    each = ("pairs", "labels", "dpo", "outputs/dpo")
    stages = {stage.name: stage for stage in plan_stages(seeded(), "W")}
    assert list(stages) == [
        *("data", "sft"),
        *(f"seed_{seed}/{name}" for seed in (3, 5) for name in each),
        "evaluate",
    ]
    assert [stages[f"seed_{seed}/dpo"].config.seed for seed in (3, 5)] == [3, 5] and stages[
        "sft"
    ].config.seed == 0
    dpo = stages["seed_5/dpo"].config
    assert (dpo.data.train, dpo.model.init) == ("W/seed_5/labels/labels.parquet", "W/sft/export")
    assert stages["seed_5/dpo"].upstream == ("data", "sft", "seed_5/labels")
    ranked = stages["evaluate"].config
    assert ranked.outputs == (
        "sft=W/data/eval.parquet,dpo@3=W/seed_3/outputs/dpo/outputs.parquet,"
        "dpo@5=W/seed_5/outputs/dpo/outputs.parquet"
    )
    assert ranked.runs == "sft=W/sft,dpo@3=W/seed_3/dpo,dpo@5=W/seed_5/dpo"
    assert set(stages["evaluate"].upstream) >= {"seed_3/outputs/dpo", "seed_5/outputs/dpo", "seed_3/dpo"}
    # A third seed leaves what there is of the others, and the ranking of all is made again.
    assert len(programs.run(seeded(), tmp_path / "run")) == 11
    again = programs.run(seeded(seeds=(3, 5, 6)), tmp_path / "run")
    assert again == ["pairs", "labels", "dpo", "outputs/dpo", "evaluate"]
    assert programs.given["dpo"].seed == 6


def test_a_group_that_is_seeds_ahead_stays_so_and_a_stage_may_have_its_own_seed():
    page = seeded()
    page.dpo = ConfigDict(page.dpo.to_dict() | {"seed": 10})  # No longer the page's own.
    page.stages = tuple((*s, "seed=1") if s[0] == "pairs" else s for s in page.stages)
    stages = {stage.name: stage for stage in plan_stages(page, "W")}
    assert [stages[f"seed_{seed}/dpo"].config.seed for seed in (3, 5)] == [13, 15]
    assert [stages[f"seed_{seed}/pairs"].config.seed for seed in (3, 5)] == [1, 1]


def test_a_stage_of_one_seed_is_named_in_full():
    page = seeded(**{"sft.data.eval": "{data}/val.parquet"})
    page.stages = (
        *page.stages[:-1],
        ("again", "dpo", "model.init={seed_5/dpo}/export", "data.train={seed_3/labels}"),
    )
    page.once, page.report = ("data", "sft", "again"), ""
    found = plan_stages(page, "W")[-1]
    assert (found.name, found.config.model.init) == ("again", "W/seed_5/dpo/export")
    assert found.upstream == ("data", "seed_3/labels", "seed_5/dpo")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (1, 1)}, "seeds: 1 is listed twice"),
        ({"once": ("data", "sft", "evaluat")}, "once: no stage is named 'evaluat'; did you mean evaluate?"),
        ({"evaluate.baseline": "{outputs/dpo}/outputs.parquet"}, "evaluate.baseline: {outputs/dpo}/outputs.parquet: "
         "outputs/dpo is run for every seed, and this stage once for all; name one of them, as in {seed_3/"),
        ({"seeds": (-1,)}, "seeds: (-1,); use a tuple of whole numbers, such as (0,1,2), or () for"),
    ],
)  # fmt: skip
def test_seeds_that_cannot_be_are_refused(programs, tmp_path, changes, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        programs.run(seeded(**changes), tmp_path / "run")
    assert programs.ran == []
