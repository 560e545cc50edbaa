"""The world's tokenizer: exact round trips, special tokens, short prompts, loading by Hugging Face."""

import random
import re

import pytest

from rlhf_jax.data.tokens import tokenizer_files
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm import world


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(rows, tokenizer) of a small world, the tokenizer loaded as a user would."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("world")
    paths = world.build(folder, seed=0, scale=0.2)
    rows = [row for split in world.generate_splits(seed=0, scale=0.2).values() for row in split]
    return rows, AutoTokenizer.from_pretrained(paths["tokenizer"]), paths["tokenizer"]


def _prompt(row):
    middle = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}{middle}\n\n### Response:"


def test_loads_with_three_separate_special_tokens(built):
    from transformers import PreTrainedTokenizerFast

    _, auto, directory = built
    for loaded in (auto, PreTrainedTokenizerFast.from_pretrained(directory)):
        assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<bos>", "<eos>")
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
        assert 500 < len(loaded) <= 1024
        assert loaded("Sure! The hat is red.")["input_ids"] == auto.encode("Sure! The hat is red.")
        assert not {0, 1, 2} & set(loaded("Sure! The hat is red.")["input_ids"])


def test_world_text_and_any_other_text_come_back_exactly(built):
    rows, auto, _ = built
    rng = random.Random(0)
    texts = [_prompt(row) + row["output"] for row in rng.sample(rows, 300)]
    texts += [
        "",
        " ",
        "  two  spaces ",
        "\n\n\t\r\n",
        "naïve café — 漢字 🙂🏽 \u200b\x00",
        "wor ld !",
        "1234567 ,. <pa",
    ]
    texts += [
        "".join(chr(rng.choice((rng.randrange(1, 0xD800), rng.randrange(32, 127)))) for _ in range(40))
        for _ in range(100)
    ]
    for text in texts:
        assert auto.decode(auto(text)["input_ids"]) == text


def test_prompt_and_response_tokens_are_those_of_the_joined_text(built):
    rows, auto, _ = built
    for row in rows[:200]:
        prompt, output = _prompt(row), row["output"]
        assert auto.encode(prompt) + auto.encode(output) == auto.encode(prompt + output)


def test_prompts_and_responses_are_short(built):
    rows, auto, _ = built
    prompts = sorted(len(auto.encode(_prompt(row))) for row in rows)
    responses = sorted(len(auto.encode(row["output"])) + 1 for row in rows)
    assert prompts[-1] <= 44 and prompts[int(0.99 * len(prompts))] <= 40
    assert responses[int(0.98 * len(responses))] <= 28 and responses[len(responses) // 2] >= 8


def test_nearly_every_word_is_one_token(built):
    rows, auto, _ = built
    words = [w for row in rows[:2000] for w in re.findall(r" ?[A-Za-z]+| ?\d+", _prompt(row) + row["output"])]
    single = {word: len(auto.encode(word)) == 1 for word in set(words)}
    assert sum(single[word] for word in words) / len(words) > 0.98


def test_training_is_deterministic_and_minds_the_vocabulary_size(tmp_path):
    texts = ["the cat likes the hat", "the hat is red"] * 5
    one, two = (tokenizer_files.train_tokenizer(iter(texts), tmp_path / name, 280) for name in "ab")
    assert (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="vocab_size: 200 cannot hold"):
        tokenizer_files.train_tokenizer(texts, tmp_path / "c", 200)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the tokenizer"):
        tokenizer_files.train_tokenizer(texts, tmp_path / "file", 300)
