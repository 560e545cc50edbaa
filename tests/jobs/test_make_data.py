"""The data of a study: the embedded world, or a user's own instruction file split among its stages."""

from pathlib import Path

import pytest

from rlhf_jax.data.records.records import read_instructions, read_table, write_jsonl
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import make_data
from rlhf_jax.settings import load_page

CONFIGS = Path(__file__).parents[2] / "configs"


def _file(path, n):
    rows = [
        {"instruction": f"Say {i}.", "input": "now" if i % 3 else "", "output": f"{i}!"} for i in range(n)
    ]
    write_jsonl(path, [*rows, rows[0], rows[1], {"instruction": "Say nothing.", "output": ""}])
    return str(path)


def test_every_row_is_in_one_stage(tmp_path):
    said = make_data.split_instructions(_file(tmp_path / "x.jsonl", 200), tmp_path, rows=0, seed=0)
    splits = {name: read_table(str(tmp_path / f"{name}.parquet")) for name in make_data.SHARES}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "sft": 80,
        "preference": 50,
        "unlabeled": 40,
        "val": 10,
        "eval": 20,
    }
    prompts = [(row["instruction"], row["input"]) for rows in splits.values() for row in rows]
    assert sorted(prompts) == sorted((f"Say {i}.", "now" if i % 3 else "") for i in range(200))
    assert all(row["output"] == row["instruction"][4:-1] + "!" for rows in splits.values() for row in rows)
    assert "200 rows" in said and "repeated instruction 2, empty response 1" in said


def test_so_many_rows_are_drawn_with_the_seed(tmp_path):
    file = _file(tmp_path / "x.jsonl", 200)
    drawn = []
    for i, seed in enumerate((0, 0, 1)):
        make_data.split_instructions(file, tmp_path / str(i), rows=120, seed=seed)
        drawn.append([row["instruction"] for row in read_table(str(tmp_path / str(i) / "sft.parquet"))])
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 48


def test_a_file_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^instructions: .*has 30 different instructions with an output"):
        make_data.split_instructions(_file(tmp_path / "x.jsonl", 30), tmp_path, rows=0, seed=0)


def test_conversations_prompts_and_cut_responses_stay(tmp_path):
    def turn(role, text, **more):
        return {"role": role, "content": text} | more

    def splits(rows):
        write_jsonl(tmp_path / "x.jsonl", rows)
        said = make_data.split_instructions(str(tmp_path / "x.jsonl"), tmp_path, rows=0, seed=0)
        return said, [tmp_path / f"{name}.parquet" for name in make_data.SHARES]

    rows = [{"instruction": f"i{i}", "output": f"o{i}", "ended": False} for i in range(40)]
    rows += [{"instruction": f"s{i}", "output": "o", "system": "S"} for i in range(40)]
    turns = [turn("user", "a"), turn("assistant", "b", weight=0)]
    rows += [{"messages": [*turns, turn("user", f"c{i}"), turn("assistant", "o")]} for i in range(20)]
    rows += [{"prompt": f"p{i}", "completion": "o"} for i in range(20)]
    rows += [
        {"prompt": "p0", "completion": "o"},
        {"messages": [turn("user", "x"), turn("assistant", "o", weight=0)]},
    ]
    thought = turn("assistant", "o", reasoning_content="hm")
    rows += [{"messages": [turn("user", "thoughtful"), thought], "source": "web"}]
    said, files = splits(rows)
    assert said.endswith(
        "repeated instruction 1; columns not used: source (1 row), reasoning_content of the last message (1 row)"
    )
    assert "121 rows" in said and "skipped 2: response with weight 0 1" in said
    whole = [row for file in files for row in read_instructions(file, chat=True)[0]]
    expected, _ = read_instructions(rows, chat=True)
    known = {str(row["messages"]): row for row in expected if "output_fields" not in row}
    assert len(whole) == 121 and {str(row["messages"]) for row in whole} > set(known)
    assert sum(row.get("ended") is False for row in whole) == 40
    assert sum(row["messages"][0]["role"] == "system" for row in whole) == 40
    assert sum(any(m.get("train") is False for m in row["messages"]) for row in whole) == 20
    # Without chat, too, all that the file says is there.
    plain = [row for file in files for row in read_instructions(file)[0]]
    assert sum("prompt" in row for row in plain) == 80


def test_the_job_writes_the_embedded_world_or_splits_a_file(tmp_path, capsys):
    page = load_page(f"{CONFIGS}/make_data.py")
    page.scale = 0.01
    make_data.run(page, str(tmp_path / "world"))
    assert len(read_table(str(tmp_path / "world" / "sft.parquet"))) == 100
    assert (tmp_path / "world" / "tokenizer" / "tokenizer.json").exists()
    page.instructions = _file(tmp_path / "x.jsonl", 200)
    make_data.run(page, str(tmp_path / "own"))
    assert len(read_table(str(tmp_path / "own" / "eval.parquet"))) == 20
    assert capsys.readouterr().out.splitlines()[0] == "0.01 x AlpacaFarm's splits"
