"""Record schemas: layouts in, one form out, every drop counted under its reason."""

import math
from collections import Counter

import pytest

from rlhf_jax.data.records.records import (
    counts_text,
    read_instructions,
    read_pairs,
    read_prompts,
    read_table,
    write_jsonl,
    write_parquet,
)
from rlhf_jax.errors import UserError

GOOD = {"instruction": "i", "input": "", "output_1": "a", "output_2": "b", "preference": 1}
USER = {"role": "user", "content": "u"}
BOT = {"role": "assistant", "content": "r"}


def error_of(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "i", "input": "x", "output": "o", "more": 1},
            {"instruction": "i", "input": "x", "output": "o"},
        ),
        ({"instruction": "i", "output": "o"}, {"instruction": "i", "input": "", "output": "o"}),
        (
            {"instruction": "i", "input": math.nan, "output": "o"},
            {"instruction": "i", "input": "", "output": "o"},
        ),
        ({"prompt": "p", "completion": " c"}, {"prompt": "p", "output": " c"}),
        (
            {"prompt": [USER], "completion": [BOT]},
            {"instruction": "u", "input": "", "output": "r"},
        ),
        ({"messages": [USER, BOT]}, {"instruction": "u", "input": "", "output": "r"}),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
            {"instruction": "h", "input": "", "output": "g"},
        ),
        (
            {"messages": [{"role": "system", "content": "S"}, USER, BOT, USER, BOT]},
            {
                "prompt": "S\n\nHuman: u\n\nAssistant: r\n\nHuman: u\n\nAssistant:",
                "output": "r",
            },
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, BOT]},
            {"instruction": "u", "input": "", "output": "r"},
        ),
    ],
)
def test_instruction_layouts(row, expected):
    rows, skipped = read_instructions([row])
    assert rows == [expected]
    assert not skipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "i", "output": ""}, "empty response"),
        ({"instruction": "i", "output": " \n"}, "empty response"),
        ({"instruction": "i", "output": None}, "missing response"),
        ({"instruction": "i", "output": math.nan}, "missing response"),
        ({"instruction": "i", "output": ["o"]}, "response is not text"),
        ({"instruction": None, "output": "o"}, "missing instruction"),
        ({"instruction": "", "output": "o"}, "empty instruction"),
        ({"instruction": 3, "output": "o"}, "instruction is not text"),
        ({"instruction": "i", "input": 3, "output": "o"}, "input is not text"),
        ({"prompt": "", "output": "o"}, "empty prompt"),
        ({"messages": [USER]}, "conversation does not end with an assistant turn"),
        ({"messages": [BOT]}, "conversation does not end with a user turn"),
        ({"messages": []}, "unreadable messages"),
        ({"messages": [{"role": "ghost", "content": "x"}, BOT]}, "role 'ghost'"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty response"),
    ],
)
def test_unusable_instructions_are_counted(row, reason):
    good = {"messages": [USER, BOT]} if "messages" in row else {"instruction": "i", "output": "o"}
    rows, skipped = read_instructions([row, good])
    assert len(rows) == 1
    assert skipped == Counter({reason: 1})


def test_demonstrations_may_repeat_prompts_need_not():
    row = {"instruction": "i", "input": "", "output": "o"}
    assert len(read_instructions([row, row])[0]) == 2
    assert read_prompts([row, row]) == ([{"instruction": "i", "input": ""}], Counter(duplicate=1))
    assert len(read_prompts([row, row], unique=False)[0]) == 2


def test_prompts_of_conversations():
    rows, _ = read_prompts([{"messages": [USER, BOT]}, {"messages": [USER, BOT, USER]}])
    assert rows == [
        {"instruction": "u", "input": ""},
        {"prompt": "\n\nHuman: u\n\nAssistant: r\n\nHuman: u\n\nAssistant:"},
    ]


@pytest.mark.parametrize(
    ("preference", "chosen"), [(1, "a"), (2, "b"), (1.0, "a"), (1.49, "a"), (1.51, "b"), (2.0, "b")]
)
def test_preference_says_which_output_is_chosen(preference, chosen):
    rows, skipped = read_pairs([GOOD | {"preference": preference}])
    rejected = {"a": "b", "b": "a"}[chosen]
    assert rows == [{"instruction": "i", "input": "", "chosen": chosen, "rejected": rejected}]
    assert not skipped


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preference": 1.5}, "tie"),
        ({"preference": None}, "missing preference"),
        ({"preference": math.nan}, "missing preference"),
        ({"preference": 0}, "preference out of [1, 2]"),
        ({"preference": 2.01}, "preference out of [1, 2]"),
        ({"preference": -1}, "preference out of [1, 2]"),
        ({"preference": math.inf}, "preference out of [1, 2]"),
        ({"preference": "1"}, "preference is not a number"),
        ({"preference": True}, "preference is not a number"),
        ({"output_1": ""}, "empty response"),
        ({"output_2": "  "}, "empty response"),
        ({"output_1": None}, "missing response"),
        ({"output_2": math.nan}, "missing response"),
        ({"output_2": 7}, "response is not text"),
        ({"output_1": "b"}, "identical outputs"),
        ({"instruction": None}, "missing instruction"),
        ({}, "duplicate"),
        (
            {"preference": 2, "output_1": "b", "output_2": "a"},
            "duplicate",
        ),  # the same pair, told the other way
    ],
)
def test_unusable_pairs_are_counted(changes, reason):
    # The third row shows that the scale goes up to 2, so that a 0 is a slip and no other scale.
    rows, skipped = read_pairs([GOOD, GOOD | changes, GOOD | {"instruction": "j", "preference": 2}])
    assert len(rows) == 2
    assert skipped == Counter({reason: 1})


@pytest.mark.parametrize(
    ("preferences", "words"),
    [
        ((0, 1, 1), "preference is between 0 and 1; it must be 1 (output_1 is better) to 2 (output_2 is"),
        ((0.25, 1.0, None), "is better); add 1 if 1 meant output_2"),
        ((-1, 1, 1), "preference is between -1 and 1; it must be 1"),
    ],
)
def test_preferences_of_another_scale_are_refused(preferences, words):
    message = error_of(read_pairs, [GOOD | {"preference": x} for x in preferences])
    assert message.startswith("rows: ") and words in message


def test_contradicting_labels_are_noise_not_duplicates():
    rows, skipped = read_pairs([GOOD, GOOD | {"preference": 2}])
    assert len(rows) == 2
    assert not skipped


@pytest.mark.parametrize(
    ("status", "kept"),
    [("ok", True), ("noise", True), ("parse_error", False), ("tie_identical", False), (None, False)],
)
def test_only_usable_statuses_stay(status, kept):
    other = GOOD | {"instruction": "j", "status": "ok"}
    rows, skipped = read_pairs([GOOD | {"status": status, "preference": 1}, other])
    assert len(rows) == 1 + kept
    assert skipped == (Counter() if kept else Counter({f"status={status or 'missing'}": 1}))


HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p"}),
        (
            {"instruction": "i", "input": "x", "chosen": "c", "rejected": "r"},
            {"instruction": "i", "input": "x"},
        ),
        ({"chosen": HH + "c", "rejected": HH + "r"}, {"prompt": HH}),
        (
            {
                "prompt": [USER],
                "chosen": [{"role": "assistant", "content": "c"}],
                "rejected": [{"role": "assistant", "content": "r"}],
            },
            {"instruction": "u", "input": ""},
        ),
        (
            {
                "chosen": [USER, {"role": "assistant", "content": "c"}],
                "rejected": [USER, {"role": "assistant", "content": "r"}],
            },
            {"instruction": "u", "input": ""},
        ),
        (
            {
                "prompt": "<user>u</user>",
                "chosen": [USER, {"role": "assistant", "content": "c"}],
                "rejected": [USER, {"role": "assistant", "content": "r"}],
            },
            {"prompt": "<user>u</user>"},
        ),
        ({"prompt": HH, "chosen": HH + "c", "rejected": HH + "r"}, {"prompt": HH}),
        (
            {
                "conversations": [{"from": "human", "value": "h"}],
                "chosen": {"from": "gpt", "value": "c"},
                "rejected": {"from": "gpt", "value": "r"},
            },
            {"instruction": "h", "input": ""},
        ),
    ],
)
def test_pair_layouts(row, expected):
    rows, skipped = read_pairs([row])
    assert rows == [expected | {"chosen": "c", "rejected": "r"}]
    assert not skipped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": HH + "c", "rejected": "\n\nHuman: z\n\nAssistant:r"},
            "chosen and rejected have different prompts",
        ),
        ({"chosen": "no turns", "rejected": HH + "r"}, "transcript without an Assistant turn"),
        ({"chosen": None, "rejected": HH + "r"}, "transcript without an Assistant turn"),
        ({"chosen": HH, "rejected": HH + "r"}, "empty response"),
        (
            {"chosen": HH + "c\n\nHuman: q3", "rejected": HH + "r"},
            "conversation does not end with an assistant turn",
        ),
        ({"chosen": HH + "c", "rejected": HH + "c"}, "identical outputs"),
    ],
)
def test_unusable_transcripts_are_counted(row, reason):
    rows, skipped = read_pairs([row, {"chosen": HH + "c", "rejected": HH + "r"}])
    assert len(rows) == 1
    assert skipped == Counter({reason: 1})


@pytest.mark.parametrize(
    ("reader", "row", "words"),
    [
        (read_instructions, {"instructions": "i", "output": "o"}, "did you mean 'instructions'?"),
        (
            read_instructions,
            {"instruction": "i", "outputs": "o"},
            "no column 'output'; did you mean 'outputs'?",
        ),
        (read_instructions, {"a": 1}, "it has a (needed: instruction and output, or messages"),
        (read_prompts, {"a": 1}, "needed: instruction and prompt"),
        (read_pairs, {"prompt": "p", "chosen": "c"}, "no column 'rejected'; it has prompt, chosen"),
        (read_pairs, {"instruction": "i", "output_1": "a", "output_2": "b"}, "no column 'preference'"),
        (read_pairs, {"output_1": "a", "output_2": "b", "preference": 1}, "no column 'instruction'"),
        (read_pairs, {"prompt": "p", "choosen": "c"}, "did you mean 'choosen'?"),
    ],
)
def test_unknown_layouts_name_columns(tmp_path, reader, row, words):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [row])
    message = error_of(reader, path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_mapping_renames_columns():
    row = {"question": "q", "better": "b", "worse": "w"}
    mapping = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert read_pairs([row], mapping=mapping)[0] == [{"prompt": "q", "chosen": "b", "rejected": "w"}]
    message = error_of(read_pairs, [row], mapping={"chosen": "bettr"})
    assert message == "rows: no column 'bettr'; did you mean 'better'? it has question, better, worse"


def test_where_keeps_rows_and_does_not_count_the_others():
    rows = [GOOD | {"split": "train"}, GOOD | {"split": "val", "instruction": "v"}]
    kept, skipped = read_pairs(rows, where={"split": "val"})
    assert [row["instruction"] for row in kept] == ["v"]
    assert not skipped
    assert error_of(read_pairs, rows, where={"split": "test"}) == "rows: no row has split='test'"
    assert "no column 'spllit'; did you mean 'split'?" in error_of(read_pairs, rows, where={"spllit": "x"})


def test_no_usable_row_is_an_error():
    message = error_of(read_pairs, [GOOD | {"preference": None}] * 3)
    assert message == "rows: none of its 3 rows can be used; skipped 3: missing preference 3"
    assert error_of(read_pairs, []) == "rows: there are none"


def test_the_hint_reaches_the_reader(tmp_path):
    message = error_of(read_pairs, tmp_path / "labels.parquet", made_by="python -m x")
    assert message.endswith("labels.parquet: no such file; make it with: python -m x")


def test_reading_does_not_change_the_callers_rows():
    rows = [dict(GOOD)]
    read_pairs(rows, mapping={"prompt": "instruction"})
    assert rows == [GOOD]


def test_labels_survive_parquet(tmp_path):
    path = tmp_path / "labels.parquet"
    rows = [GOOD | {"status": "ok"}, GOOD | {"preference": None, "status": "parse_error"}]
    write_parquet(path, rows)
    assert read_table(path) == rows
    kept, skipped = read_pairs(path)
    assert kept == [{"instruction": "i", "input": "", "chosen": "a", "rejected": "b"}]
    assert skipped == Counter({"status=parse_error": 1})


def test_describe():
    assert counts_text(Counter()) == "skipped none"
    assert counts_text(Counter(), kept=5) == "kept 5; skipped none"
    changed = Counter({"response cut (row kept)": 4, "tie": 2})
    assert counts_text(changed) == "skipped 2: tie 2; response cut (row kept) 4"
    assert counts_text(changed - Counter(tie=2)) == "skipped none; response cut (row kept) 4"
    line = counts_text(Counter({"duplicate": 3, "tie": 12}), kept=60)
    assert line == "kept 60; skipped 15: tie 12, duplicate 3"
