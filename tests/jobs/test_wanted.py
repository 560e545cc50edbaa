"""What a later stage or a judge needs and is not there is said before anything is read, trained or asked."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.programs import names, program
from rlhf_jax.settings import load_page
from rlhf_jax.training.run import missing_inputs, session

KEY = "NOBODYS_KEY"
NEEDS = {name: program(name).NEEDS for name in names()}
JUDGE = f"""
name: j
provider: openai
model: m
api_key_env: {KEY}
template: pairwise_choice
parser: choice
"""


@pytest.fixture
def judge(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    path = tmp_path / "judge.yaml"
    path.write_text(JUDGE)
    return str(path)


def run(job, folder, **changes):
    page = load_page(f"{tiny_farm.ROOT}/configs/{job}.py")
    page.update_from_flattened_dict(changes)
    program(page.job).run(page, str(folder))


@pytest.mark.parametrize("job", ["annotate", "evaluate"])
def test_a_key_that_is_not_there_is_told_before_inputs_are_read(job, judge, tmp_path):
    """Also before the files, which are not there either; with kept answers or without asking nobody wants the key."""
    changes = (
        {"samples": "nowhere.json"} if job == "annotate" else {"outputs": "a=nowhere.json", "utility": False}
    )
    changes |= {"judges": judge}
    key, file = (
        rf"^api_key_env: the environment variable {KEY} is not set; export it",
        "nowhere.json|no such file",
    )
    with pytest.raises(UserError, match=key):
        run(job, tmp_path / "run", **changes)
    with pytest.raises(UserError, match=file):
        run(job, tmp_path / "run", **changes, dry_run=True)
    (tmp_path / "answers.sqlite").touch()
    with pytest.raises(UserError, match=file):
        run(job, tmp_path / "run", **changes, cache=str(tmp_path / "answers.sqlite"))


@pytest.mark.parametrize("stage", ["labels", "evaluate"])
def test_the_farm_wants_the_keys_of_its_judges_before_it_trains(stage, judge, tmp_path):
    with pytest.raises(
        UserError, match=rf"^{stage}\.judges: api_key_env: the environment variable {KEY} is not set"
    ):
        run("farm", tmp_path / "run", **{f"{stage}.judges": judge})
    with pytest.raises(UserError, match=rf"^{stage}\.judges: nowhere.yaml: no such judge or pool file"):
        run("farm", tmp_path / "run", **{f"{stage}.judges": "nowhere.yaml"})
    assert not (tmp_path / "run" / "data").exists()


def test_the_farm_wants_the_packages_of_its_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(missing_inputs, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^dpo\.wandb_project: wandb is not installed; run pip install wandb, then"
    ):
        run("farm", tmp_path / "run", **{"dpo.wandb_project": "mine"})
    assert not (tmp_path / "run" / "data").exists()


def of_a_page(job, **changes):
    page = load_page(f"{tiny_farm.ROOT}/configs/{job}.py")
    page.update_from_flattened_dict(changes)
    return page


@pytest.mark.parametrize("job", names())
def test_every_field_that_is_read_or_written_is_one_of_the_page(job):
    fields = [name for page in tiny_farm.pages_of(job) for name in tiny_farm.flat(of_a_page(page))]
    found = [row.field for row in NEEDS[job].reads] + [row.over for row in NEEDS[job].reads if row.over]
    assert set(found) | set(NEEDS[job].writes) <= set(fields)
    for page in tiny_farm.pages_of(job):
        assert all(isinstance(row.when(of_a_page(page).to_dict()), bool) for row in NEEDS[job].reads)


def page_of_row(job, row):
    """The page of a job on which a field is read; most jobs have one."""
    pages = tiny_farm.pages_of(job)
    found = [page for page in pages if row.field in tiny_farm.flat(of_a_page(page))]
    judged = {"win_rate.judges": "x"} if "win_rate" in of_a_page(found[0]) else {}
    return next((x for x in found if row.when(of_a_page(x, **judged).to_dict())), found[0])


def fields_by_name(job):
    """Every field of a job that names something to read, and what else the page needs for it to be read."""
    needs = {
        "annotate": {"samples": "", "judges": "configs/judges/micro_pool.yaml"},
        "evaluate": {"outputs": "", "baseline": "", "labels": "", "scored": "", "runs": ""},
        "measure": {"games": ""},
        "weight_diff": {"base": str(tiny_farm.ROOT), "diff": "", "target": ""},
    }
    for row in NEEDS[job].reads:
        kept = ("tokenizer", "reward.sources")
        more = dict(needs.get(job, {x.field: "" for x in NEEDS[job].reads if x.field not in kept}))
        there = tiny_farm.flat(of_a_page(page_of_row(job, row)))
        more = {name: x for name, x in more.items() if name in there}
        more |= {"evaluate": {"utility": True}}.get(job, {})
        more |= (
            {"win_rate.judges": "configs/judges/micro_pool.yaml"}
            if row.field in ("win_rate.baseline", "win_rate.prompts")
            else {}
        )
        more |= {"outputs_2": __file__} if row.field == "outputs_1" else {}
        more |= {"ratings": f"a={__file__}"} if (job, row.field) == ("measure", "baseline") else {}
        yield row, more


@pytest.mark.parametrize(("row", "more", "job"), [(*x, job) for job in names() for x in fields_by_name(job)])
def test_what_is_not_there_is_said_with_its_field(row, more, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_farm.ROOT)
    gone = str(tmp_path / "gone.x")
    forms = {missing_inputs.NAMED_TABLES: f"a={gone}", missing_inputs.WITHIN: f"reward_model={gone}"}
    value = forms.get(row.kind, gone)
    with pytest.raises(UserError) as error:
        page = of_a_page(page_of_row(job, row), **more | {row.field: value})
        missing_inputs.check_needs(NEEDS[job], page, str(tmp_path / "run"))
    said = str(error.value)
    assert said.startswith((f"{row.field}: {gone}: no such f", f"{row.field}: {gone}: no such judge")), said
    assert any(
        way in said for way in ("make it with: python", "give the path of one", "no .yaml file is there")
    )
    assert not (tmp_path / "run").exists()


def test_a_model_is_looked_for_on_the_hub_by_its_user(tmp_path):
    page = of_a_page("sft", **{"model.init": "some-lab/some-model", "data.train": __file__, "data.eval": ""})
    with pytest.raises(
        UserError, match=r"^model\.init: .*, or if it is on the hub: hf download some-lab/some-model "
    ):
        missing_inputs.check_needs(NEEDS[page.job], page, str(tmp_path))
    page.model.init = __file__
    with pytest.raises(UserError, match=r"^model\.init: .*: a file, not a model folder"):
        missing_inputs.check_needs(NEEDS[page.job], page, str(tmp_path))
    page.model.init = "gs://bucket/model"
    with pytest.raises(UserError, match=r"^model\.init: gs://bucket/model: only files on a disk are read"):
        missing_inputs.check_needs(NEEDS[page.job], page, str(tmp_path))


@pytest.mark.parametrize("job", [job for job in names() if not NEEDS[job].remote])
def test_jobs_that_write_to_a_disk_refuse_an_object_store(job):
    """They would make a folder of the name `gs:` here."""
    with pytest.raises(
        UserError, match=rf"^workdir: gs://b/x: the job {job} writes to a disk; use a folder$"
    ):
        missing_inputs.check_needs(NEEDS[job], of_a_page(job), "gs://b/x")


def test_places_that_cannot_be_written_are_said_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_farm.ROOT)
    (tmp_path / "file").touch()
    for job, field in (("annotate", "export_answers"), ("annotate", "cache"), ("dpo", "reference_cache")):
        more = {row.field: "" for row in NEEDS[job].reads} | {field: str(tmp_path / "file/x")}
        with pytest.raises(UserError, match=rf"^{field}: .*file/x cannot be written \(.*file is a file\)"):
            missing_inputs.check_needs(NEEDS[job], of_a_page(job, **more), str(tmp_path / "run"))


def test_a_dataset_of_the_hub_needs_its_package(tmp_path, monkeypatch):
    page = of_a_page("inspect_data", **{"data.path": "some-lab/rows", "tokenizer": str(tmp_path)})
    missing_inputs.check_needs(NEEDS[page.job], page, str(tmp_path))
    monkeypatch.setattr(missing_inputs, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^data\.path: some-lab/rows: .* needs the package datasets; pip install"
    ):
        missing_inputs.check_needs(NEEDS[page.job], page, str(tmp_path))


@pytest.fixture
def alone(monkeypatch):
    """No other process, and no mesh: only what is looked at before data is read."""
    monkeypatch.setattr(startup, "join_processes", lambda how: None)
    monkeypatch.setattr(startup, "agree", lambda name, value: None)
    monkeypatch.setattr(session, "make_mesh", lambda **sizes: SimpleNamespace(**sizes))


def adapter_folder(folder, base):
    folder.mkdir()
    found = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(found))
    return str(folder)


MODELS = [
    (page_of_row(job, row), row.field, next(x.field for x in NEEDS[job].reads if x.over == row.field))
    for job in (*tiny_farm.METHODS, "generate", "score")
    for row in NEEDS[job].reads
    if row.kind == missing_inputs.MODEL
]


@pytest.mark.parametrize(("page", "field", "laid"), MODELS)
def test_models_are_looked_at_before_data_is_read(page, field, laid, tmp_path, alone):
    """An adapter in the place of a model says where it belongs."""
    needs, there = NEEDS[of_a_page(page).job], tiny_farm.flat(of_a_page(page))
    reads = [row for row in needs.reads if row.kind != missing_inputs.WITHIN and row.field in there]
    more = {row.field: "" for row in reads}
    adapter = adapter_folder(tmp_path / "adapter", "org/base")
    with pytest.raises(UserError) as error:
        session.start_up(needs, of_a_page(page, **more | {field: adapter}), str(tmp_path / "run"))
    said = str(error.value)
    assert said.startswith(f"{field}: {adapter}: no config.json; this is an adapter: name it as {laid}, "), (
        said
    )
    assert said.endswith("and its base as the model (org/base)")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{")
    with pytest.raises(UserError, match=rf"^{field}: {model}/config\.json: not readable as JSON"):
        session.start_up(needs, of_a_page(page, **more | {field: str(model)}), str(tmp_path / "run"))


def test_the_farm_looks_at_the_models_of_its_stages(tmp_path, alone):
    adapter = adapter_folder(tmp_path / "adapter", "")
    with pytest.raises(
        UserError, match=r"^ppo\.model\.reward: .*this is an adapter: name it as model\.reward_adapter"
    ):
        run("farm", tmp_path / "run", **{"ppo.model.reward": adapter})
    with pytest.raises(UserError, match=r"^dpo\.data\.train: nowhere\.json: no such file"):
        run("farm", tmp_path / "run", **{"dpo.data.train": "nowhere.json"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "start", "field"),
    [
        ("farm", program("study").run, "world.instructions"),
        ("sft", partial(session.start_up, NEEDS["sft"]), "data.train"),
    ],
)
def test_who_lacks_something_joins_before_it_fails(job, start, field, tmp_path, monkeypatch):
    """The others hear of it then; a process that left before would be waited for."""
    joined = []
    monkeypatch.setattr(startup, "join_processes", joined.append)
    page = load_page(f"{tiny_farm.ROOT}/configs/{job}.py")
    page.update_from_flattened_dict({field: str(tmp_path / "gone.jsonl"), "distributed": "on"})
    with pytest.raises(UserError, match=rf"{field}: .*gone\.jsonl: no such file"):
        start(page, str(tmp_path / "run"))
    assert joined == ["on"]
