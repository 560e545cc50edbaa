"""Records as others publish them: what they say is read as they mean it, and what is not read is named."""

import json

import pytest

from rlhf_jax.data.files.splits import read_folder
from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.records.scored_responses import read_responses
from rlhf_jax.errors import UserError


def user(text, **more):
    return {"role": "user", "content": text} | more


def bot(text, **more):
    return {"role": "assistant", "content": text} | more


@pytest.mark.parametrize("name", ["weight", "train", "loss", "training", "trainable"])
@pytest.mark.parametrize("value", [False, 0, 0.0, "false", "False", "0", "0.0"])
def test_turns_that_are_not_to_be_trained(name, value):
    (row,), skipped = read_instructions(
        [{"messages": [user("a"), bot("bad", **{name: value}), user("b"), bot("good", **{name: 1})]}],
        chat=True,
    )
    assert not skipped and not skipped.columns
    assert row["messages"][1] == bot("bad", train=False) and "output_fields" not in row


@pytest.mark.parametrize("value", [None, float("nan"), "", True, 1, "true", "1"])
def test_turns_that_are(value):
    (row,), skipped = read_instructions(
        [{"messages": [user("a"), bot("b", weight=value, loss=value)]}], chat=True
    )
    assert not skipped and "output_fields" not in row


def test_flags_that_say_neither():
    rows = [
        {"messages": [user("a"), bot("b", **{name: value})]}
        for name in ("weight", "train")
        for value in (2, "x")
    ]
    rows.append({"messages": [user("a"), bot("b", loss=0.37)]})  # A number that somebody measured.
    kept, skipped = read_instructions(rows, chat=True)
    assert len(kept) == 1 and skipped.columns == {"loss of messages": 1}
    assert set(skipped) == {
        "weight 2 of a turn is neither 0 nor 1",
        "weight 'x' of a turn is neither 0 nor 1",
        "train 2 of a turn is neither true nor false",
        "train 'x' of a turn is neither true nor false",
    }


@pytest.mark.parametrize(
    ("column", "good", "bad", "reason"),
    [
        ("label", True, False, "label=False"),
        ("label", "true", "false", "label=false"),
        ("label", 1, 0, "label=0"),
        ("kto_tag", True, False, "kto_tag=False"),
        ("label", True, None, "label=missing"),
    ],
)
def test_what_is_disliked_is_no_demonstration(column, good, bad, reason):
    rows = [{"prompt": "p", "completion": "g", column: good}, {"prompt": "p", "completion": "b", column: bad}]
    kept, skipped = read_instructions(rows)
    assert [row["output"] for row in kept] == ["g"] and skipped == {reason: 1}
    assert f"the column {column} decides" in counts_text(skipped)
    with pytest.raises(UserError, match="one completion a row with a label is no pair"):
        read_pairs(rows)


def test_classes_are_no_likes():
    rows = [{"instruction": "i", "output": "o", "label": 1}, {"instruction": "j", "output": "o", "label": 0}]
    kept, skipped = read_instructions(rows)
    assert len(kept) == 2 and skipped.columns == {"label": 2}


@pytest.mark.parametrize(
    "said",
    [
        bot("4", reasoning="two and two"),
        bot("4", reasoning_content="two and two"),
        bot([{"type": "reasoning", "text": "two and two"}, {"type": "text", "text": "4"}]),
        bot(
            [{"type": "thinking", "thinking": "two and two", "signature": "x"}, {"type": "text", "text": "4"}]
        ),
    ],
)
def test_thoughts_by_any_name(said):
    (row,), skipped = read_instructions([{"messages": [user("a"), said]}], chat=True)
    assert row["output"] == "4" and list(row["output_fields"].values()) == ["two and two"]
    assert not skipped.columns


def test_conversations_that_are_kept_as_json_texts():
    ask, good, bad = user("q"), bot("g"), bot("b")
    text = json.dumps
    rows = [
        {"prompt": text([ask]), "chosen": text([good]), "rejected": text([bad])},
        {"chosen": text([ask, good]), "rejected": text([ask, bad])},
        {"prompt": "q", "chosen": text([ask, good]), "rejected": text([ask, bad])},
    ]
    for row in rows:
        (pair,), _ = read_pairs([row], chat=True)
        assert (pair["messages"], pair["chosen"], pair["rejected"]) == ([ask], "g", "b")
        assert read_responses([row], chat=True)[0][0].responses == ["g", "b"]
    (row,), _ = read_instructions([{"prompt": text([ask]), "completion": text([good])}], chat=True)
    assert (row["messages"], row["output"]) == ([ask], "g")
    assert read_prompts([{"prompt": text([ask])}], chat=True)[0][0]["messages"] == [ask]
    for plain in ('[{"role"', '[{"role": "user"}]', '["role"]', '[1, "role"]'):
        (row,), _ = read_instructions([{"prompt": plain, "completion": plain}])
        assert row == {"prompt": plain, "output": plain}


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (read_pairs, {"prompt": "q", "answers": [{"answer": "a", "rank": 1.0}]}, "no column 'chosen'"),
        (read_pairs, {"instruction": "q", "completions": [{"response": "a"}]}, "no column 'chosen'"),
        (read_pairs, {"prompt": "q", "response_1": "a", "response_2": "b"}, "no column 'chosen'"),
        (read_pairs, {"input": {"messages": []}, "preferred_output": [bot("a")]}, "no column 'chosen'"),
        (read_pairs, {"prompt": "q", "chosen": "g", "rejected": ["b", "c"]}, "response is not text"),
        (read_instructions, {"text": "### Human: hi### Assistant: hello"}, "no column 'instruction'"),
        (
            read_instructions,
            {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
            "no column 'instruction'",
        ),
        (read_instructions, {"message_id": "1", "text": "q", "role": "prompter"}, "no column 'instruction'"),
        (read_instructions, {"segments": [{"label": True, "text": "x"}]}, "no column 'instruction'"),
        (read_instructions, {"messages": [[user("q"), bot("r")]]}, "unreadable messages"),
        (read_instructions, {"instruction": b"q", "output": "r"}, "instruction is not text"),
        (read_instructions, {"conversations": [{"from": "chatgpt", "value": "r"}]}, "role 'chatgpt'"),
        (
            read_instructions,
            {"messages": [user("q"), bot([{"type": "tool_use", "name": "f"}])]},
            "tool_use part",
        ),
        (read_prompts, {"prompt": [user("q"), bot("Sure,")]}, "does not end with a user turn"),
    ],
)
def test_other_layouts_are_refused_or_counted(read, row, words):
    with pytest.raises(UserError) as error:
        read([row], chat=True)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_of_a_table_that_is_missing(tmp_path, first):
    for i in (first, first + 1):
        write_jsonl(tmp_path / f"train-{i:05d}-of-00003.jsonl", [{"instruction": str(i), "output": "o"}])
    with pytest.raises(
        UserError, match=rf"holds 2 of the 3 files of train, without train-{2 if not first else 0:05d}"
    ):
        read_folder(tmp_path)
    last = f"{first + 2 if not first else 0:05d}"
    write_jsonl(tmp_path / f"train-{last}-of-00003-ab12.jsonl", [{"instruction": "x", "output": "o"}])
    assert len(read_folder(tmp_path)) == 3


def test_files_of_other_kinds_are_named(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}])
    (tmp_path / "b.csv").write_text("instruction,output\nq,r\n")
    (tmp_path / "README.md").write_text("x")
    assert len(read_folder(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "not read, as they are no .parquet" in said and said.endswith(": b.csv\n")
