"""Rows that are too long: left out, or cut at the response's end, or at the prompt's beginning, always counted."""

from collections import Counter

import numpy as np
import pytest
from chat_tokenizers import TOKENIZERS

from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import (
    cut_left,
    encode_answers,
    encode_pairs,
    encode_prompts,
    encode_sft,
    fitted,
)

CUT = {way: Handling(too_long=way) for way in ("drop", "cut_response", "cut_prompt")}
SHORT = {"prompt": "a", "output": "b", "chosen": "b", "rejected": "c"}
TOKENIZER = TOKENIZERS["llama3"]  # has a BOS


def dpo_rlaif(prompt, responses, max_length):
    """dpo-rlaif's code for one pair, without the BOS that it never writes."""
    longest, most = max(map(len, responses)), max_length // 2
    if len(prompt) + longest > max_length:
        prompt = prompt[-most:]
    if len(prompt) + longest > max_length:
        responses = [x[: max_length - most] for x in responses]
    return prompt, responses


@pytest.mark.parametrize(
    ("p", "a", "b"), [(30, 5, 6), (30, 19, 4), (30, 40, 6), (8, 50, 3), (12, 4, 4), (45, 3, 2)]
)
def test_cutting_prompts_is_dpo_rlaifs(p, a, b):
    """But a prompt shorter than half leaves its room to the response."""
    prompt, responses = (
        np.arange(100, 100 + p, dtype=np.int32),
        [np.arange(n, dtype=np.int32) for n in (a, b)],
    )
    fit = fitted(prompt, max(a, b), 32, "cut_prompt", TOKENIZER)
    wanted, answers = dpo_rlaif(prompt, responses, 32)
    assert fit.prompt.tolist() == wanted.tolist()
    if p >= 16:
        assert [x[: fit.room].tolist() for x in responses] == [x.tolist() for x in answers]
    assert len(fit.prompt) + min(max(a, b), fit.room) <= 32


def test_a_bos_stays_in_front():
    bos = TOKENIZER.bos_token_id
    assert cut_left(np.array([bos, 5, 6, 7, 8], np.int32), 3, TOKENIZER).tolist() == [bos, 7, 8]
    assert cut_left(np.array([4, 5, 6, 7, 8], np.int32), 3, TOKENIZER).tolist() == [6, 7, 8]
    assert cut_left(np.array([bos, 5, 6], np.int32), 1, TOKENIZER).tolist() == [bos]


@pytest.mark.parametrize("template", ["brief", "chat"])
def test_demonstrations(template):
    rows = [{"prompt": "the cat " * 12, "output": " sat on the mat" * 5}, SHORT]
    (whole, _), eos = encode_sft(rows, TOKENIZER, template, 500), TOKENIZER.eos_token_id
    ids, n, limit = whole[0].tolist(), int(whole.prompt_lengths[0]), int(whole.lengths[0]) - 3
    found, counts, kept = encode_answers(rows, TOKENIZER, template, limit, CUT["drop"])
    assert (kept.tolist(), counts) == ([1], Counter({"response too long": 1}))
    found, counts = encode_sft(rows, TOKENIZER, template, limit, CUT["cut_response"])
    assert counts == Counter({"response cut (row kept)": 1}) and found[0].tolist() == ids[:limit]
    assert found[0][-1] != eos
    found, counts = encode_sft(rows, TOKENIZER, template, limit, CUT["cut_prompt"])
    if n > limit // 2:
        assert counts["prompt cut at its beginning (row kept)"] == 1
        left = int(found.prompt_lengths[0])
        assert left == limit // 2 and found[0][0] == TOKENIZER.bos_token_id
        assert found[0][1:left].tolist() == ids[n - left + 1 : n]
        assert found[0][left:].tolist() == ids[n:][: limit - left]


@pytest.mark.parametrize("template", ["brief", "chat"])
def test_pairs_and_prompts(template):
    rows = [{"prompt": "the cat " * 20, "chosen": " sat on the mat" * 4, "rejected": "the dog"}, SHORT]
    whole, _ = encode_pairs(rows, TOKENIZER, template, 500)
    n, longest = int(whole.chosen.prompt_lengths[0]), int(whole.chosen.lengths[0])
    limit, eos = longest - 2, TOKENIZER.eos_token_id
    pairs, counts = encode_pairs(rows, TOKENIZER, template, limit)
    assert len(pairs) == 1 and counts == Counter({"response too long": 1})
    pairs, counts = encode_pairs(rows, TOKENIZER, template, limit, CUT["cut_response"])
    assert len(pairs) == 2 and counts == Counter({"response cut (row kept)": 1})
    assert pairs.chosen[0].tolist() == whole.chosen[0].tolist()[:limit]
    assert pairs.rejected[0].tolist() == whole.rejected[0].tolist() and pairs.rejected[0][-1] == eos
    pairs, counts = encode_pairs(rows, TOKENIZER, template, limit, CUT["cut_prompt"])
    assert counts["prompt cut at its beginning (row kept)"] == 1
    assert pairs.chosen.prompt_lengths[0] == pairs.rejected.prompt_lengths[0] == limit // 2
    prompts, counts, kept = encode_prompts(rows, TOKENIZER, template, n - 4)
    assert (kept.tolist(), counts) == ([1], Counter({"prompt too long": 1}))
    prompts, counts, kept = encode_prompts(rows, TOKENIZER, template, n - 4, CUT["cut_prompt"])
    assert kept.tolist() == [0, 1] and counts == Counter({"prompt cut at its beginning (row kept)": 1})
    assert prompts[0].tolist() == [TOKENIZER.bos_token_id, *whole.chosen[0].tolist()[5:n]]
