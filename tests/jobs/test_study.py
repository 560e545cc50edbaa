"""Studies: which stages a page gives, in which order and with which settings, and which of them are run again.

The programs are stood in for. What they write are the names of what was asked for; what they read is looked for.
"""

import errno
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_farm
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study import study_job, study_stages
from rlhf_jax.jobs.study.study_stages import plan_stages
from rlhf_jax.programs import check_values, program
from rlhf_jax.settings import load_page
from rlhf_jax.settings.page_fields import check_fields
from rlhf_jax.training.run.missing_inputs import Needs, train_and_eval

FARM = ["data", "sft", "pairs", "val_pairs", "labels", "reward_model", "scores", "dpo", "ppo"]
FARM += ["outputs/sft", "outputs/dpo", "outputs/ppo", "evaluate"]
_SPLITS = ("sft.parquet", "preference.parquet", "unlabeled.parquet", "val.parquet", "eval.parquet")
MAKES = {
    "make_data": (*_SPLITS, "tokenizer/tokenizer.json"),
    "generate": ("outputs.parquet",),
    "annotate": ("labels.parquet",),
    "score": ("scores.parquet",),
    "evaluate": ("report.html", "leaderboard.csv", "leaderboard.txt"),
}


class KilledError(BaseException):
    """Ends a study in the middle of a stage."""


class Programs:
    """Stands in for `program`; notes what was run, and with which settings."""

    def __init__(self):
        self.ran, self.given, self.kill, self.makes, self.fail = [], {}, "", dict(MAKES), {}

    def __call__(self, name):
        def run(config, workdir):
            folder = Path(workdir)
            self.ran.append(folder.name if folder.parent.name != "outputs" else f"outputs/{folder.name}")
            self.given[self.ran[-1]] = config
            if self.ran[-1] in self.fail:
                raise self.fail[self.ran[-1]]
            for file in self.makes.get(name, ("export/config.json",)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(f"{file} of {folder.name}")
            if self.ran[-1] == self.kill:
                raise KilledError

        return SimpleNamespace(run=run, NEEDS=program(name).NEEDS)

    def run(self, page, workdir):
        """The stages that a study of this page runs, in order."""
        self.ran.clear()
        study_job.run(page, str(workdir))
        return list(self.ran)


@pytest.fixture
def programs(monkeypatch):
    found = Programs()
    monkeypatch.setattr(study_stages, "load_program", lambda page: found(page.job))
    monkeypatch.chdir(tiny_farm.ROOT)
    return found


def farm(**changes):
    page = load_page("configs/farm.py")
    judges = {f"{name}.judges": "configs/judges/micro_clean.yaml" for name in ("labels", "evaluate")}
    page.update_from_flattened_dict(judges | changes)
    return page


def small(*stages, **groups):
    """A study of these stages. groups: of settings, each a job and changes of its page."""
    page = load_page("configs/study.py")
    for name in ("dpo", "outputs", "evaluate"):
        del page[name]
    page.report, page.stages = "", stages
    for name, (job, changes) in groups.items():
        page[name] = load_page(f"configs/{job}.py")
        page[name].update_from_flattened_dict(changes)
    return page


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A farm that has run once: its folder, and the stand-ins that ran it."""
    found, folder = Programs(), tmp_path_factory.mktemp("study") / "farm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_stages, "load_program", lambda page: found(page.job))
        patch.chdir(tiny_farm.ROOT)
        assert found.run(farm(), folder) == FARM
    return folder, found


@pytest.fixture
def finished(base, programs, tmp_path):
    """A copy of that folder. Where it lies does not matter."""
    return Path(shutil.copytree(base[0], tmp_path / "farm"))


def test_stages_get_the_settings_of_their_groups_and_the_folders_of_other_stages(base):
    finished, programs = base
    for name, settings in programs.given.items():
        for field, value in tiny_farm.flat(settings).items():
            assert "runs/farm" not in str(value) and "{" not in str(value), (name, field)
        assert settings.job == "score" or settings.seed == 0
    assert programs.given["ppo"].model.reward == f"{finished}/reward_model/export"
    assert programs.given["evaluate"].outputs == ",".join(
        f"{m}={finished}/outputs/{m}/outputs.parquet" for m in ("sft", "dpo", "ppo")
    )
    for model in ("sft", "dpo", "ppo"):
        settings = programs.given[f"outputs/{model}"]
        assert (settings.model.name, settings.model.path) == (model, f"{finished}/{model}/export")
    seeds = {x.seed for x in (s.config for s in plan_stages(farm(seed=3), "x")) if "seed" in x}
    assert seeds == {3}


def test_what_is_printed_and_where_the_report_is(programs, tmp_path, capsys):
    finished = tmp_path / "farm"
    programs.run(farm(), finished)
    first = capsys.readouterr().out.splitlines()
    assert first[:2] == ["[0] data: make_data", "[1] sft: sft"] and first[-3] == "[12] evaluate: evaluate"
    assert first[-2] == f"report: {finished}/report.html" and re.fullmatch(r"done in \d+ s", first[-1])
    for name in ("report.html", "leaderboard.csv"):
        assert (finished / name).read_text() == f"{name} of evaluate"
    assert programs.run(farm(), finished) == []
    again = capsys.readouterr().out
    assert all(f"[{i}] {name}: finished before\n" in again for i, name in enumerate(FARM))
    assert "\nleaderboard.txt of evaluate\n" in again  # The stage has not shown it this time.
    assert programs.run(farm(report=""), finished) == []
    assert "report" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "run_again"),
    [
        ({"ppo.kl_coef": 0.02}, ["ppo", "outputs/ppo", "evaluate"]),
        ({"dpo.beta": 0.1}, ["dpo", "outputs/dpo", "evaluate"]),
        ({"val_pairs.temperature": 0.5}, ["val_pairs", "scores", "evaluate"]),
        ({"reward_model.epochs": 2.0}, ["reward_model", "scores", "ppo", "outputs/ppo", "evaluate"]),
        ({"labels.p_label_flip": 0.0}, [x for x in FARM[4:] if x != "outputs/sft"]),
        ({"outputs.temperature": 0.5}, FARM[-4:]),
        ({"evaluate.title": "mine"}, ["evaluate"]),
        ({"world.scale": 0.5}, FARM),
        ({"outputs.model.name": "no stage reads this"}, []),
    ],
)
def test_a_change_runs_what_depends_on_it_and_no_more(programs, finished, change, run_again):
    assert programs.run(farm(**change), finished) == run_again
    assert programs.run(farm(**change), finished) == []


def test_a_killed_study_continues(programs, tmp_path):
    programs.kill = "dpo"
    with pytest.raises(KilledError):
        programs.run(farm(), tmp_path / "run")
    programs.kill = ""
    assert programs.run(farm(), tmp_path / "run") == FARM[FARM.index("dpo") :]


def test_a_stage_that_was_killed_under_other_settings_is_not_the_old_one(programs, finished):
    """Its folder holds files of both. Neither is what was made of the old one, once it has been made again."""
    programs.kill = "pairs"
    with pytest.raises(KilledError):
        programs.run(farm(**{"pairs.temperature": 0.5}), finished)
    programs.kill = ""
    assert programs.run(farm(), finished) == [x for x in FARM[2:] if x not in ("val_pairs", "outputs/sft")]


def test_workdirs_of_before_are_run_again(programs, finished):
    """Their marks were made of the settings of all stages before, and name no run."""
    for name in FARM:
        mark = {"fingerprint": "0" * 64, "time": "2026-11-29T00:00:00+0000"}
        (finished / name / "finished.json").write_text(json.dumps(mark))
    assert programs.run(farm(), finished) == FARM


def test_files_from_outside_and_judges_are_known_by_what_they_hold(programs, tmp_path):
    rows, judge = tmp_path / "rows.json", tmp_path / "judge.yaml"
    rows.write_text("[]")
    shutil.copy("configs/judges/micro_clean.yaml", judge)
    labels = (
        "annotate",
        {"samples": str(rows), "judges": str(judge), "cache": "{labels}/mine.sqlite"},
    )  # It writes that itself.
    tune = ("dpo", {"data.train": "{labels}/labels.parquet", "model.init": "{start}/export"})
    start = ("sft", {"data.train": str(rows), "data.eval": "", "model.tokenizer": ""})
    stages = [(name, name) for name in ("start", "labels", "tune")]
    page, run = small(*stages, start=start, labels=labels, tune=tune), tmp_path / "run"
    assert programs.run(page, run) == ["start", "labels", "tune"]
    (run / "labels/mine.sqlite").write_text("what the judges said is kept here")
    assert programs.run(page, run) == []
    text = judge.read_text()
    judge.write_text(f"{text}# The same judge.\n")
    assert programs.run(page, run) == []
    judge.write_text(re.sub(r"(?m)^model: .*", "model: another", text))
    assert programs.run(page, run) == ["labels", "tune"]
    rows.write_text("[{}]")
    assert programs.run(page, run) == ["start", "labels", "tune"]


def test_judges_of_evaluations_are_known_by_what_they_ask(programs, tmp_path):
    """Of a method that knows of none, and whose page names a file that names them."""
    rows, judge, pool = tmp_path / "rows.json", tmp_path / "judge.yaml", tmp_path / "pool.yaml"
    rows.write_text("[]")
    shutil.copy("configs/judges/micro_clean.yaml", judge)
    pool.write_text("name: mine\njudges:\n  - judge: judge.yaml\n")
    tune = {"data.train": str(rows), "data.eval": "", "model.tokenizer": "", "win_rate.prompts": str(rows)}
    judged = small(("tune", "tune"), tune=("sft", tune | {"win_rate.judges": str(pool)}))
    alone = small(("tune", "tune"), tune=("sft", tune))
    assert [programs.run(page, tmp_path / "run") for page in (judged, judged)] == [["tune"], []]
    assert [programs.run(page, tmp_path / "alone") for page in (alone, alone)] == [["tune"], []]
    text = judge.read_text()
    judge.write_text(f"{text}# The same judge.\n")
    assert programs.run(judged, tmp_path / "run") == []
    judge.write_text(re.sub(r"(?m)^model: .*", "model: another", text))
    assert programs.run(judged, tmp_path / "run") == ["tune"]
    assert programs.run(alone, tmp_path / "alone") == []


def test_a_folder_of_the_study_that_is_written_out_is_its_stage_too(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_farm.ROOT / "configs", tmp_path / "configs")
    data, train = ("make_data", {}), {"data.train": "data/sft.parquet", "data.eval": ""}
    (tmp_path / "link").symlink_to(tmp_path)
    train |= {"model.tokenizer": f"{tmp_path}/link/data/tokenizer"}
    page = small(("data", "data"), ("sft", "sft"), data=data, sft=("sft", train))
    # In a workdir "." the stage `sft` is the folder "sft", and so is every setting of that text.
    assert [stage.upstream for stage in plan_stages(page, ".")] == [(), ("data",)]
    page.sft.data.train = __file__
    assert [stage.upstream for stage in plan_stages(page, ".")] == [(), ("data",)]
    page.sft.data.train, page.sft.model.tokenizer = "data", ""
    assert [stage.upstream for stage in plan_stages(page, ".")] == [(), ("data",)]
    page.sft.data.train = "data/sft.parquet"
    page.stages = page.stages[::-1]
    with pytest.raises(
        UserError, match=r"^sft\.data\.train: the stage data comes later; list it before sft$"
    ):
        plan_stages(page, ".")
    assert [stage.upstream for stage in plan_stages(page, "elsewhere")] == [(), ()]


ONE = ("one", "dpo", "model.init=m")
REFUSED = [
    ((ONE, ("two", "dpoo")), {}, r"stages: two: the page has no group 'dpoo' with a job; did you mean dpo\?"),
    ((ONE, ONE), {}, r"stages: 'one' is listed twice"),
    ((ONE, ("one/two", "dpo")), {}, r"stages: the folders of one and one/two lie in each other"),
    ((("../one", "dpo"),), {}, r"stages: '\.\./one' is no name of a stage"),
    ((("/one", "dpo"),), {}, r"stages: '/one' is no name of a stage"),
    ((("one", "dpo", "beta"),), {}, r"stages: one: 'beta' is not FIELD=VALUE"),
    ((("one", "dpo", "bta=1"),), {}, r"stages: one: bta: the job dpo has no such field; did you mean beta\?"),
    ((("one", "dpo", "job=sft"),), {}, r"stages: one: job: the job dpo has no such field"),
    ((("one", "dpo", "beta=x"),), {}, r"stages: one: beta: 'x' does not fit; it takes a number, by default 0"),
    ((("one", "dpo", "data.packing=1"),), {}, r"stages: one: data.packing: '1' does not fit; it takes true or"),
    ((("one", "dpo", "beta=-1"),), {}, r"one: dpo\.beta: -1\.0; use "),
    ((ONE,), {"dpo.data.train": "{to}/x"}, r"one: dpo\.data\.train: {to}/x: no stage is named 'to'; there are one"),
    ((ONE,), {"dpo.data.train": "{oen}"}, r"one: dpo\.data\.train: {oen}: no stage is named 'oen'; did you mean one"),
    ((ONE,), {"dpo.data.train": "{one}/x"}, r"one: dpo\.data\.train: a stage cannot read what it makes itself"),
    (
        (("one", "dpo", "model.init={two}/export"), ("two", "dpo", "model.init={one}/export")),
        {},
        r"one: dpo\.model\.init: the stage two comes later; list it before one",
    ),
    ((ONE,), {"dpo.job": "dppo"}, r"dpo\.job: 'dppo'; use one of .*dpo"),
    ((ONE,), {"report": "two"}, r"report: no stage is named 'two'; nothing leaves it out"),
    ((ONE,), {"dpo.data.train": "gone.json"}, r"one: dpo\.data\.train: gone\.json: no such file; make it with"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "changes", "said"), REFUSED)
def test_what_cannot_be_run_is_said_in_a_line_before_anything_is(programs, tmp_path, stages, changes, said):
    page = small(*stages, dpo=("dpo", {"data.train": __file__}))
    page.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=f"^{said}") as error:
        programs.run(page, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_what_a_later_stage_needs_is_looked_for_first(programs, tmp_path):
    with pytest.raises(UserError, match=r"^outputs/sft: outputs\.model\.adapter: gone: no such folder"):
        programs.run(farm(**{"outputs.model.adapter": "gone"}), tmp_path / "run")
    with pytest.raises(UserError, match=r"^data: world\.instructions: gone\.json: no such file"):
        programs.run(farm(**{"world.instructions": "gone.json"}), tmp_path / "run")
    assert programs.ran == [] and not (tmp_path / "run").exists()


def test_what_a_stage_should_have_made_is_missed_when_it_ends(programs, tmp_path):
    page = farm(**{"ppo.model.policy": "{sft}/exprt"})
    line = r"^ppo\.model\.policy: .*/run/sft/exprt: no such folder.*; not run for want of it: outputs/ppo, evaluate; "
    with pytest.raises(UserError, match=line):
        programs.run(page, tmp_path / "run")
    assert programs.ran == [name for name in FARM if name not in ("ppo", "outputs/ppo", "evaluate")]
    with pytest.raises(UserError, match=line):
        programs.run(page, tmp_path / "run")
    assert programs.ran == []


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


def test_jobs_of_one_process_are_run_by_the_first_alone(programs, tmp_path, monkeypatch):
    """As process 1 of two sees it: it is told what is finished, and only waits for what the first one does."""
    waited = []
    for name, stand_in in (
        ("is_main", lambda: False),
        ("from_main", lambda name, value, *_: False if name.endswith("finished") else ""),
        ("barrier", lambda name, **_: waited.append(name)),
    ):
        monkeypatch.setattr(study_job.startup, name, stand_in)
    alone = {"data", "labels", "evaluate"}
    assert programs.run(farm(), tmp_path / "run") == [name for name in FARM if name not in alone]
    assert [name for name in waited if name in FARM] == FARM
    assert not list(tmp_path.rglob("finished.json"))


def test_two_sets_of_outputs_and_two_rankings_are_a_matter_of_the_page(programs, tmp_path):
    base = farm()
    page = farm(report="cool/evaluate")
    cool = [
        (f"cool/{name.removeprefix('outputs/')}", group, *more, *(["temperature=0.1"] * (group == "outputs")))
        for name, group, *more in base.stages
        if group in ("outputs", "evaluate")
    ]
    ranked = "outputs=" + ",".join(f"{m}={{cool/{m}}}/outputs.parquet" for m in ("sft", "dpo", "ppo"))
    page.stages = (*base.stages, *cool[:-1], (*cool[-1], ranked))
    stages = {stage.name: stage for stage in plan_stages(page, "x")}
    assert stages["cool/ppo"].config.temperature == 0.1 != stages["outputs/ppo"].config.temperature
    assert "cool/dpo" in stages["cool/evaluate"].upstream
    assert not any(name.startswith("cool") for name in stages["evaluate"].upstream)
    programs.run(page, tmp_path / "run")
    assert (tmp_path / "run/report.html").read_text() == (
        tmp_path / "run/cool/evaluate/report.html"
    ).read_text()


def test_the_page_that_the_docs_show(programs, tmp_path):
    """It stands as it is, and is the page of configs/study.py in ten lines."""
    text = Path("docs/studies.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "betas.py").write_text(code)
    page = load_page(str(tmp_path / "betas.py"))
    check_fields(page)
    stages = {stage.name: stage for stage in plan_stages(page, "runs/betas")}
    assert list(stages) == ["low", "high", "outputs/low", "outputs/high", "evaluate"]
    assert [stages[name].config.beta for name in ("low", "high")] == [0.02, 0.2]
    assert stages["low"].config.data.train == "runs/farm/labels/labels.parquet"
    assert stages["outputs/high"].config.model.path == "runs/betas/high/export"
    assert "high=runs/betas/outputs/high/outputs.parquet" in stages["evaluate"].config.outputs
    assert stages["evaluate"].upstream == ("low", "high", "outputs/low", "outputs/high")


def test_table_2_trains_every_method_from_one_model_for_every_seed(programs):
    """All that a study can rank: every method but those that make what the others start from."""
    page = load_page("configs/study.py:table2")
    check_values(page)  # as the front door does, which imports the methods with settings of their own
    stages = {stage.name: stage for stage in plan_stages(page, "runs/studies")}
    others = set(tiny_farm.METHODS) - {"sft", "reward_model"}
    for seed in (0, 1, 2):
        assert {f"seed_{seed}/{name}" for name in others} <= stages.keys()
        assert {f"seed_{seed}/outputs/{name}" for name in others} <= stages.keys()
    # All start from the one SFT model and read nothing of another workdir.
    for name, stage in stages.items():
        values = tiny_farm.flat(stage.config).values()
        assert not any("runs/farm" in str(value) for value in values), name
    assert stages["seed_1/kto"].config.model.init == "runs/studies/sft/export"
    ranked = stages["table2"].config.results
    assert ranked == ",".join(
        f"ranked@{seed}=runs/studies/seed_{seed}/evaluate/per_instruction.parquet" for seed in (0, 1, 2)
    )


def test_the_page_of_studies_trains_two_betas_on_what_the_farm_made(programs):
    stages = {stage.name: stage for stage in plan_stages(load_page("configs/study.py"), "runs/betas")}
    assert [stages[f"beta_{beta}"].config.beta for beta in (0.02, 0.2)] == [0.02, 0.2]
    assert stages["outputs/beta_0.2"].config.model.path == "runs/betas/beta_0.2/export"
    assert stages["outputs/beta_0.2"].upstream == ("beta_0.2",)
    outside = {value for s in stages.values() for value in tiny_farm.flat(s.config).values()}
    assert "runs/farm/labels/labels.parquet" in outside and "runs/farm/sft/export" in outside


def test_a_method_that_is_not_written_yet_takes_no_word_in_the_code(monkeypatch):
    """Its own file says what it reads; a group and a stage are all that a study has to say of it."""
    needs = {"make_data": Needs(), "grpo": Needs(reads=train_and_eval(""))}
    monkeypatch.setattr(study_stages, "load_program", lambda page: SimpleNamespace(NEEDS=needs[page.job]))
    page = small(("data", "data"), ("grpo", "grpo", "seed=2"), data=("make_data", {}))
    page.grpo = ConfigDict({"job": "grpo", "seed": 0, "data": {"train": "{data}/unlabeled.parquet"}})
    data, grpo = plan_stages(page, "x")
    assert (grpo.upstream, grpo.config.seed) == (("data",), 2)
    assert grpo.config.data.train == "x/data/unlabeled.parquet" and data.upstream == ()
