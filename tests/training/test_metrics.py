import json
import math
import sys
import types

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.training.loop import metrics
from rlhf_jax.training.loop.metrics import JsonlWriter, MultiWriter, make_writer


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_on_disk_when_write_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.start(None)
    writer.write(1, {"loss": 0.1, "eval/x": 2})
    assert read(path) == [{"step": 1, "loss": 0.1, "eval/x": 2}]
    writer.close()
    writer.close()


@pytest.mark.parametrize("cut", ['{"step": 2, "a": 0.', '{"step": 2, "a": 0.5}'])  # in the row, and behind it
def test_resuming_drops_later_and_broken_rows(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 1}\nnot json\n{"step": 3, "a": 1}\n' + cut)
    writer = JsonlWriter(path)
    writer.start(2)
    writer.write(3, {"a": 2})
    assert read(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 1}, {"step": 3, "a": 2}]


def test_a_fresh_start_begins_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "a": 1}\n')
    JsonlWriter(path).start(None)
    assert path.read_text() == ""


def test_every_row_is_strict_json(tmp_path):
    writer = JsonlWriter(tmp_path / "m")
    writer.start(None)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    assert json.loads((tmp_path / "m").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 1,
    }


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.startup, "is_main", lambda: False)
    writer = make_writer(tmp_path, tensorboard=True, wandb_project="p")
    writer.start(None)
    writer.write(1, {"a": 1.0})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


class Recorded:
    """Stands for a module: remembers every call made on it and on what it returns."""

    def __init__(self, name="", calls=None):
        self._name, self.calls = name, [] if calls is None else calls

    def __getattr__(self, name):
        return Recorded(f"{self._name}.{name}", self.calls)

    def __call__(self, *args, **kwargs):
        self.calls.append((self._name, args, kwargs))
        return self


def test_tensorboard_gets_scalars_and_hides_what_is_written_again(tmp_path, monkeypatch):
    fake = Recorded()
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    writer = make_writer(tmp_path, tensorboard=True)
    writer.start(4)
    writer.write(5, {"loss": 1.0, "x": 2.0})
    writer.flush()
    writer.close()
    names = [name.rsplit(".", 1)[-1] for name, _, _ in fake.calls]
    assert names == ["SummaryWriter", "add_scalar", "add_scalar", "flush", "close"]
    assert fake.calls[0][2]["purge_step"] == 5
    assert fake.calls[1][1] == ("loss", 1.0, 5)
    assert read(tmp_path / "metrics.jsonl") == [{"step": 5, "loss": 1.0, "x": 2.0}]


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    fake = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (None, 7, None):
        writer = make_writer(tmp_path, wandb_project="farm", config={"lr": 1})
        writer.start(step)
        writer.write(8, {"loss": 1.0})
        writer.flush()
        writer.close()
    first, second, fresh = [kwargs for name, _, kwargs in fake.calls if name == ".init"]
    assert first["id"] == second["id"] != fresh["id"]
    assert [call[1:] for call in fake.calls if call[0] == ".init.log"] == [
        (({"loss": 1.0},), {"step": 8})
    ] * 3
    assert (first["project"], first["config"], first["resume"]) == ("farm", {"lr": 1}, "allow")


@pytest.mark.parametrize(
    ("module", "settings"), [("tensorboardX", {"tensorboard": True}), ("wandb", {"wandb_project": "p"})]
)
def test_a_writer_that_is_not_installed(tmp_path, monkeypatch, module, settings):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{module} is not installed; run pip install {module}"):
        make_writer(tmp_path, **settings)


def test_multiwriter_hands_on_every_call():
    fakes = [Recorded(), Recorded()]
    writer = MultiWriter(
        [
            types.SimpleNamespace(**{n: getattr(f, n) for n in ("start", "write", "flush", "close")})
            for f in fakes
        ]
    )
    writer.start(3)
    writer.write(4, {"a": 1.0})
    writer.flush()
    writer.close()
    for fake in fakes:
        assert [name for name, _, _ in fake.calls] == [".start", ".write", ".flush", ".close"]
