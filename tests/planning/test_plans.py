"""A plan is the run itself up to its first program, on stand-ins: of every method, and through the command."""

import json
import os
import re
import shlex
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_farm
from quick import EIGHT
from wide import wide

from rlhf_jax import ranges
from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.planning import page_programs, plan_command, plan_text, stand_ins
from rlhf_jax.programs import is_method, load_program, names
from rlhf_jax.settings import load_page
from rlhf_jax.training.run.missing_inputs import inputs_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
METHODS = [name for name in names() if is_method(name)]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plan")
    script = str(Path(__file__).with_name("plans_on_eight.py"))
    out = tiny_farm.finish(tiny_farm.start([script, str(CONFIGS), str(workdir)], XLA_FLAGS=EIGHT))
    return out, workdir


def test_a_plan_names_each_program_with_its_numbers(said):
    out, _ = said
    assert re.search(
        r"^ppo on v5e:2x4: 8 devices, mesh data 1 x fsdp 8 x tensor 1; .*M parameters; 0\.00 GiB", out, re.M
    )
    table = out[out.index("ppo on v5e:2x4") :]
    for name in ("train step", "sampling", "reading", "scoring"):
        assert re.search(rf"^{name} +NO +0\.\d\d GiB +\S+ +\S+ [kMG]B( +\S+ m?s){{3}} +\w+$", table, re.M), (
            name
        )
    assert "train step receives: " in table and "over fsdp" in table
    assert re.search(r"at its bound \(\w+\) the train step takes .* tokens/s, MFU \d+\.\d%", table)
    assert (
        "an iteration (4 x train step, sampling, reading, scoring, moves to and from the hosts) takes"
        in table
    )
    assert "notice: sampling runs on the same devices as data 1 x fsdp 4 x tensor 2" in table
    assert re.search(r"^sampling receives: .* over tensor ", table, re.M)
    waits = r"^waits on the hosts: other models 0\.00, optimizer 0\.00 GiB of each chip; an iteration moves "
    assert re.search(waits + r"\S+ [kM]B of it, \S+ ms at 16 GB/s$", table, re.M)
    assert re.search(r"^always there: trained 0\.00 GiB$", table, re.M)


def test_a_scale_compares_slices_and_writes_a_report(said):
    out, workdir = said
    assert re.search(r"^train step +yes +0\.\d\d GiB", out, re.M)
    assert re.search(r"^v5e:2x2 +\S+ +\S+ +\S+ +\S+ +\w+ +\S+ m?s$", out, re.M)
    assert re.search(r"^v5e:2x4 +\S+ +\S+ +\S+ +\S+ +\w+ +\S+ m?s$", out, re.M)
    page = (workdir / "report.html").read_text()
    assert "<h2>Scaling, rows per chip alike</h2>" in page and page.count("<svg") == 4
    assert "<td>train step</td>" in page and "<td>all-gather</td>" in page


def test_what_does_not_fit_ends_in_advice(said):
    out, _ = said
    ppo = out[out.index("ppo on v5e:2x4") :]
    assert re.search(r"^does not fit: advice for \d+ bytes$", ppo, re.M)
    assert "v5e:4x4: no devices for it here" in ppo
    assert "no slice of v5e that was tried fits it as it is" in ppo


@pytest.mark.parametrize(
    "job", [name if name in ("kto", "rrhf") else pytest.param(name, marks=wide) for name in METHODS]
)
def test_every_method_can_be_planned(job, tmp_path, monkeypatch):
    """Its own page, with nothing there of what that names; nothing is compiled here."""
    monkeypatch.chdir(tmp_path)
    page = load_page(str(CONFIGS / f"{job}.py"))
    found = page_programs._stopped(page, {}, tmp_path)
    plan = found.plan_of(found.page, found.mesh)
    names_found = [x.name for x in page_programs.programs_of(plan)]
    assert names_found[0] == "train step" and len(names_found) > 1
    if "rollout" in page:
        assert "sampling" in names_found
    else:
        columns = {x.shape[-1] for name, x in plan.batch.items() if name.endswith("tokens")}
        # Responses that share their prompt share a row, which is longer.
        assert columns and max(columns) >= page.data.max_length


def test_a_stand_in_of_a_model_takes_no_room(tmp_path):
    raw = stand_ins.named_shapes()["llama_7b"]["config"]
    for scalar in (False, True):
        folder = tmp_path / f"model{scalar}"
        config = stand_ins.write_model(folder, raw, scalar=scalar, pad=True)
        found = import_folder.describe_folder(folder)
        assert found.is_scalar == scalar and found.config == config
        weights = (folder / "model.safetensors").stat()
        assert weights.st_size > 13e9 and weights.st_blocks * 512 < 1e6


@pytest.mark.parametrize("name", stand_ins.named_shapes())
def test_every_known_shape_is_a_model(name, tmp_path):
    shape = stand_ins.named_shapes()[name]
    (tmp_path / "config.json").write_text(json.dumps(shape["config"]))
    config, _ = import_folder.read_config(tmp_path)
    assert config.vocab_size == shape["config"]["vocab_size"]
    # The papers' pages and the embedded world's name models that are known here.
    assert all(isinstance(pattern, str) for pattern in shape["paths"])


def test_the_papers_models_are_known():
    for file in sorted((CONFIGS / "papers").glob("*/*.py")):
        page = load_page(str(file))
        if not is_method(page.job):
            continue
        for row, _, path in inputs_of(load_program(page).NEEDS, page.to_dict()):
            if row.kind == "model":
                assert stand_ins.model_json(row.field, path, {})["hidden_size"] == 4096


def test_whose_shape_a_model_has(tmp_path):
    asked = stand_ins.shapes_asked("llama32_1b, model.reward=smollm2_135m")
    assert asked == {"": "llama32_1b", "model.reward": "smollm2_135m"}
    assert stand_ins.model_json("model.policy", "nowhere", asked)["hidden_size"] == 2048
    assert stand_ins.model_json("model.reward", "nowhere", asked)["hidden_size"] == 576
    (tmp_path / "config.json").write_text('{"hidden_size": 7}')
    assert stand_ins.model_json("model.init", str(tmp_path), {}) == {"hidden_size": 7}
    assert stand_ins.model_json("model.init", "nowhere", {"": f"{tmp_path}/config.json"}) == {
        "hidden_size": 7
    }
    with pytest.raises(
        UserError, match=r"model\.init: nowhere is not there, and a plan needs its shape; give --plan_model="
    ):
        stand_ins.model_json("model.init", "nowhere", {})
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match=r"model\.gguf has no config\.json, and a plan needs its shape"):
        stand_ins.model_json("model.init", str(tmp_path / "model.gguf"), {})
    with pytest.raises(UserError, match=r"--plan_model: other: no such shape or config.json; use a folder"):
        stand_ins.model_json("model.init", "nowhere", {"": "other"})


def test_a_shape_that_is_none_is_named_by_where_it_is_from(tmp_path):
    raw = stand_ins.named_shapes()["microfarm"]["config"]
    (tmp_path / "config.json").write_text(json.dumps({k: x for k, x in raw.items() if k != "hidden_size"}))
    page = load_page(str(CONFIGS / "ppo.py"))
    (tmp_path / "plan").mkdir()
    with pytest.raises(UserError) as error:
        page_programs._stopped(page, {"model.policy": str(tmp_path)}, tmp_path / "plan")
    assert f"model.policy: {tmp_path}: config.json: hidden_size is missing" in str(error.value)
    assert "model_" not in str(error.value)


def test_a_scale_multiplies_rows():
    page = load_page(str(CONFIGS / "ppo.py"))
    found = page_programs.scaled(page, 4)
    for field in ("rollout.batch_size", "minibatch_size"):
        before, after = (ranges.value_at(x.to_dict(), field) for x in (page, found))
        assert after == 4 * before
    page.rollout.batch_size = 3
    with pytest.raises(
        UserError,
        match=r"--scale: rollout\.batch_size of 3 rows cannot be multiplied with 1/2; use chip counts",
    ):
        page_programs.scaled(page, 0.5)
    # 7 / 3 as a float times 27 is 63.00000000000001.
    page.rollout.batch_size = page.minibatch_size = 27
    assert page_programs.scaled(page, Fraction(56, 24)).rollout.batch_size == 63


def test_a_mesh_of_another_size_is_made_to_fit():
    page = load_page(str(CONFIGS / "papers/alpaca_farm/ppo.py"))
    found, notices = page_programs._with_mesh(page, 16)
    assert found.mesh.to_dict() == {"data": 1, "fsdp": 8, "tensor": 2}
    assert "--config.mesh.fsdp=8 --config.mesh.tensor=2" in notices[0]
    assert page_programs._with_mesh(page, 8)[1] == ()
    page.mesh.fsdp = -1
    assert page_programs._with_mesh(page, 16)[1] == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--scale=8,64", "--scale: goes with --plan; add --plan=v6e"),
        ("--plan_model=llama_7b", "--plan_model: goes with --plan"),
        ("--plan=v9:2x2", "is no slice; use one of"),
        ("--plan=v6e --scale=9,64", "no slice of v6e has 9 chips"),
        ("--plan= --workdir={tmp_path}", "--plan: '' is no slice"),
    ],
)
def test_the_command_refuses_in_one_line(flags, words, tmp_path):
    command = [
        "-m",
        "rlhf_jax.main",
        f"--config={CONFIGS}/sft.py",
        *shlex.split(flags.format(tmp_path=tmp_path)),
    ]
    out = tiny_farm.finish(tiny_farm.start(command), status=2)
    (line,) = [x for x in out.splitlines() if x.startswith("error: ")]
    assert words in line


@pytest.mark.parametrize("scale", ["", "8,16"])
@pytest.mark.parametrize("job", ["make_data", "annotate", "study"])
def test_a_job_that_trains_nothing_has_no_plan(job, scale):
    """Said before anything of the page is used that only methods have, or a compiler is looked for."""
    with pytest.raises(UserError, match=rf"--plan: {job} trains nothing; plans are of methods"):
        plan_command.run_plan(load_page(str(CONFIGS / f"{job}.py")), "h100", scale, "", "", job)


@pytest.mark.parametrize(
    ("job", "asked", "words"),
    [
        (
            "ppo",
            "model.polcy=llama_7b",
            "the page reads no model 'model.polcy'; use model.policy, model.reward",
        ),
        ("sft", "llama_7b", "the page reads no model; name one in model.init, or leave it out"),
        ("ppo", "model.policy=", "'model.policy=' names no shape; write for example llama_7b"),
        ("ppo", "llama_7b,llama_13b", "all models is named twice"),
    ],
)
def test_no_shape_is_passed_over(job, asked, words):
    with pytest.raises(UserError, match=rf"^--plan_model: {words}"):
        plan_command.run_plan(load_page(str(CONFIGS / f"{job}.py")), "h100:8", "", asked, "", job)


@pytest.mark.parametrize(
    "job", ["online_dpo", pytest.param("quark", marks=wide), pytest.param("rrhf_online", marks=wide)]
)
def test_a_plan_counts_the_updates_that_a_run_does(job, tmp_path, monkeypatch):
    """Pairs, pools and candidates are fewer rows, or more, than responses."""
    monkeypatch.chdir(tmp_path)
    page = load_page(str(CONFIGS / f"{job}.py"))
    found = page_programs._stopped(page, {}, tmp_path)
    wanted = (
        page.updates
        if job == "quark"
        else page.get("epochs", 1) * page.rollout.batch_size // page.minibatch_size
    )
    assert found.plan_of(found.page, found.mesh).updates == wanted


def test_units():
    assert [plan_text.size(x) for x in (2.5e9, 3e6, 40)] == ["2.5 GB", "3 MB", "0.04 kB"]
    assert [plan_text.duration(x) for x in (2.5, 0.02)] == ["2.5 s", "20 ms"]
    assert plan_text.table([("a", "bc"), ("def", "g")]) == ["a    bc", "def  g"]


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (pip install -r requirements-plan.txt)")
def test_the_embedded_model_on_a_tpu_slice(tmp_path):
    """In bfloat16 and micro-batches, at which the compiler has failed."""
    command = ["-m", "rlhf_jax.main", f"--config={CONFIGS}/sft.py", "--plan=v6e:2x2", f"--workdir={tmp_path}"]
    command += ["--config.microbatches=2", "--config.model.dtype=bfloat16", "--config.model.remat=full"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = tiny_farm.finish(tiny_farm.start(command, XLA_FLAGS="", PYTHONPATH=paths))
    assert re.search(r"^train step +yes +0\.\d\d GiB", out, re.M) and (tmp_path / "report.html").is_file()
    assert re.search(r"^train step receives: .*over fsdp", out, re.M)
