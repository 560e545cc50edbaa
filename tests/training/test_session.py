"""What every run of a method reads, keeps and names at its two ends."""

import datetime
import json

import pytest
import tiny_farm
from chat_tokenizers import CHATML, build

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.programs import program
from rlhf_jax.training.run import load_models, session
from rlhf_jax.training.run.missing_inputs import Needs
from rlhf_jax.training.run.session import Session


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return [str((folder / name).parent if "/" in name else folder / name) for name in names]


def test_a_run_that_goes_on_knows_its_rows_its_model_and_its_adapter(tmp_path):
    """All files that it reads, each by what is in it."""
    read = files(tmp_path, "train.jsonl", "eval.jsonl", "model/weights", "adapter/weights", "reward/weights")
    train, held, model, adapter, reward = read
    page = tiny_farm.settings(
        "dpo", tmp_path, **{"data.train": train, "data.eval": held, "model.adapter": adapter}
    )
    opened = Session(page, "", make_mesh(1, 1, 1), model, None, "", load_models.lora_settings(page.lora))
    before = opened.inputs(reward)
    assert set(read) <= before.keys()
    for name in read:
        file = tmp_path / name
        (file / "weights" if file.is_dir() else file).write_text("something else that is longer")
        changed = opened.inputs(reward)
        assert {x for x in before if before[x] != changed[x]} == {name}
        before = changed


def test_a_run_that_is_opened_keeps_its_day(tmp_path, capsys):
    """Where the model's chat template asks for it."""
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    build(template, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **special).save_pretrained(
        tmp_path / "m"
    )
    page = tiny_farm.settings("dpo", tmp_path, **{"data.template": "chat"})
    program("dpo")  # Its file brings the rows of settings that it alone has.
    first = datetime.date.today().isoformat()
    session.open_session(Needs(), page, str(tmp_path / "run"), folder=str(tmp_path / "m"), made_by="")
    assert first <= page.data.date <= datetime.date.today().isoformat()
    assert (tmp_path / "run/date.txt").read_text().strip() == page.data.date


@pytest.mark.parametrize(
    ("named", "ends", "wanted"),
    [(None, (7,), 7), (3, (7,), 7), (3, (7, 3), [7, 3]), ([3, 7, 9], (7, 3), [3, 7, 9]), (7, (7,), 7)],
)
def test_an_export_names_all_tokens_that_end_a_response(tmp_path, named, ends, wanted):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.7} | ({} if named is None else {"eos_token_id": named})))
    session._write_ends(path, ends)
    assert json.loads(path.read_text()) == {"temperature": 0.7, "eos_token_id": wanted}
