"""Calling a tokenizer on many texts: each distinct one once, a thousand at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CHUNK = 1024  # texts per call: bounds the memory of a tokenizer's intermediate lists


def tokenized(texts: Sequence[str], tokenizer: Any, **options: bool) -> Iterator[tuple[str, Mapping]]:
    """Every distinct text and what the tokenizer says of it ("input_ids", ...); no special token is added.

    Preference sets repeat their prompts and answers hundreds of times. options: the tokenizer's own.
    """
    unique = list(dict.fromkeys(texts))
    for start in range(0, len(unique), _CHUNK):
        chunk = unique[start : start + _CHUNK]
        found = tokenizer(
            chunk,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        for i, text in enumerate(chunk):
            yield text, {name: found[name][i] for name in found}
