"""Encoding: [BOS] prompt | response EOS, by id and by length; drops and cuts counted; no id compared."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import decode, encode_pairs, encode_prompt_texts, encode_prompts, encode_sft
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError


def build(order, **special):
    """A byte-level BPE tokenizer whose first ids are the special tokens, in the given order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=order,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the cat"] * 9, trainer)
    bos = special.get("bos_token")
    if bos is not None:  # as Llama's tokenizer: asked plainly, it would add a BOS of its own
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


BOS_FIRST = build(
    ["<s>", "</s>", "<pad>"],
    eos_token="</s>",
    pad_token="<pad>",
    bos_token="<s>",
)
EOS_FIRST = build(["</s>", "<pad>", "<s>"], eos_token="</s>", pad_token="<pad>", bos_token="<s>")
PAD_FIRST = build(["<pad>", "<s>", "</s>"], eos_token="</s>", pad_token="<pad>", bos_token="<s>")
NO_BOS = build(["<pad>", "</s>"], eos_token="</s>", pad_token="<pad>")
ALL = pytest.mark.parametrize(
    "tokenizer", [BOS_FIRST, EOS_FIRST, PAD_FIRST, NO_BOS], ids=["bos0", "eos0", "pad0", "nobos"]
)

ROWS = [
    {"instruction": "the cat", "input": "", "output": " sat on the mat"},
    {"instruction": "say {input}", "input": "é 日本", "output": "</s> is <s> not <pad> special"},
    {"prompt": "\n\nHuman: hi\n\nAssistant:", "output": " hello ,  world . I do n't"},
    {"instruction": "ends with the th", "output": "e word that could merge"},
]


def prompt_of(row, tokenizer):
    return encode_prompt_texts([render(row, "brief")], tokenizer)[0].tolist()


def body(text, tokenizer):
    """Plain ids of a text from the Rust tokenizer itself, special-looking text as text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


def test_each_special_token_is_zero_in_one_of_them():
    assert BOS_FIRST.bos_token_id == 0
    assert EOS_FIRST.eos_token_id == 0
    assert PAD_FIRST.pad_token_id == 0
    assert NO_BOS.bos_token_id is None


@ALL
def test_sft_rows_are_bos_prompt_response_eos(tokenizer):
    sequences, counts = encode_sft(ROWS, tokenizer, "brief", 500)
    assert len(sequences) == len(ROWS)
    assert not counts
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for i, row in enumerate(ROWS):
        ids, cut = sequences[i].tolist(), sequences.prompt_lengths[i]
        assert ids[:cut] == bos + body(render(row, "brief"), tokenizer)
        assert ids[cut:] == [*body(row["output"], tokenizer), tokenizer.eos_token_id]
        assert sequences.lengths[i] == len(ids)
        # Special ids stand at the ends alone, whatever the text says.
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids.count(tokenizer.pad_token_id) == 0
        if bos:
            assert ids.count(bos[0]) == 1


@ALL
def test_the_sampler_sees_exactly_the_training_prompt(tokenizer):
    sequences, _ = encode_sft(ROWS, tokenizer, "alpaca", 500)
    prompts, counts, kept = encode_prompts(ROWS, tokenizer, "alpaca", 500)
    assert not counts
    assert kept.tolist() == list(range(len(ROWS)))
    for i in range(len(ROWS)):
        assert prompts[i].tolist() == sequences[i][: sequences.prompt_lengths[i]].tolist()


@ALL
def test_decode_returns_the_response_text(tokenizer):
    sequences, _ = encode_sft(ROWS, tokenizer, "brief", 500)
    for i, row in enumerate(ROWS):
        assert decode(tokenizer, sequences[i][sequences.prompt_lengths[i] :]) == row["output"]


def test_decoded_text_keeps_the_spaces_before_punctuation():
    """As the model wrote it: transformers can take them out, and the text would be other tokens than were sampled."""
    words = Tokenizer(models.WordLevel({"</s>": 0, "hello": 1, ",": 2, "world": 3}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", clean_up_tokenization_spaces=True
    )
    assert decode(tokenizer, [1, 2, 3, 0]) == "hello , world"


@ALL
def test_limits_of_demonstrations(tokenizer):
    row = ROWS[0]
    prompt = prompt_of(row, tokenizer)
    response = [*body(row["output"], tokenizer), tokenizer.eos_token_id]
    whole = len(prompt) + len(response)
    filler = {"prompt": "a", "output": "b"}  # fits every limit tried, so no limit leaves nothing
    for limit in range(len(prompt) - 2, whole + 3):
        sequences, counts = encode_sft([row, filler], tokenizer, "brief", limit)
        if limit <= len(prompt):
            assert counts == Counter({"prompt too long": 1})
            assert len(sequences) == 1
        else:
            assert counts == (Counter() if limit >= whole else Counter({"response cut (row kept)": 1}))
            assert sequences[0].tolist() == (prompt + response)[:limit]
            assert (sequences[0][-1] == tokenizer.eos_token_id) == (limit >= whole)
            assert sequences.prompt_lengths[0] == len(prompt)


@ALL
def test_limits_of_pairs_look_at_both_sides(tokenizer):
    long, short = " sat on the mat and the dog", " sat"
    n_prompt = len(prompt_of({"prompt": "the cat"}, tokenizer))
    n_long = n_prompt + len(body(long, tokenizer)) + 1
    filler = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for chosen, rejected in [(long, short), (short, long)]:
        row = {"prompt": "the cat", "chosen": chosen, "rejected": rejected}
        for limit in range(n_prompt - 1, n_long + 2):
            pairs, counts = encode_pairs([row, filler], tokenizer, "brief", max(limit, 4))
            if limit >= n_long:
                assert not counts
                assert [len(pairs), len(pairs.chosen), len(pairs.rejected)] == [2, 2, 2]
                assert pairs.chosen[0].tolist()[n_prompt:] == [
                    *body(chosen, tokenizer),
                    tokenizer.eos_token_id,
                ]
                assert pairs.rejected[0][-1] == tokenizer.eos_token_id
                assert pairs.chosen.prompt_lengths.tolist() == pairs.rejected.prompt_lengths.tolist()
            else:
                reason = "prompt too long" if max(limit, 4) <= n_prompt else "response too long"
                assert counts == Counter({reason: 1})
                assert len(pairs) == 1


@ALL
def test_limits_of_prompts(tokenizer):
    rows = [{"prompt": "the cat sat"}, {"prompt": "a"}, {"prompt": "the cat sat on the mat"}]
    lengths = [len(prompt_of(row, tokenizer)) for row in rows]
    for limit in range(min(lengths), max(lengths) + 2):
        prompts, counts, kept = encode_prompts(rows, tokenizer, "brief", limit)
        assert kept.tolist() == [i for i in range(3) if lengths[i] <= limit]
        assert prompts.lengths.tolist() == [lengths[i] for i in kept]
        assert counts.total() == 3 - len(kept)
        assert set(counts) <= {"prompt too long"}


def test_pairs_that_become_the_same_tokens_are_dropped():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "?": 2, "a": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    rows = [{"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "a", "chosen": "a", "rejected": "y"}]
    pairs, counts = encode_pairs(rows, tokenizer, "brief", 9)
    assert len(pairs) == 1
    assert counts == Counter({"identical tokens": 1})


def test_truncation_and_padding_stored_with_a_tokenizer_are_ignored():
    tokenizer = build(["<pad>", "</s>"], eos_token="</s>", pad_token="<pad>")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    sequences, _ = encode_sft(ROWS, tokenizer, "brief", 500)
    expected, _ = encode_sft(ROWS, NO_BOS, "brief", 500)
    np.testing.assert_array_equal(sequences.tokens, expected.tokens)


def test_many_texts_keep_their_order():
    rows = [{"prompt": f"the cat {i % 700}", "output": f"{i % 900}"} for i in range(2500)]
    sequences, _ = encode_sft(rows, NO_BOS, "brief", 60)
    for i in range(0, 2500, 97):
        assert decode(NO_BOS, sequences[i]) == rows[i]["prompt"] + rows[i]["output"]


@pytest.mark.parametrize("encode", [encode_sft, encode_pairs, encode_prompts])
def test_when_nothing_fits_the_limit_is_named(encode):
    rows = [{"prompt": "the cat sat on", "output": "x", "chosen": "x", "rejected": "y"}] * 3
    with pytest.raises(
        UserError, match=r"^max_(prompt_)?length: none of 3 rows fits 2 tokens \(skipped 3: prompt"
    ):
        encode(rows, EOS_FIRST, "brief", 2)


def test_load_round_trip(tmp_path):
    EOS_FIRST.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_token_id == 0
    before, after = (encode_sft(ROWS, tokenizer, "alpaca", 300)[0] for tokenizer in (EOS_FIRST, loaded))
    np.testing.assert_array_equal(before.tokens, after.tokens)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    build(["<pad>", "</s>"], pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no EOS token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("special", [{}, {"pad_token": "</s>"}])
def test_pad_may_be_missing_or_eos(tmp_path, special):
    build(["<pad>", "</s>"], eos_token="</s>", **special).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == special.get("pad_token")


def test_missing_and_broken_tokenizers(tmp_path):
    cases = {"absent": "does not exist", "empty": "holds no tokenizer", "broken": "could not be loaded"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    for folder, words in cases.items():
        with pytest.raises(UserError) as error:
            load_tokenizer(tmp_path / folder, made_by="python -m x")
        message = str(error.value)
        assert words in message
        assert message.endswith("make it with: python -m x")
        assert "\n" not in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_the_file_of_a_tokenizer_that_cannot_be_read_is_named(tmp_path, name):
    build(["<pad>", "</s>"], eos_token="</s>").save_pretrained(tmp_path)
    (tmp_path / name).write_text('{"a": ')
    with pytest.raises(UserError, match=rf"{name}: not readable as JSON"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_own_code_is_refused_without_a_question(tmp_path, monkeypatch):
    """And one whose settings fail only when it is used."""
    tokenizer = build(["<pad>", "</s>"], eos_token="</s>")
    for more in (
        {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"},
        {"model_max_length": "x"},
    ):
        tokenizer.save_pretrained(tmp_path)
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
        with pytest.raises(UserError, match=r"^tokenizer: .* could not be loaded"):
            load_tokenizer(tmp_path)
