"""SentencePiece's tokens from a GGUF file, compared with its algorithm written out."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_jax.errors import UserError
from rlhf_jax.models.gguf import gguf_tokenizer
from rlhf_jax.models.gguf.gguf_files import Contents

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
TEXT = (
    "the cat sat on the mat, then the other cat sat there; a theatre of cats thinks that 2024 is 2,024 days. "
    * 3
)
LINES = (
    TEXT,
    "that  cat\n\n\tthe",
    " leading and trailing ",
    "Zürich 東京 👩‍👩‍👧",
    "theththe catcat",
    "<s>the</s>",
)


def _fields(**changes):
    """Bytes, letters and the pieces that merging the commonest neighbours of TEXT gives, best first."""
    words = Counter(SPACE + word for word in TEXT.split())
    split = {word: list(word) for word in words}
    pieces = sorted(set("".join(words)))
    for _ in range(40):
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(split[word], split[word][1:], strict=False):
                pairs[pair] += n
        (left, right), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        for word, parts in split.items():
            split[word] = _joined(parts, left, right)
        pieces.append(left + right)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    letters = set("".join(words))
    ranked = dict.fromkeys([*(p for p in pieces if p not in letters), *sorted(letters)])
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, *ranked],
        "tokenizer.ggml.scores": [*[0.0] * len(tokens), *(-float(i) for i in range(len(ranked)))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(ranked)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | changes


def _joined(parts, left, right):
    found = []
    for part in parts:
        if found and (found[-1], part) == (left, right):
            found[-1] += part
        else:
            found.append(part)
    return found


def _sentencepiece(text, fields):
    """The best-scoring neighbours are joined, the leftmost of equals, until none is a piece; the rest are bytes."""
    scores = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True))
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    parts = list((SPACE + text).replace(" ", SPACE))
    while True:
        joins = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not joins:
            break
        i = -max(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    found = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def _tokenizer(folder, fields):
    for name, content in gguf_tokenizer.files(Contents(Path("x.gguf"), fields, ())).items():
        (folder / name).write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(folder)


def test_tokens_are_those_of_sentencepiece(tmp_path):
    tokenizer, fields = _tokenizer(tmp_path, _fields()), _fields()
    for line in LINES:
        options = {"split_special_tokens": True}
        assert tokenizer(line, **options)["input_ids"] == [1, *_sentencepiece(line, fields)], line
        assert tokenizer.decode(tokenizer(line, **options)["input_ids"], skip_special_tokens=True) == line
    assert tokenizer("<s>the</s>")["input_ids"][:2] == [1, 1]
    assert len(tokenizer(TEXT)["input_ids"]) < len(TEXT) / 2  # Pieces were joined.


def test_no_space_and_no_bos_where_the_file_says_so(tmp_path):
    about = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = _tokenizer(tmp_path, _fields(**about))
    first = tokenizer.convert_ids_to_tokens(tokenizer("the cat")["input_ids"])[0]
    assert not first.startswith(SPACE) and tokenizer.decode(tokenizer(" the cat")["input_ids"]) == " the cat"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("remove_extra_whitespaces", True, "tokenizer.ggml.remove_extra_whitespaces is set"),
        ("precompiled_charsmap", [1, 2], "tokenizer.ggml.precompiled_charsmap is set"),
        ("scores", None, "no tokenizer.ggml.scores; its tokenizer is not whole"),
    ],
)
def test_rules_that_are_not_known_are_refused(name, value, said, tmp_path):
    with pytest.raises(UserError, match=said):
        _tokenizer(tmp_path, _fields(**{f"tokenizer.ggml.{name}": value}))
