"""Marked rows and histograms, as text."""

import numpy as np
import pytest
from chat_tokenizers import TOKENIZERS

from rlhf_jax.data.chat.chat_encoding import encode_chats
from rlhf_jax.data.inspection import COLOUR, PLAIN, histogram, inspection_summary, marked, share_over

CHAT = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant") * 2, ("hi", "the cat", "é 🙂", "日本"), strict=True)
]


@pytest.mark.parametrize("style", TOKENIZERS)
def test_marks_stand_around_what_the_assistant_says(style):
    tokenizer = TOKENIZERS[style]
    (found,) = encode_chats([CHAT], tokenizer)
    text = marked(found.ids, found.trained, tokenizer, PLAIN)
    parts = [piece.split("]]")[0] for piece in text.split("[[")[1:]]
    assert [p.replace(tokenizer.eos_token, "").strip() for p in parts] == ["the cat", "日本"]
    assert all(p.endswith(tokenizer.eos_token) for p in parts)
    assert text.replace("[[", "").replace("]]", "") == tokenizer.decode(found.ids.tolist())
    coloured = marked(found.ids, found.trained, tokenizer, COLOUR)
    assert coloured.replace(COLOUR[0], "[[").replace(COLOUR[1], "]]") == text


def test_rows_without_a_trained_token_have_no_marks():
    tokenizer = TOKENIZERS["chatml"]
    ids = np.array(tokenizer("the cat")["input_ids"], np.int32)
    assert marked(ids, np.zeros(len(ids), bool), tokenizer, PLAIN) == "the cat"
    assert marked(ids, np.ones(len(ids), bool), tokenizer, PLAIN) == "[[the cat]]"


def test_histogram_counts_every_row():
    lengths = np.array([0, 3, 3, 4, 9, 15, 15], np.int32)
    assert histogram(lengths, 4) == [
        "   0-3  |######################################## 3",
        "   4-7  |############## 1",
        "   8-11 |############## 1",
        "  12-15 |########################### 2",
    ]
    assert histogram(np.array([2, 0, 2]), 9) == [
        "  0 |#################### 1",
        "  1 |0",
        "  2 |######################################## 2",
    ]
    rng = np.random.default_rng(0)
    for bins in (1, 5, 16):
        lines = histogram(rng.integers(0, 700, 300), bins)
        assert len(lines) <= bins
        assert sum(int(line.split()[-1].lstrip("|")) for line in lines) == 300


def test_shares_and_quantiles():
    lengths = np.arange(1, 101)
    assert inspection_summary(lengths) == "mean 50.5, median 51, 90 % 91, 95 % 96, 99 % 100, longest 100"
    assert [share_over(lengths, n) for n in (0, 90, 100)] == [1.0, 0.1, 0.0]
