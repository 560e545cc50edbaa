"""Studies: which stages a page gives, in which order and with which settings, and which of them are run again.

The programs are stood in for. What they write are the names of what was asked for; what they read is looked for.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_farm
from ml_collections import ConfigDict
from stood_in_programs import FARM, KilledError, Programs, farm, stand_in

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.study import study_job, study_stages
from rlhf_jax.jobs.study.study_settings import overridden
from rlhf_jax.jobs.study.study_stages import plan_stages
from rlhf_jax.programs import check_values
from rlhf_jax.settings import load_page
from rlhf_jax.settings.page_fields import check_fields
from rlhf_jax.training.run.missing_inputs import Needs, train_and_eval


@pytest.fixture
def programs(monkeypatch):
    return stand_in(monkeypatch)


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


@pytest.mark.parametrize(("page", "text", "value"), [(-1, "4", 4), (-1, "auto", "auto"), ("auto", "8", 8)])
def test_a_field_that_is_a_number_or_a_word_takes_both(page, text, value):
    settings = ConfigDict({"job": "dpo", "mesh": {"fsdp": page}})
    assert overridden(settings, [f"mesh.fsdp={text}"], "stages: one").mesh.fsdp == value


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
    ((("one", "dpo", "data.packing=1"),), {}, r"one: dpo\.data\.packing: '1'; use one of auto, on, off"),
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


def test_jobs_of_one_process_are_run_by_the_first_alone(programs, tmp_path, monkeypatch):
    """As process 1 of two sees it: it is told what is finished, and only waits for what the first one does."""
    waited = []
    for name, stood_in in (
        ("is_main", lambda: False),
        ("from_main", lambda name, value, *_: False if name.endswith("finished") else ""),
        ("barrier", lambda name, **_: waited.append(name)),
    ):
        monkeypatch.setattr(study_job.startup, name, stood_in)
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
    for seed in (0, 1, 2, 3):
        assert {f"seed_{seed}/{name}" for name in others} <= stages.keys()
        assert {f"seed_{seed}/outputs/{name}" for name in others} <= stages.keys()
    # All start from the one SFT model and read nothing of another workdir.
    for name, stage in stages.items():
        values = tiny_farm.flat(stage.config).values()
        assert not any("runs/farm" in str(value) for value in values), name
    assert stages["seed_1/kto"].config.model.init == "runs/studies/sft/export"
    ranked = stages["table2"].config.results
    assert ranked == ",".join(
        f"ranked@{seed}=runs/studies/seed_{seed}/evaluate/per_instruction.parquet" for seed in (0, 1, 2, 3)
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
