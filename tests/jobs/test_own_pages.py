"""A user's own page: its fields are those of the job's, its values are checked, and what does nothing is said."""

import pytest
import tiny_farm
from commands import parse_command
from test_config_pages import CONFIGS, PAGES, RECIPES, variants

from rlhf_jax.errors import UserError
from rlhf_jax.settings import load_page
from rlhf_jax.settings.page_fields import check_fields

HEAD = """
import pathlib
import numpy as np
from ml_collections import ConfigDict
from rlhf_jax.settings import load_page

def get_config():
    c = load_page("configs/JOB.py")
"""


@pytest.fixture
def read(tmp_path, monkeypatch, capsys):
    """Reads a page as a command does: its text, further flags -> (exit status, output, error)."""

    def call(text, *more):
        page = tmp_path / "mine.py"
        page.write_text(text)
        monkeypatch.chdir(tiny_farm.ROOT)
        status = 0
        try:
            parse_command([f"--config={page}", f"--workdir={tmp_path / 'run'}", *more])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def changed(job, *lines):
    return HEAD.replace("JOB", job) + "".join(f"    {line}\n" for line in [*lines, "return c"])


@pytest.mark.parametrize(
    "spec", [f"{page}.py:{v}" for page in PAGES for v in variants(page)] + [f"{x}.py" for x in RECIPES]
)
def test_all_variants_and_recipes_of_a_page_have_the_fields_of_the_first(spec):
    check_fields(load_page(f"{CONFIGS}/{spec}"))


@pytest.mark.parametrize(
    ("job", "line", "said"),
    [
        ("sft", "c.temperature = 0.5", "temperature: the job sft has no such field"),  # generate has it
        ("sft", "c.kl_coef = 0.1", "kl_coef: the job sft has no such field"),
        ("rrhf_online", "c.batch_size = 4", "batch_size: the job rrhf has no such field"),  # its other page has
        ("rrhf_online", "del c.rollout['samples']", "the job rrhf needs it, see configs/rrhf_online.py"),
        ("sft", "c.optimizer.learning_rat = 1.0", "did you mean optimizer.learning_rate?"),
        ("sft", "c.model = {'init': 'x'}", "model.adapter: missing; a page of the job sft needs it, see"),
        ("farm", "c.ppo.kl_cof = 0.1", "ppo.kl_cof: the job ppo has no such field; did you mean ppo.kl_coef?"),
        ("farm", "del c.dpo.beta", "dpo.beta: missing; a page of the job dpo needs it, see configs/dpo.py"),
        ("farm", "c.kl_coef = 0.1", "kl_coef: the job study has no such field"),
        ("farm", "del c.report", "report: missing; a page of the job study needs it, see configs/study.py"),
        ("sft", "c.job = 'sftt'", "job: 'sftt'; use one of distillation, "),
        ("sft", "c.job = None", "its get_config should return a ConfigDict with a field `job`"),
        ("sft", "c.epochs = None", "epochs: None; use a finite number above 0"),
        ("sft", "c.data.train = None", "data.train: None; use text"),
        ("sft", "c.seed = -1", "seed: -1; use a whole number"),
        ("sft", "c.batch_size = True", "batch_size: True; use a whole number"),
        ("sft", "c.batch_size = 16.0", "line 10: batch_size: 16.0 is float; it takes a whole number"),
        ("sft", "c.batch_size = '16'", "line 10: batch_size: 16 is str; it takes a whole number"),
        ("sft", "c.batch_size = np.int64(16)", "batch_size: 16 is numpy.int64; it takes a whole number"),
        ("sft", "c.optimizer.learning_rate = '1e-4'", "learning_rate: 1e-4 is str; it takes a number"),
        ("sft", "c.data.train = pathlib.Path('x')", "train: x is pathlib.PosixPath; it takes text"),
        ("sft", "c.tensorboard = 1", "tensorboard: 1 is int; it takes true or false"),
        ("annotate", "c.formats = 'trl'", "formats: trl is str; it takes a tuple"),
        ("sft", "1 / 0", "line 10: ZeroDivisionError: division by zero"),
        ("sft", "return None", "its get_config should return a ConfigDict"),
        ("sft", "return {'job': 'sft'}", "its get_config should return a ConfigDict"),
        ("sft", "open('nowhere')", "line 10: FileNotFoundError"),
    ],
)  # fmt: skip
def test_what_a_page_cannot_say_is_one_line(read, job, line, said):
    status, _, error = read(changed(job, "c.unlock()", line))
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert said in error


def test_a_page_that_is_none(read):
    assert "it needs a function get_config; pages here: configs/annotate.py, " in read("get_config = 3\n")[2]
    assert "is no page: TypeError: get_config() missing 2" in read("def get_config(a, b): ...\n")[2]
    assert "is no page: SyntaxError" in read("def get_config(:\n")[2]


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_of_a_page(read, flag):
    status, said, error = read(changed("sft", "c.epochs = 1.5  # All that there was time for."), flag)
    assert (status, error) == (0, "")
    assert "\n  --config.epochs=1.5\n" in said and " Here: All that there was time for.\n" in said
    assert "\n  --config.lora.rank=0\n      0: all parameters are trained.\n" in said


def test_variants_of_a_page_without_any(tmp_path):
    (tmp_path / "mine.py").write_text(changed("sft"))
    with pytest.raises(UserError, match=r"mine\.py has no variants; leave out :alpaca$"):
        load_page(f"{tmp_path}/mine.py:alpaca")


def test_values_that_are_as_good_and_notices_of_what_does_nothing(read):
    status, said, error = read(changed("sft", "c.epochs = 1", "c.lora.alpha = 4"), "--config.epochs=0.5")
    assert status == 0, error
    assert said == "notice: lora.alpha has no effect: lora.rank is 0\n"
    _, said, _ = read(changed("ppo", "c.kl_horizon = 900.0"), "--config.target_kl=5")
    assert sorted(said.splitlines()) == [
        f"notice: {name} has no effect: adaptive_kl is false" for name in ("kl_horizon", "target_kl")
    ]
    assert (
        read(changed("farm", "c.ppo.target_kl = 3.0"))[1]
        == "notice: ppo.target_kl has no effect: adaptive_kl is false\n"
    )
    assert read(changed("farm"))[:2] == (0, "")
