"""Tokens that are put together from those of words are those of the whole text, with every span's."""

import random
import subprocess
import sys
from functools import partial

import pytest
from chat_tokenizers import TOKENIZERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.chat import chat_encoding
from rlhf_jax.data.tokens import known_words, text_batches, words_process
from rlhf_jax.data.tokens.known_words import KnownWords
from rlhf_jax.data.tokens.text_batches import ByWords, token_lists, tokens_of

SPECIALS = ["<|im_start|>", "<|im_end|>", "</s>", "<|im"]
TEXT = ["the cat sat on     the mat\n\nand the dog's 12 hats, we'll see 3.50 EUR é 日本 \U0001f642"] * 9


def build(step, normalizer=None, added=(), **model):
    backend = Tokenizer(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = step, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIALS[:3], initial_alphabet=alphabet)
    )
    backend.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def split(pattern, behavior="isolated", **level):
    level = {"add_prefix_space": False, "use_regex": False} | level
    parts = [pre_tokenizers.Split(Regex(pattern), behavior), pre_tokenizers.ByteLevel(**level)]
    return pre_tokenizers.Sequence(parts)


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), LEVEL])
FIT = {f"pattern_{i}": build(split(x)) for i, x in enumerate(sorted(known_words._CUTTING))}
FIT |= {"level": build(LEVEL), "digits": build(DIGITS), "nfc": build(LEVEL, normalizers.NFC())}
FIT["overlap"] = build(LEVEL, added=["<|im", "x<|im"])
UNFIT = {
    "lstrip": build(LEVEL, added=[AddedToken("<x>", lstrip=True)]),
    "rstrip": build(LEVEL, added=[AddedToken("<x>", rstrip=True)]),
    "single_word": build(LEVEL, added=[AddedToken("cat", single_word=True)]),
    "space": build(LEVEL, added=["sat on"]),
    "pattern": build(split(r"\w+ \w+")),
    "no_pattern": build(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "removed": build(split(next(iter(known_words._CUTTING)), "removed")),
    "prefix": build(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "lower": build(LEVEL, normalizers.Lowercase()),
    "dropout": build(LEVEL, dropout=0.5),
    "spaces": TOKENIZERS["mistral"],
}
SIGNS = [
    "the",
    "cat",
    "dog's",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    " \n",
    "\t",
    "12",
    "1 000",
    ".",
    "?!",
    "é",
    "e\u0301",
]
SIGNS += [
    "日本",
    "\U0001f642",
    "\u00a0",
    "\u2003",
    "\x1c",
    "'ll",
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "<|im",
    "t|>x",
]
SIGNS += ["\ufdd3", "\ufdd4", " \ufdd3"]


def texts_with_spans(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        text = "".join(draw.choices(SIGNS, weights=[6] * 6 + [2] * 21 + [0.05] * 3, k=draw.randrange(30)))
        ends = sorted(draw.sample(range(len(text) + 1), min(2 * draw.randrange(3), (len(text) + 1) // 2 * 2)))
        yield text, list(zip(ends[::2], ends[1::2], strict=True))


def whole(tokenizer):
    return lambda texts, spans: chat_encoding._whole(texts, spans, tokenizer)


@pytest.mark.parametrize("name", FIT)
def test_equal_to_the_whole_text(name, monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 8)
    # So few that words are forgotten on the way.
    monkeypatch.setattr(known_words, "_MOST", 40)
    by_words, cut, left = ByWords(FIT[name], whole(FIT[name]), read_specials=True), 0, 0
    given = list(texts_with_spans(1200, seed=len(name)))
    for start in range(0, len(given), 8):
        texts, spans = zip(*given[start : start + 8], strict=True)
        alone = [whole(FIT[name])([x], [y])[0] for x, y in zip(texts, spans, strict=True)]
        assert by_words(texts, spans) == alone == whole(FIT[name])(texts, spans)
        if by_words._words is not None and start:
            found = by_words._words.pieces(texts, spans)
            cut, left = cut + sum(x is not None for x in found), left + found.count(None)
            assert all(x in (None, y) for x, y in zip(found, alone, strict=True))
    assert by_words._agreed and cut > 400 and left, "or this test would compare whole texts with themselves"


@pytest.mark.parametrize("name", UNFIT)
def test_a_tokenizer_that_must_have_whole_texts(name):
    assert ByWords(UNFIT[name], whole(UNFIT[name]), read_specials=True)._words is None


def test_one_that_does_not_agree_is_asked_for_whole_texts(monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 2)
    made = ByWords(FIT["level"], whole(FIT["level"]), read_specials=True)
    monkeypatch.setattr(
        KnownWords, "pieces", lambda _, texts, __: [known_words.Pieces(b"", b"", False)] * len(texts)
    )
    for _ in range(2):
        assert made(["the cat", "sat"], [[], []]) == whole(FIT["level"])(["the cat", "sat"], [[], []])
    assert made._words is None


def test_special_tokens_within_a_text_stay_characters(monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 4)
    texts = [text for text, _ in texts_with_spans(200, seed=3)]
    found = token_lists(texts, FIT["level"], before=(7,), after=(8, 9))
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == [7, *tokens_of([text], FIT["level"])[0].tolist(), 8, 9]


@pytest.fixture
def many(monkeypatch):
    """Small batches, of which all but the first are made by a second process, whatever the machine."""
    monkeypatch.setattr(text_batches, "BATCH", 8)
    monkeypatch.setattr(text_batches, "ALONE", 1)
    monkeypatch.setattr(text_batches, "_cores", lambda: 2)
    given = list(texts_with_spans(160, seed=5))
    return [zip(*given[start : start + 8], strict=True) for start in range(0, len(given), 8)]


@pytest.mark.parametrize("read_specials", [True, False])
def test_a_second_process_makes_the_same(many, read_specials):
    tokenizer = FIT["digits"]
    alone = partial(text_batches._plain_pieces, tokenizer=tokenizer)
    ask = whole(tokenizer) if read_specials else alone
    with ByWords(tokenizer, ask, read_specials=read_specials) as made:
        for number, batch in enumerate(many):
            texts, spans = batch
            spans = spans if read_specials else [()] * len(texts)
            assert made(texts, spans) == ask(texts, spans)
            assert (made._process is None) == (number == 0)
        process = made._process._process
    assert process.poll() is not None, "it ends with its caller's work"


def test_without_the_second_process_it_goes_on(many, monkeypatch):
    tokenizer, started = FIT["level"], []
    with ByWords(tokenizer, whole(tokenizer), read_specials=True) as made:
        for number, batch in enumerate(many):
            texts, spans = batch
            if number == 9:
                started.append(made._process._process)
                started[0].kill()
            assert made(texts, spans) == whole(tokenizer)(texts, spans)
        assert made._process is None and started[0].poll() == -9

    def refused(*_, **__):
        raise OSError("no process")

    monkeypatch.setattr(words_process.subprocess, "Popen", refused)
    with ByWords(tokenizer, whole(tokenizer), read_specials=True) as made:
        for texts, spans in [*texts_in(3, seed=1), *texts_in(3, seed=2)]:
            assert made(texts, spans) == whole(tokenizer)(texts, spans) and made._process is None


def texts_in(count, seed):
    return [zip(*texts_with_spans(8, seed + 10 * i), strict=True) for i in range(count)]


def test_few_texts_and_one_core_start_no_process(monkeypatch):
    monkeypatch.setattr(text_batches, "BATCH", 8)
    for cores, alone, batches in ((2, 20, 20), (1, 1, 5)):
        monkeypatch.setattr(text_batches, "_cores", lambda cores=cores: cores)
        monkeypatch.setattr(text_batches, "ALONE", alone)
        monkeypatch.setattr(text_batches, "WordsProcess", None)
        with ByWords(FIT["level"], whole(FIT["level"]), read_specials=True) as made:
            for texts, spans in texts_in(batches, seed=3):
                made(texts, spans)


def test_the_second_process_loads_neither_jax_nor_transformers():
    code = "import sys, tokenizers, rlhf_jax.data.tokens.words_process; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"jax", "transformers", "torch", "numpy"} & set(loaded.split())
