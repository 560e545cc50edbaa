"""Bad input: one line that says what was found and what would work, or a skip that is counted aloud."""

import json
import math
import os
import re

import pytest
import tiny_farm

from rlhf_jax import programs
from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.training.run import encoded_rows

MAKES = r"make it with: python -m rlhf_jax\.main --config=configs/"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=w"], r"^--config: missing; use for example --config=configs/farm.py"),
        (
            ["--config=configs/pp.py", "--workdir=w"],
            r"^--config: no file configs/pp.py; pages here: .*configs/ppo.py",
        ),
        (
            ["--config=configs/ppo.py:alpac", "--workdir=w"],
            r"no variant 'alpac'; did you mean alpaca\?; variants: ",
        ),
        (["--config=configs/ppo.py"], r"^--workdir: missing; use for example --workdir=runs/ppo"),
        (["--config=configs/ppo.py", "--workdir="], r"^--workdir: missing"),
        (
            ["--config=rlhf_jax/errors.py", "--workdir=w"],
            r"errors.py is no page; it needs a function get_config",
        ),
        (
            ["--config.kl_coeff=1"],
            r"^--config.kl_coeff: no such field in configs/ppo.py; did you mean kl_coef\?",
        ),
        (["--config.learning_rate=1"], r"no such field .*; did you mean (optimizer\.|value_)learning_rate\?"),
        (["--config.rollout.temprature=1"], r"did you mean rollout.temperature\?"),
        (["--config.zzz=1"], r"^--config.zzz: no such field in .*; fields: .*clip, data\.\*, distributed, "),
        (["--config.data=1"], r"^--config.data: a group of fields; set one of --config.data.chat_template, "),
        (
            ["--config.steps=1.5"],
            r"^--config.steps: '1.5' does not fit; it takes a whole number, by default \d+",
        ),
        (
            ["--config.kl_coef=high"],
            r"^--config.kl_coef: 'high' does not fit; it takes a number, by default 0\.\d+",
        ),
        (
            ["--config.adaptive_kl=maybe"],
            r"^--config.adaptive_kl: 'maybe' does not fit; it takes true or false",
        ),
        (["--workdirr=w"], r"'workdirr'. Did you mean: workdir"),
        (["steps=3"], r"^steps=3: not a flag; settings are written --config.NAME=VALUE"),
    ],
)
def test_flags_that_do_not_fit(refused, arguments, message):
    if not any(a.startswith(("--config=", "--workdir=")) for a in arguments):
        arguments = ["--config=configs/ppo.py", "--workdir=w", *arguments]
    assert re.search(message, refused(*arguments))


MISSING = {
    "sft": {"data.train": "make_data", "data.eval": "make_data", "model.tokenizer": "make_data"},
    "reward_model": {"data.train": "annotate", "model.init": "sft", "center_on": "make_data"},
    "dpo": {"data.train": "annotate", "data.eval": "annotate", "model.init": "sft"},
    "ppo": {"data.train": "make_data", "model.policy": "sft", "model.reward": "reward_model"},
    "generate": {"data.prompts": "make_data", "model.path": "sft"},
    "score": {"data.responses": "generate", "model.path": "reward_model"},
    "annotate": {"samples": "generate"},
    "inspect_data": {"data.path": "make_data", "tokenizer": "make_data"},
    "weight_diff": {"base": "sft"},
}


@pytest.mark.parametrize(
    ("job", "field"), [(job, field) for job, fields in MISSING.items() for field in fields]
)
def test_missing_input_names_the_command_that_makes_it(refused, farm, tmp_path, job, field):
    value = (
        f"{tmp_path}/absent.parquet"
        if "parquet" in str(tiny_farm.flat(tiny_farm.settings(job, farm))[field])
        else f"{tmp_path}/absent"
    )
    changes = {field: value}
    line = refused(*tiny_farm.arguments(job, farm, tmp_path / "run", **changes))
    assert line.startswith((value, f"{field}: {value}")), line
    assert re.search(MAKES + MISSING[job][field], line), line


def broken_files(folder, farm):
    """(name of a bad instruction file, what is said of it)."""
    good = read_table(farm / "data/sft.parquet")
    write_parquet(
        folder / "no_column.parquet", [{"instruction": row["instruction"], "ouput": "x"} for row in good]
    )
    write_parquet(folder / "all_empty.parquet", [row | {"output": " "} for row in good])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "empty.jsonl").write_text("\n\n")
    (folder / "cut.parquet").write_bytes((farm / "data/sft.parquet").read_bytes()[:2000])
    (folder / "cut.jsonl").write_text(json.dumps(good[0]) + "\n" + json.dumps(good[1])[:20])
    (folder / "table.csv").write_text("instruction,output\n")
    return {
        "no_column.parquet": r"no column 'output'; did you mean 'ouput'\? it has instruction, ouput",
        "all_empty.parquet": r"none of its 200 rows can be used; skipped 200: empty response 200",
        "empty.parquet": r"the file is empty",
        "empty.jsonl": r"it has no rows",
        "cut.parquet": r"broken parquet \(.*\); make the file again",
        "cut.jsonl": r"broken JSON at line 2",
        "table.csv": r"unknown kind of table '.csv'; use .parquet",
    }


def test_broken_files(refused, farm, tmp_path):
    for name, message in broken_files(tmp_path, farm).items():
        line = refused(
            *tiny_farm.arguments("sft", farm, tmp_path / "run", **{"data.train": str(tmp_path / name)})
        )
        assert line.startswith(f"{tmp_path / name}: ") and re.search(message, line), line


def labels(farm, folder, **broken):
    """A copy of the labels with some rows broken: name -> (row -> changes) for rows 0, 1, 2, ... in turn."""
    rows = [row for row in read_table(farm / "labels/labels.parquet") if row["preference"] != 1.5][:40]
    for i, change in enumerate(broken.values()):
        rows[i] = rows[i] | change
    write_parquet(folder / "labels.parquet", [*rows, rows[-1], rows[-1]])
    return str(folder / "labels.parquet")


def test_unusable_pairs_are_counted(farm, tmp_path, capsys):
    """NaN, null, tied and out-of-range preferences, equal outputs, duplicates, prompts that are too long."""
    long = "word " * 200
    path = labels(
        farm,
        tmp_path,
        nan={"preference": math.nan},
        null={"preference": None},
        tie={"preference": 1.5},
        beyond={"preference": 3.0},
        same={"output_1": "x", "output_2": "x"},
        empty={"output_1": ""},
        long_prompt={"instruction": long},
        long_response={"output_2": long},
    )
    config = tiny_farm.settings("dpo", farm, **{"data.train": path})
    split = encoded_rows.pairs(config.data, load_tokenizer(config.model.init), 0, "")
    printed = capsys.readouterr().out
    assert "34 rows read" in printed
    for reason in ("missing preference 2", "tie 1", "preference out of [1, 2] 1", "identical outputs 1"):
        assert reason in printed
    assert "empty response 1" in printed and "duplicate 2" in printed
    assert printed.count("prompt too long 1") == 1
    dropped = sum(int(n) for n in re.findall(r"data\.\w+: \d+ rows; skipped (\d+)", printed))
    assert len(split.train) + len(split.eval) == 34 - dropped


def test_prompts_that_are_too_long_are_counted(farm, capsys):
    for job, read in (("ppo", encoded_rows.prompts), ("sft", encoded_rows.instructions)):
        limit = "data.max_prompt_length" if job == "ppo" else "data.max_length"
        config = tiny_farm.settings(job, farm, **{limit: 34, "data.eval_rows": 40})
        split = read(config.data, load_tokenizer(farm / "data/tokenizer"), 0, "")
        printed = capsys.readouterr().out
        kept, dropped = re.search(
            r"data.train: (\d+) (?:rows|prompts); .*prompt too long (\d+)", printed
        ).groups()
        assert int(kept) == len(split.train) > 0 < int(dropped)
        assert int(kept) + int(dropped) == len(read_table(config.data.train))


def test_a_file_without_any_usable_preference(refused, farm, tmp_path):
    rows = [row | {"preference": math.nan} for row in read_table(farm / "labels/labels.parquet")]
    write_parquet(tmp_path / "labels.parquet", rows)
    for job in ("reward_model", "dpo"):
        changes = {"data.train": str(tmp_path / "labels.parquet")}
        line = refused(*tiny_farm.arguments(job, farm, tmp_path / job, **changes))
        assert line.endswith("none of its 100 rows can be used; skipped 100: missing preference 100"), line


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        (
            "sft",
            {"data.max_length": 3},
            r"^max_length: none of 200 rows fits 3 tokens \(.*prompt too long 200\)",
        ),
        ("ppo", {"data.max_prompt_length": 3}, r"^max_prompt_length: none of \d+ rows fits 3 tokens"),
        ("generate", {"data.max_prompt_length": 3}, r"^max_prompt_length: none of 12 rows fits 3 tokens"),
        ("score", {"data.max_length": 12}, r"max_length: "),
        ("sft", {"data.template": "brif"}, r"^data.template: 'brif'; use one of .*; did you mean brief\?"),
        ("sft", {"data.eval_rows": 0}, r"^data.eval_rows: 0; use a whole number of at least 1$"),
        ("sft", {"batch_size": 0}, r"^batch_size: 0; use a whole number of at least 1"),
        ("sft", {"mesh.data": 3}, r"^mesh.data: data=3 .*1 device"),
        ("sft", {"mesh.data": -1}, r"^mesh.fsdp: -1, and mesh.data is -1 too"),
        (
            "sft",
            {"microbatches": 3},
            r"^microbatches: 3 does not divide the 8 rows per device .*use one of 1, 2, 4, 8",
        ),
        ("sft", {"epochs": 0.0}, r"^epochs: 0.0; use a (finite )?number above 0"),
        ("sft", {"optimizer.name": "adam"}, r"^optimizer.name: 'adam'; use one of .*; did you mean adamw\?"),
        (
            "sft",
            {"optimizer.schedule": "cosin"},
            r"^optimizer.schedule: 'cosin'; use one of .*; did you mean cosine\?",
        ),
        ("sft", {"log_every": 0}, r"^log_every: 0; use a whole number of at least 1"),
        ("sft", {"model.kv_heads": 3}, r"^model.kv_heads: 3 does not divide model.heads=2"),
        ("sft", {"model.dtype": "float16"}, r"^model.dtype: 'float16'; use one of float32, bfloat16"),
        ("sft", {"model.remat": "all"}, r"^model.remat: 'all'; use one of none, dots, full"),
        ("sft", {"distributed": "yes"}, r"^distributed: 'yes'; use one of auto, on, off"),
        ("ppo", {"minibatch_size": 3}, r"^minibatch_size: 3 does not divide rollout.batch_size=8"),
        ("ppo", {"rollout.batch_size": 0}, r"^rollout.batch_size: 0; use a whole number"),
        ("ppo", {"microbatches": 8}, r"^microbatches: 8 does not divide the 4 rows per device"),
        (
            "ppo",
            {"rollout.microbatches": 3},
            r"^rollout.microbatches: 3 does not divide the 8 rows per device",
        ),
        ("ppo", {"steps": 0}, r"^steps: 0; use a whole number of at least 1"),
        ("ppo", {"epochs": 0}, r"^epochs: 0; use a whole number of at least 1"),
        ("ppo", {"kl_estimator": "k4"}, r"^kl_estimator: 'k4'; use one of k1, k2, k3"),
        (
            "ppo",
            {"rollout.temperature": 0.0},
            r"^rollout.temperature: 0.0; use a number of at least 0.01 and at most 100",
        ),
        ("generate", {"samples": 0}, r"^samples: 0; use a whole number of at least 1"),
        ("generate", {"batch_size": 0}, r"^batch_size: 0; use a whole number"),
        (
            "inspect_data",
            {"data.kind": "pairs"},
            r"^data.kind: 'pairs'; use one of auto, instruction, pair, prompt",
        ),
        ("inspect_data", {"bins": 0}, r"^bins: 0; use a whole number of at least 1"),
        ("annotate", {"samples": ""}, r"^samples, pairs, .*, feedback: 0 of them are set; set exactly one"),
        ("annotate", {"judges": "configs/judges/none.yaml"}, r"configs/judges/none.yaml"),
    ],
)
def test_settings_that_cannot_work(refused, farm, tmp_path, job, changes, message):
    assert re.search(message, refused(*tiny_farm.arguments(job, farm, tmp_path / "run", **changes)))


@pytest.mark.parametrize(
    ("job", "field", "model", "message"),
    [
        (
            "dpo",
            "model.init",
            "reward_model",
            r"^model.init: .*reward_model/export is a reward model; DPO starts from a",
        ),
        (
            "generate",
            "model.path",
            "reward_model",
            r"^model.path: .* is a reward model; give a language model to sample",
        ),
        (
            "ppo",
            "model.policy",
            "reward_model",
            r"^model.policy: .* is a reward model; give a language model",
        ),
        (
            "ppo",
            "model.reward",
            "sft",
            r"^model.reward: .* is a language model; give what reward_model exported",
        ),
        (
            "score",
            "model.path",
            "sft",
            r"^model.path: .* is a language model; give what reward_model exported",
        ),
    ],
)
def test_a_model_of_the_wrong_kind(refused, farm, tmp_path, job, field, model, message):
    changes = {field: f"{farm}/{model}/export"}
    assert re.search(message, refused(*tiny_farm.arguments(job, farm, tmp_path / "run", **changes)))


@pytest.mark.parametrize("job", programs.names())
def test_a_workdir_that_cannot_be_written(refused, farm, tmp_path, job):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file/run"
    if job == "study":
        line = refused("--config=configs/farm.py", f"--workdir={workdir}")
    else:
        line = refused(*tiny_farm.arguments(job, farm, workdir))
    assert str(workdir) in line and "cannot be written" in line, line


def test_a_run_goes_on_only_with_the_settings_and_data_it_began_with(front_door, refused, farm, tmp_path):
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in read_table(farm / "data/sft.parquet"))
    )
    started = {"data.train": str(tmp_path / "data.jsonl"), "epochs": 0.04}

    def command(**changes):
        return tiny_farm.arguments("sft", farm, tmp_path / "run", **started | changes)

    status, _, errors = front_door(*command())
    assert status == 0, errors
    line = refused(*command(**{"optimizer.learning_rate": 0.5, "seed": 3}))
    assert "written by a run with another config: optimizer.learning_rate was " in line
    assert "is 0.5; seed was 0, is 3; use another --workdir or delete " in line
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Say something new.", "input": "", "output": "New."}) + "\n")
    assert f"inputs.{tmp_path}/data.jsonl was " in refused(*command())


def test_batches_that_eight_devices_cannot_divide(farm, tmp_path):
    """Also models that they cannot divide; and what a command prints when run as a command."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    for job, changes, message in (
        (
            "sft",
            {"batch_size": 12},
            "error: batch_size: 12 rows do not split evenly over mesh.data x mesh.fsdp = 8 devices",
        ),
        ("sft", {"mesh.fsdp": 1, "mesh.tensor": 8}, "error: mesh.tensor: 8 devices cannot split heads=2"),
    ):
        process = tiny_farm.start(
            ["-m", "rlhf_jax.main", *tiny_farm.arguments(job, farm, tmp_path, **changes)], **flags
        )
        last = tiny_farm.finish(process, status=2)
        assert "Traceback" not in last and last.splitlines()[-1].startswith(message), last


def test_an_unexpected_error_still_shows_where_it_came_from(front_door, farm, tmp_path, monkeypatch):
    from rlhf_jax.jobs import score

    monkeypatch.setattr(score, "read_responses", lambda *_, **__: 1 / 0)
    status, _, errors = front_door(*tiny_farm.arguments("score", farm, tmp_path))
    assert status == 1
    assert errors[0].startswith("Traceback") and errors[-1].startswith("ZeroDivisionError"), os.linesep.join(
        errors
    )
