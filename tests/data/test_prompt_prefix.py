"""What a tokenizer says stands in front of every prompt: there in every encoding, once, kept by cuts; or refused."""

import json

import chat_tokenizers
import numpy as np
import pytest
from test_tokenization import BOS_FIRST, NO_BOS, ROWS

from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_pairs, encode_prompts, encode_sft
from rlhf_jax.data.tokens.same_tokens import same_tokens
from rlhf_jax.data.tokens.tokenizer_files import (
    add_markers,
    heads,
    highest_id,
    load_tokenizer,
    prefix_ids,
    prefix_text,
    with_prefix,
)
from rlhf_jax.errors import UserError

PAIRS = [{"instruction": "the cat", "input": "", "chosen": " sat", "rejected": " on the mat"}]
BOTH = pytest.mark.parametrize("tokenizer", [BOS_FIRST, NO_BOS], ids=["bos", "nobos"])


@pytest.fixture(params=["token", "text"])
def marked(request, tokenizer, tmp_path):
    """A tokenizer with a prefix, read from a folder, as a token of its own or as plain text."""
    tokenizer.save_pretrained(tmp_path / "plain")
    text = "<|chosen|>" if request.param == "token" else "good: "
    tokens = [text, "<|rejected|>"] if request.param == "token" else []
    add_markers(tmp_path / "plain", tokens, text, tmp_path / "marked")
    found = load_tokenizer(tmp_path / "marked")
    assert prefix_text(found) == text and len(found) == len(tokenizer) + len(tokens)
    assert (len(prefix_ids(found)) == 1) == (request.param == "token")
    return found


def in_front(ids, tokenizer):
    """The row without its prefix, which must stand behind the BOS."""
    begin = heads(tokenizer)
    assert tuple(ids[: len(begin)]) == begin and tuple(begin[-len(prefix_ids(tokenizer)) :]) == tuple(
        prefix_ids(tokenizer)
    )
    return [*begin[: len(begin) - len(prefix_ids(tokenizer))], *ids[len(begin) :]]


@BOTH
def test_it_stands_in_front_of_every_prompt_once(tokenizer, marked):
    counted = f"{prefix_text(marked)!r} in front of the prompt, as the tokenizer says (row kept)"
    found, counts = encode_sft(ROWS, marked, "brief", 200)
    plain, _ = encode_sft(ROWS, tokenizer, "brief", 200)
    for i in range(len(ROWS)):
        assert in_front(found[i], marked) == plain[i].tolist()
    np.testing.assert_array_equal(found.prompt_lengths, plain.prompt_lengths + len(prefix_ids(marked)))
    assert counts[counted] == len(ROWS)
    pairs, counts = encode_pairs(PAIRS, marked, "brief", 200)
    plain, _ = encode_pairs(PAIRS, tokenizer, "brief", 200)
    assert [in_front(side[0], marked) for side in pairs] == [side[0].tolist() for side in plain]
    assert counts[counted] == 1
    prompts, counts, _ = encode_prompts(ROWS, marked, "brief", 200)
    plain, _, _ = encode_prompts(ROWS, tokenizer, "brief", 200)
    assert [in_front(prompts[i], marked) for i in range(4)] == [plain[i].tolist() for i in range(4)]
    assert counts[counted] == len(ROWS)
    assert not encode_prompts(ROWS, tokenizer, "brief", 200)[1]


@BOTH
def test_a_cut_takes_the_prompt_and_leaves_it(tokenizer, marked):
    row = [{"prompt": "the dog sat on the cat " * 5, "output": " hi"}]
    plain = encode_prompts(row, tokenizer, "brief", 200)[0][0]
    cut = encode_prompts(row, marked, "brief", 15, Handling(too_long="cut_prompt"))[0][0]
    assert len(cut) == 15 and cut[-3:].tolist() == plain[-3:].tolist()
    assert in_front(cut, marked)
    found = encode_sft(row, marked, "brief", 24, Handling(too_long="cut_prompt"))[0]
    assert in_front(found[0], marked) and len(found[0]) <= 24
    few = len(heads(marked))
    with pytest.raises(
        UserError, match=rf"^max_prompt_length: {few}; what stands in front .* takes {few} of them"
    ):
        encode_prompts(row, marked, "brief", few)


def test_chat_templates_get_it_behind_the_bos():
    tokenizer = chat_tokenizers.build(
        chat_tokenizers.LLAMA3,
        ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "</s>"],
        bos_token="<s>",
        eos_token="</s>",
    )
    marked = with_prefix(tokenizer, "good: ")
    row = [{"instruction": "the cat", "input": "", "output": "sat on"}]
    (plain, _), (found, _) = (encode_sft(row, x, "chat", 200) for x in (tokenizer, marked))
    assert in_front(found[0], marked) == plain[0].tolist()
    assert found.prompt_lengths[0] == plain.prompt_lengths[0] + len(prefix_ids(marked))
    prompts = [encode_prompts(row, x, "chat", 200)[0][0] for x in (tokenizer, marked)]
    assert in_front(prompts[1], marked) == prompts[0].tolist()


@pytest.mark.parametrize("named", [False, True])
def test_it_comes_before_a_bos_that_opens_turns(named):
    tokenizer = chat_tokenizers.build(
        chat_tokenizers.CHATML,
        ["<|im_end|>", "<|im_start|>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    if named:
        tokenizer.chat_template = {"default": tokenizer.chat_template}
    marked = with_prefix(tokenizer, "good: ")
    row = [{"instruction": "the cat", "input": "", "output": "sat on"}]
    (plain, _), (found, _) = (encode_sft(row, x, "chat", 200) for x in (tokenizer, marked))
    prefix = prefix_ids(marked).tolist()
    assert found[0].tolist() == [*prefix, *plain[0]] and heads(marked) == (*prefix, tokenizer.bos_token_id)
    assert tokenizer.decode(found[0]).startswith("good: <|im_start|>user")
    cut = encode_prompts(row, marked, "chat", 12, Handling(too_long="cut_prompt"))[0][0]
    assert len(cut) == 12 and tuple(cut[: len(prefix) + 1]) == heads(marked)


def test_another_prefix_makes_other_tokens():
    good, bad = with_prefix(BOS_FIRST, "good: "), with_prefix(BOS_FIRST, "bad: ")
    assert same_tokens(good, with_prefix(BOS_FIRST, "good: "))
    assert not same_tokens(good, bad) and not same_tokens(good, BOS_FIRST)
    assert not len(prefix_ids(BOS_FIRST)) and prefix_text(BOS_FIRST) == ""


def test_one_that_cannot_be_honoured_is_refused(tmp_path):
    BOS_FIRST.save_pretrained(tmp_path / "plain")
    add_markers(tmp_path / "plain", ["<|chosen|>"], "<|chosen|>", tmp_path / "marked")
    assert highest_id(tmp_path / "marked") == len(BOS_FIRST) and highest_id(tmp_path / "plain") == -1
    # What another program kept of it after it had written the tokenizer anew, without the added token.
    said = json.loads((tmp_path / "marked/tokenizer_config.json").read_text())["prompt_prefix"]
    config = json.loads((tmp_path / "plain/tokenizer_config.json").read_text())
    for wrong, why in (
        (
            said,
            r"'<\|chosen\|>' was \[\d+\] when the model was trained, and is \[\d+, .*; copy the folder again",
        ),
        ("<|chosen|>", r"'<\|chosen\|>' is not \{\"text\": TEXT, \"ids\": \[ID, ...\]\}; copy"),
        ({"text": "x", "ids": []}, "is not"),
    ):
        (tmp_path / "plain/tokenizer_config.json").write_text(json.dumps(config | {"prompt_prefix": wrong}))
        with pytest.raises(UserError, match=f"tokenizer: .*tokenizer_config.json: prompt_prefix: .*{why}"):
            load_tokenizer(tmp_path / "plain")


def test_it_survives_being_saved_again(tmp_path):
    BOS_FIRST.save_pretrained(tmp_path / "plain")
    add_markers(tmp_path / "plain", ["<|chosen|>"], "<|chosen|>", tmp_path / "marked")
    load_tokenizer(tmp_path / "marked").save_pretrained(tmp_path / "again")
    assert heads(load_tokenizer(tmp_path / "again")) == (0, len(BOS_FIRST))
