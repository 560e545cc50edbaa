"""The report agrees with what a trainer is given, for every kind of record."""

import re
import sys

import pytest
import tiny_farm
from ml_collections import config_dict

from rlhf_jax.data.inspection import COLOUR
from rlhf_jax.data.records.records import read_table, write_jsonl
from rlhf_jax.data.tokenization import encode_sft
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.jobs import inspect_data

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def report(farm, tmp_path, capsys):
    def run(**changes):
        inspect_data.run(tiny_farm.settings("inspect_data", farm, **changes), str(tmp_path / "run"))
        return capsys.readouterr().out

    return run


def test_instructions(farm, report, tmp_path):
    printed = report(**{"data.max_length": 40})
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    rows = read_table(farm / "data/sft.parquet")
    found, counts = encode_sft(rows, tokenizer, "brief", 10_000)
    assert "sft.parquet: 200 instruction records; skipped none" in printed
    over = (found.lengths > 40).mean()
    assert f"longer than 40 tokens: {over:.2%} of 200 rows" in printed and over > 0
    _, counts = encode_sft(rows, tokenizer, "brief", 40)
    assert f"prompt too long {counts['prompt too long']}" in printed
    assert f"response cut (row kept) {counts['response cut (row kept)']}" in printed
    shown = re.findall(r"\[\[(.*?)<eos>\]\]", printed, re.DOTALL)
    assert len(shown) == 3 and set(shown) <= {row["output"] for row in rows}
    packed = re.search(r"packing: (\d+) rows of 40 tokens, ([\d.]+)% filled, up to (\d) documents", printed)
    kept, _ = encode_sft(rows, tokenizer, "brief", 40)
    assert float(packed[2]) == pytest.approx(100 * kept.lengths.sum() / (int(packed[1]) * 40), abs=0.06)
    assert -(-kept.lengths.sum() // 40) <= int(packed[1]) <= len(kept) <= int(packed[1]) * int(packed[3])
    assert (tmp_path / "run/inspection.txt").read_text() == printed
    assert [f"\n{name} tokens: mean" in printed for name in ("prompt", "response", "total")] == [True] * 3


def test_pairs(farm, report):
    printed = report(**{"data.path": str(farm / "labels/labels.parquet"), "examples": 2})
    assert re.search(r"labels.parquet: \d+ pair records; skipped \d+", printed)
    assert printed.count(" chosen: ") == printed.count(" rejected: ") == 2
    texts = {row[f"output_{k}"] for row in read_table(farm / "labels/labels.parquet") for k in (1, 2)}
    shown = re.findall(r"\[\[(.*?)<eos>\]\]", printed, re.DOTALL)
    assert len(shown) == 4 and set(shown) <= texts


def test_prompts(farm, report):
    changes = {"data.path": str(farm / "data/unlabeled.parquet"), "data.kind": "prompt", "data.rows": 30}
    printed = report(**changes)
    assert "looking at 30 of them" in printed and "[[" not in printed and "response tokens" not in printed
    assert ", 0 of them trained" in printed


def test_conversations(farm, report, tmp_path):
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    turns = [("user", "Say a."), ("assistant", "a"), ("user", "Say <eos>."), ("assistant", "b")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [{"messages": messages[:2] + messages}, {"messages": messages}, {"messages": messages[:1]}]
    rows[0]["messages"][2:] = messages[:2]
    write_jsonl(tmp_path / "chats.jsonl", rows)
    changes = {"data.path": str(tmp_path / "chats.jsonl"), "data.template": "chat"}
    printed = report(**changes, **{"tokenizer": str(tmp_path / "tokenizer"), "data.max_length": 4})
    assert "2 instruction records; skipped 1: conversation does not end with an assistant turn 1" in printed
    assert "template chat: 1 rows; skipped 1: text holds a special token 1" in printed
    assert printed.count("[[a<eos>]]") == 2
    assert "max_length: none of 2 rows fits 4 tokens" in printed


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"instruction": "i", "output": "o", "chosen": None}], "instruction"),
        (
            [{"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
            "instruction",
        ),
        ([{"prompt": "p", "chosen": "a", "rejected": "b", "output": None}], "pair"),
        ([{"prompt": "p", "output": ""}], "prompt"),
    ],
)
def test_the_kind_is_found_by_what_columns_hold(tmp_path, rows, kind):
    write_jsonl(tmp_path / "a.jsonl", rows)
    page = config_dict.create(path=str(tmp_path / "a.jsonl"))
    assert inspect_data._kind(page) == kind


def test_colour_is_for_terminals(report, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = report()
    assert coloured.count(COLOUR[0]) == 3 and "[[" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = report()
    assert plain.count("[[") == 3 and "\033" not in plain
