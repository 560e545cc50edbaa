"""The door for notebooks: pages from Python are those of commands, and runs leave nothing behind but their folder."""

import asyncio
import importlib
import json
import signal
import subprocess
import sys
import threading
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_farm
from commands import parse_command
from transformers import AutoConfig

import rlhf_jax as rj
from rlhf_jax import notebook
from rlhf_jax.data.records.records import read_table
from rlhf_jax.notebook import Page
from rlhf_jax.parallel import startup
from rlhf_jax.training.loop.metrics import JsonlWriter

ROOT = tiny_farm.ROOT
TWO_STEPS = {"epochs": 0.1, "eval_every": 0, "save_every": 1}


def page(job, farm, workdir, **settings) -> Page:
    """A small page of a method; the data are the caller's."""
    small = {name: x for name, x in tiny_farm.SMALL[job].items() if not name.startswith("model.")}
    small |= {"model.init": farm / "sft/export", "data.eval": "", **TWO_STEPS}
    return rj.load_page(f"{ROOT}/configs/{job}.py", workdir, **(small | settings))


@pytest.fixture(scope="module")
def demonstrations(farm):
    return read_table(farm / "data/sft.parquet")[:160]


@pytest.fixture(scope="module")
def sft(farm, demonstrations, tmp_path_factory):
    """The run of a first method in this process."""
    workdir = tmp_path_factory.mktemp("notebook") / "sft"
    return page("sft", farm, workdir, **{"data.train": demonstrations}).train()


def test_the_package_itself_loads_nothing():
    code = "import sys, rlhf_jax as rj; rj.load_page; print([x for x in sys.argv[1:] if x in sys.modules])"
    heavy = ("jax", "numpy", "ml_collections", "absl", "pyarrow", "rlhf_jax.notebook")
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done


def test_one_method_after_the_other(farm, sft, tmp_path, capsys):
    assert [row["step"] for row in sft.metrics if "loss" in row] == [1, 2]
    assert sft.metrics[-1]["eval/loss"] > 0
    labels = farm / "labels/labels.parquet"
    run = page("dpo", farm, tmp_path / "dpo", **{"data.train": labels, "lora.alpha": 8.0}).train()
    assert "notice: lora.alpha has no effect: lora.rank is 0" in capsys.readouterr().out
    assert {"loss", "rewards/accuracies"} <= set(run.metrics[0])
    assert rj.open_run(tmp_path / "dpo") == run


def test_the_model_answers_and_travels(sft, tmp_path):
    prompts = ["Name a colour.", {"instruction": "Add.", "input": "1 2"}, "Name a colour."]
    greedy = sft.sample(prompts, max_new_tokens=6)
    assert len(greedy) == 3 and all(isinstance(text, str) for text in greedy)
    assert greedy[0] == greedy[2] and greedy == sft.sample(prompts, max_new_tokens=6)
    (drawn,) = sft.sample(["Name a colour."], samples=4, temperature=5.0, max_new_tokens=6)
    assert len(set(drawn)) > 1
    assert (sft.export(tmp_path / "model") / "config.json").is_file()
    assert AutoConfig.from_pretrained(tmp_path / "model").hidden_size == tiny_farm.WIDTH
    with pytest.raises(rj.UserError, match="is there already; name a new folder"):
        sft.export(tmp_path / "model")
    with pytest.raises(rj.UserError, match=r"prompts: 1 of 2 can be used \(skipped 1: empty"):
        sft.sample(["Name a colour.", ""])
    with pytest.raises(rj.UserError, match="prompts: use a list of texts or dicts"):
        sft.sample("Name a colour.")


def test_the_same_rows_go_on_and_others_are_refused(farm, sft, demonstrations, tmp_path, capsys):
    again = page("sft", farm, sft.workdir, **{"data.train": [dict(row) for row in demonstrations]})
    (path,) = again.files
    assert read_table(path) == demonstrations
    again.train()
    assert f"continuing {sft.workdir} at step 2" in capsys.readouterr().out
    with pytest.raises(rj.UserError, match=r"data.train"):
        page("sft", farm, sft.workdir, **{"data.train": demonstrations[1:]}).train()


def test_what_a_command_says_python_can_say(tmp_path, capsys):
    """The settings that flags give, and the notices, for a variant of a page of ours and for a user's own page."""
    own = tmp_path / "mine.py"
    own.write_text(
        "from rlhf_jax.settings import load_page\n"
        f"def get_config():\n    c = load_page('{ROOT}/configs/farm.py')\n    c.ppo.kl_horizon = 900.0\n    return c\n"
    )
    said = {
        f"{ROOT}/configs/dpo.py:alpaca": {
            "beta": 1, "data.packing": "on", "model.dtype": "bfloat16", "mesh.fsdp": 1, "optimizer.eps": 1e-7,
            "optimizer.name": "lion",
        },
        f"{ROOT}/configs/annotate.py": {"formats": ("trl", "rrhf"), "seed": 5, "samples": "a=b, c"},
        str(own): {"seed": 3, "ppo.kl_coef": 0.5, "labels.formats": ("trl",)},
    }  # fmt: skip
    for spec, changes in said.items():
        arguments = [f"--config.{name}={value}" for name, value in changes.items()]
        page = parse_command([f"--config={spec}", f"--workdir={tmp_path}/run", *arguments])
        by_command = page.to_dict(), capsys.readouterr().out
        python = rj.load_page(spec, tmp_path / "run", **changes)
        assert (python.config.to_dict(), capsys.readouterr().out) == by_command
        assert "notice: " in by_command[1] or "annotate" in spec
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spec", "settings", "said"),
    [
        ("dpo.py", {"bta": 0.1}, "bta: no such field in .*dpo.py; did you mean beta?"),
        ("dpo.py", {"learning_rate": 0.1}, "did you mean optimizer.learning_rate?"),
        ("dpo.py", {"data": {"train": []}}, "data: a group of fields; set one of data.chat_template, data.date"),
        ("dpo.py", {"beta": "0.1"}, "beta: '0.1' does not fit; it takes a number, by default 0.05"),
        ("dpo.py", {"beta": -1.0}, "beta: -1.0; use a finite number above 0"),
        ("dpo.py", {"beta": [{"a": 1}]}, "beta: .* does not fit; it takes a number"),
        ("dpo.py", {"data.train": []}, r"data.train: \[\] does not fit; it takes text"),
        ("dpo.py", {"data.train": [{"a": {1, 2}}]}, "data.train: row 0 cannot be written as JSON"),
        ("dpo.py", {"data.train": None}, "data.train: None; use text"),
        ("evaluate.py", {"outputs": {"a,b": "x"}}, "outputs: 'a,b' is no name of a table"),
        ("dpo.py:alpacca", {}, "page: no variant 'alpacca'; did you mean alpaca?"),
        ("dpoo.py", {}, "page: no file .*dpoo.py"),
        ("dpo.py", {"workdir": " "}, "workdir: missing"),
        ("dpo.py", {"workdir": "gs://b/x", "data.train": [{"a": 1}]}, "data.train: rows cannot be kept in gs://"),
    ],
)  # fmt: skip
def test_what_a_page_cannot_say_is_one_line(spec, settings, said):
    with pytest.raises(rj.UserError, match=f"^{said}" if ":" in said else said) as error:
        rj.load_page(f"{ROOT}/configs/{spec}", **({"workdir": "nowhere"} | settings))
    assert "\n" not in str(error.value)


def test_rows_of_numpy_and_tables(tmp_path):
    """What a table gave can be handed over again, dates of labels too, and what arrays hold."""
    row = {"a": np.float32(0.5), "b": np.arange(2), "when": datetime(2026, 11, 29, 12, 0)}
    (text,) = rj.load_page(f"{ROOT}/configs/dpo.py", tmp_path, **{"data.train": [row]}).files.values()
    assert json.loads(text) == {"a": 0.5, "b": [0, 1], "when": "2026-11-29T12:00:00"}


def test_what_a_run_is_given_and_what_of_it_is_raised(tmp_path, monkeypatch, capsys):
    """A run has settings of its own, says its notices again, and raises what is its machine's as one line."""
    raised = iter([None, OSError(28, "No space left on device", "here"), KeyError("ours")])

    def run(config, workdir):
        startup.notice_once("as always")
        config.seed = 7
        if (error := next(raised)) is not None:
            raise error

    monkeypatch.setattr(notebook, "load_program", lambda page: SimpleNamespace(run=run))
    loaded = rj.load_page(f"{ROOT}/configs/dpo.py", tmp_path)
    assert loaded.train() == notebook.Run(str(tmp_path)) and loaded.config.seed == 0
    with pytest.raises(rj.UserError, match=r"^here: No space left on device; free space there"):
        loaded.train()
    with pytest.raises(KeyError, match="ours"):
        loaded.run()
    assert capsys.readouterr().out == "notice: as always\n" * 3


def test_what_is_not_there_is_said(farm, sft, tmp_path):
    with pytest.raises(
        rj.UserError, match=r"^job: generate trains nothing, so call run\(\); methods are distillation, "
    ):
        rj.load_page(f"{ROOT}/configs/generate.py", tmp_path).train()
    with pytest.raises(rj.UserError, match="no run was started there"):
        rj.open_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    run = rj.open_run(tmp_path)
    with pytest.raises(rj.UserError, match="only methods write metrics"):
        _ = run.metrics
    with pytest.raises(rj.UserError, match=r"export: no model there"):
        run.sample(["x"])


def test_rows_of_a_run_that_is_going_on_or_was_killed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    run = rj.open_run(tmp_path)
    assert run.metrics == [{"step": 1, "loss": 2.0}] and run.findings() == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo\n{"step": 2}\n')
    with pytest.raises(
        rj.UserError, match=r"metrics\.jsonl: line 1: no JSON object; mend or delete that line"
    ):
        _ = run.metrics


def test_a_run_that_fails_leaves_nothing(farm, demonstrations, tmp_path, monkeypatch):
    """No lock, no thread, no handler; and when the reason is gone the same page runs."""
    before = signal.getsignal(signal.SIGTERM)
    rows = page("sft", farm, tmp_path / "run", **{"data.train": demonstrations})

    def full(self, step, values):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr(JsonlWriter, "write", full)
        with pytest.raises(rj.UserError, match=r"metrics.jsonl: No space left on device; free space there"):
            rows.train()
    assert not (tmp_path / "run/lock.json").exists()
    assert "workdir lock" not in [thread.name for thread in threading.enumerate()]
    assert signal.getsignal(signal.SIGTERM) is before
    assert rows.train().metrics[-1]["step"] == 2


def test_judges_and_evaluation_where_a_loop_is_running(farm, tmp_path, monkeypatch):
    """As in a notebook's cell; rows go in and come out."""
    monkeypatch.chdir(ROOT)  # judges are named from there
    outputs = read_table(farm / "pairs/outputs.parquet")[:6]

    async def cell():
        settings = {"samples": outputs, "p_label_flip": 0.0, "judges": "configs/judges/micro_clean.yaml"}
        labels = rj.load_page("configs/annotate.py", tmp_path / "labels", **settings).run()
        sides = [
            [{n: row[n] for n in ("instruction", "input")} | {"output": row["outputs"][k]} for row in outputs]
            for k in (0, 1)
        ]
        settings = {"outputs": {"second": sides[1]}, "baseline": sides[0], "utility": False, "runs": ""}
        settings |= {"judges": "configs/judges/micro_clean.yaml"}
        ranked = rj.load_page("configs/evaluate.py", tmp_path / "ranked", **settings).run()
        return labels.table("labels.parquet"), ranked.table("annotations.parquet")

    labels, judged = asyncio.run(cell())
    assert [row["instruction"] for row in labels] == [row["instruction"] for row in outputs]
    assert {row["preference"] for row in labels} <= {1.0, 1.5, 2.0}
    assert len(judged) == 6


@pytest.mark.parametrize(
    "name", ["data.records.read_pairs", "models.huggingface.load", "annotation.parsing.parse_all"]
)
def test_rooms_offer_what_they_are_for(name):
    room, _, function = f"rlhf_jax.{name}".rpartition(".")
    assert callable(getattr(importlib.import_module(room), function))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = importlib.import_module(room).nonsense
