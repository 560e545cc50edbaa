"""Score takes every row: what cannot be scored has a null score and its reason, and leaves the others as they are."""

import pytest
import tiny_farm

from rlhf_jax.data.files.tables import read_table, write_jsonl
from rlhf_jax.jobs import score


def scored(farm, folder, rows, capsys):
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", rows)
    settings = tiny_farm.settings("score", farm, **{"data.responses": str(folder / "rows.jsonl")})
    score.run(settings, str(folder / "out"))
    return read_table(folder / "out/scores.parquet"), capsys.readouterr().out


def test_rows_that_cannot_be_scored_do_not_change_the_others(farm, tmp_path, capsys):
    good = {"instruction": "Say a word.", "input": "", "output": "word"}
    (alone,), _ = scored(farm, tmp_path / "alone", [good], capsys)
    rows = [
        good | {"output": "word " * 500},
        good | {"instruction": None},
        good | {"output": None},
        {"messages": [{"role": "user", "content": "Say a word."}], "outputs": ["word", 3]},
    ]
    found, printed = scored(farm, tmp_path / "mixed", rows, capsys)
    assert alone["reasons"] == [None]
    assert [row["scores"] for row in found[:3]] == [[None]] * 3
    assert found[3]["scores"] == [pytest.approx(alone["scores"][0], abs=1e-5), None]
    reasons = [row["reasons"] for row in found]
    assert reasons[0][0].startswith("more than data.max_length=")
    assert reasons[1:] == [["missing instruction"], ["missing response"], [None, "response is not text"]]
    assert "data.responses: 1 of 5 responses are scored" in printed
    assert "skipped 3: missing instruction 1, missing response 1, response is not text 1" in printed
