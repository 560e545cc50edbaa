"""What a run reads besides its files: the day is kept for a run that goes on, and versions are compared."""

import pytest
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.run import session


class Tokenizer:
    chat_template = "{{ strftime_now('%d %b %Y') }}"


class Timeless:
    def __init__(self):
        self.chat_template = {"default": "{{ messages }}", "rag": "x"}


def dated(workdir, tokenizer=Tokenizer, **data):
    config = ConfigDict({"data": {"template": "chat", "date": ""} | data})
    session.keep_date(config, str(workdir), tokenizer())
    return config.data.date


def test_the_day_of_the_first_start_is_kept(tmp_path, monkeypatch):
    class Day:
        @staticmethod
        def today():
            return inputs_day

    import datetime

    inputs_day = datetime.date(2026, 3, 1)
    monkeypatch.setattr(session, "date", Day)
    assert dated(tmp_path) == "2026-03-01"
    inputs_day = datetime.date(2026, 3, 8)
    assert dated(tmp_path) == "2026-03-01"
    assert dated(tmp_path, date="2024-07-26") == "2024-07-26"
    assert dated(tmp_path, Timeless) == "" and dated(tmp_path, template="brief") == ""


def test_other_versions_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "version", lambda name: {"tokenizers": "0.21"}.get(name, "5"))
    with Checkpoints(tmp_path, config={"inputs": session.digests()}) as checkpoints:
        checkpoints.save(1, {"x": 1.0})
    monkeypatch.setattr(session, "version", lambda name: {"tokenizers": "0.22"}.get(name, "5"))
    with (
        Checkpoints(tmp_path, config={"inputs": session.digests()}) as checkpoints,
        pytest.raises(UserError, match=r"inputs\.tokenizers was '0\.21', is '0\.22'"),
    ):
        checkpoints.restore({"x": 1.0})
