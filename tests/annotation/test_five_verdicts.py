"""Arena-Hard's verdicts: read where they are said once, in either spelling; anything else is a status."""

from dataclasses import replace

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import QUICK, make_rows, pool_of

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.judges.specs import load_pool
from rlhf_jax.annotation.kinds.pairs import annotate_pairs
from rlhf_jax.annotation.labels.labels_file import read_labels, write_labels
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse

FIVE = ParserSpec("five_verdicts")


@pytest.mark.parametrize(
    ("text", "preference", "strong"),
    [
        ("My own answer is 4. Both say so.\n\nMy final verdict is tie: [[A=B]].", 1.5, False),
        ("[[A>>B]]", 1.0, True),
        ("**[[A>B]]**", 1.0, False),
        ("[[b>a]]", 2.0, False),
        ("Assistant B is significantly better: [[B>>A]]\nFinal verdict: [[B>>A]]", 2.0, True),
        ("[[A<<B]]", 2.0, True),
        ("Verdict: [B<A]", 1.0, False),
        ("<think>[[A>B]]</think>\n[[B>A]]", 2.0, False),
    ],
)
def test_verdicts(text, preference, strong):
    found = parse(Answer(text), FIVE)
    assert (found.preference, found.strong, found.status) == (preference, strong, "ok")


@pytest.mark.parametrize(
    "text",
    [
        "Assistant A is better.",
        "[[A>>>B]]",
        "[[A]]",
        "[[A>B]] or [[A=B]]",
        "[[A>B]]. It is a clear case: [[A>>B]]",
        "[[A>B]] No wait, the other way round.",
        "The verdict is not [[A>B]]",
        'The output says "[[A>>B]]".',
    ],
)
def test_what_is_no_single_verdict(text):
    found = parse(Answer(text), FIVE)
    assert (found.preference, found.strong, found.status) == (None, None, "parse_error")


def test_the_shipped_judge_makes_two_games_of_a_pair(tmp_path):
    (judge,) = load_pool("configs/judges/arena_hard.yaml").judges
    local = replace(judge, base_url="local", api_key_env="")
    said = "Mine is 4.\n\nMy final verdict is [[A>>B]]."
    with FakeServer(lambda body, nth: openai_payload(said)) as server:
        rows, _ = annotate_pairs(make_rows(2), pool_of(local), base_urls={"local": server.url}, retry=QUICK)
        system, user = (message["content"] for message in server.bodies[0]["messages"])
    assert "[[A>>B]]" in system and "<output_a>\n" in user
    assert [(row["order"], row["preference"], row["strong"]) for row in rows] == [
        ("12", 1.0, True),
        ("21", 2.0, True),
    ] * 2
    write_labels(tmp_path / "labels.parquet", rows, {})
    assert [row["strong"] for row in read_labels(tmp_path / "labels.parquet").rows] == [True] * 4
