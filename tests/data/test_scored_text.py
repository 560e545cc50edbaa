"""Responses as reward models read them: up to the end token, before it, or to the end of what a template writes."""

import numpy as np
import pytest
from chat_tokenizers import TOKENIZERS, rendered

from rlhf_jax.data.batches import Sequences
from rlhf_jax.data.templates import Handling, render
from rlhf_jax.data.tokens.scored_text import (
    SCORE_AT,
    Closing,
    closing,
    encode_scored,
    sequences_up_to_score,
    up_to_score,
)

BEHIND = {"last": [], "eos": [9], "template": [9, 8, 7]}
CLOSING = Closing(9, (8, 7))
CHATML = TOKENIZERS["chatml"]


def closing_of(score_at):
    return CLOSING if score_at == "template" else Closing(9)


@pytest.mark.parametrize("score_at", SCORE_AT)
def test_only_a_response_that_ended_is_read_behind_its_last_token(score_at):
    behind = closing_of(score_at)
    assert up_to_score(np.array([4, 5, 9], np.int32), True, score_at, behind).tolist() == [
        4,
        5,
        *BEHIND[score_at],
    ]
    assert up_to_score(np.array([4, 5], np.int32), False, score_at, behind).tolist() == [4, 5]


@pytest.mark.parametrize("score_at", SCORE_AT)
def test_rows_that_end_without_the_end_token_did_not_end(score_at):
    prompt_lengths = np.array([1, 2], np.int32)
    found = Sequences(np.array([4, 5, 9, 4, 5, 6], np.int32), np.array([0, 3, 6]), prompt_lengths)
    rows = sequences_up_to_score(found, score_at, closing_of(score_at))
    assert [rows[i].tolist() for i in range(len(rows))] == [[4, 5, *BEHIND[score_at]], [4, 5, 6]]
    assert rows.prompt_lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("template", "score_at"),
    [("brief", "last"), ("brief", "eos"), ("chat", "last"), ("chat", "eos"), ("chat", "template")],
)
def test_texts_are_read_where_the_score_is_and_no_further_than_they_go(template, score_at):
    prompt = {"instruction": "the cat", "input": ""}
    rows = [prompt | {"output": "sat on", **ended} for ended in ({}, {"ended": True}, {"ended": False})]
    text = render(prompt, template) + "sat on" if template != "chat" else ""
    if template == "chat":
        messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on"}]
        text = rendered("chatml", messages)[0].removesuffix("<|im_end|>\n")
    behind = {"last": "", "eos": "<|im_end|>", "template": "<|im_end|>\n"}[score_at]
    cut, whole = (CHATML(x, add_special_tokens=False)["input_ids"] for x in (text, text + behind))
    how = Handling()
    found = encode_scored(rows, CHATML, template, score_at, closing(CHATML, template, score_at, how), how)
    assert [ids.tolist() for ids in found] == [whole, whole, cut]
