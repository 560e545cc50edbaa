"""Sampled responses that did not end: told by generate, carried by the judges' labels, read without an end token."""

import tiny_farm

from rlhf_jax.data.records.records import read_pairs, read_table
from rlhf_jax.data.tokenization import encode_pairs
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.jobs import annotate, generate, score


def sampled(farm, where, **changes):
    generate.run(tiny_farm.settings("generate", farm, **changes), str(where))
    return read_table(where / "outputs.parquet")


def test_ended_says_which_responses_would_go_on(farm, tmp_path, capsys):
    short = sampled(farm, tmp_path / "short", temperature=0.0)
    assert f"{sum(not row['ended'] for row in short)} responses did not end within" in capsys.readouterr().out
    long = sampled(farm, tmp_path / "long", temperature=0.0, max_new_tokens=14)
    assert {row["ended"] for row in short} == {True, False}
    for one, other in zip(short, long, strict=True):
        assert other["output"].startswith(one["output"])
        if one["ended"]:
            assert other["output"] == one["output"] and other["ended"]
        else:  # it goes on, if only to its end
            assert other["output"] != one["output"] or other["ended"]
    assert any(other["output"] != one["output"] for one, other in zip(short, long, strict=True))


def test_every_sample_has_noise_of_its_own_which_follows_the_seed(farm, tmp_path):
    """Also where samples of one prompt fall into different batches, and a batch begins in the middle of a prompt."""
    given = {"samples": 12, "temperature": 1.5, "data.rows": 2}
    rows = [sampled(farm, tmp_path / str(seed), seed=seed, **given) for seed in (0, 1)]
    for row in rows[0]:
        assert len(set(row["outputs"])) > 6
    assert rows[0][0]["outputs"] != rows[1][0]["outputs"]
    # A prompt's samples are numbered from the first prompt on, so that one prompt alone gets the same ones.
    alone = sampled(farm, tmp_path / "alone", **given | {"data.rows": 1})
    assert alone[0]["outputs"] == rows[0][0]["outputs"]


def test_from_samples_over_labels_to_pairs(farm, tmp_path, capsys):
    rows = sampled(farm, tmp_path / "pairs", samples=2, temperature=1.0)
    wanted = {
        (r["instruction"], r["input"], o): e
        for r in rows
        for o, e in zip(r["outputs"], r["ended"], strict=True)
    }
    assert set(wanted.values()) == {True, False}
    path = str(tmp_path / "pairs/outputs.parquet")
    annotate.run(tiny_farm.settings("annotate", farm, samples=path), str(tmp_path / "labels"))
    pairs, _ = read_pairs(tmp_path / "labels/labels.parquet")
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    found, _ = encode_pairs(pairs, tokenizer, "brief", 200)
    assert len(found) == len(pairs)
    for side, sequences in zip(("chosen", "rejected"), found, strict=True):
        for i, pair in enumerate(pairs):
            ended = wanted[pair["instruction"], pair["input"], pair[side]]
            assert pair.get(f"{side}_ended", True) == ended
            assert (sequences[i][-1] == tokenizer.eos_token_id) == ended
    capsys.readouterr()
    score.run(tiny_farm.settings("score", farm, **{"data.responses": path}), str(tmp_path / "scores"))
    cut = sum(not ended for row in rows for ended in row["ended"])
    assert f"response did not end (row kept, no end token) {cut}" in capsys.readouterr().out
    assert [row["ended"] for row in read_table(tmp_path / "scores/scores.parquet")] == [
        r["ended"] for r in rows
    ]
