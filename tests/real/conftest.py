"""What the tests of the real model share: its file, rows, and a reward model made of it."""

import package
import pytest
import real_runs
import texts

from rlhf_jax.data.records.records import write_jsonl


@pytest.fixture(scope="session")
def model():
    """The GGUF file, whose PAD is its EOS."""
    return str(package.model_file())


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A folder with prompts, demonstrations and pairs."""
    folder = tmp_path_factory.mktemp("real")
    rows = list(zip(texts.INSTRUCTIONS, texts.ANSWERS, texts.BAD, strict=True))
    write_jsonl(folder / "prompts.jsonl", [{"prompt": i} for i, *_ in rows])
    write_jsonl(folder / "sft.jsonl", [{"instruction": i, "input": "", "output": a} for i, a, _ in rows])
    pairs = [{"prompt": i, "chosen": a, "rejected": b} for i, a, b in rows]
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture(scope="session")
def reward_model(model, work):
    """The metrics of the reward model in `work`."""
    changes = {"data.train": work / "pairs.jsonl", "data.eval": work / "pairs.jsonl", "model.init": model}
    changes |= {"center_on": work / "sft.jsonl", "center_rows": 8}
    return real_runs.train("reward_model", work / "reward_model", real_runs.OFFLINE | changes)


@pytest.fixture(scope="session")
def sft(model, work):
    """The metrics of the model in `work` that was trained on demonstrations."""
    changes = {"data.train": work / "sft.jsonl", "data.eval": work / "sft.jsonl", "model.init": model}
    return real_runs.train("sft", work / "sft", real_runs.OFFLINE | changes)
