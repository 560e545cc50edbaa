"""What a later stage or a judge needs and is not there is said before anything is read, trained or asked."""

import importlib

import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.jobs import wanted
from rlhf_jax.settings import load_page

KEY = "NOBODYS_KEY"
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
    importlib.import_module(f"rlhf_jax.jobs.{job}").run(page, str(folder))


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
    monkeypatch.setattr(wanted, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^dpo\.wandb_project: wandb is not installed; run pip install wandb, then"
    ):
        run("farm", tmp_path / "run", **{"dpo.wandb_project": "mine"})
    assert not (tmp_path / "run" / "data").exists()
