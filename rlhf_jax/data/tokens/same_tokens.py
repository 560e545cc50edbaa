"""Compares two tokenizers: do they make the same tokens of the same text, so that one model can read the other's?"""

import json
from typing import Any

from rlhf_jax.data.tokens.tokenizer_files import heads


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers have equal vocabularies, merges, rules, special tokens, and equal tokens before prompts.

    Equal sizes say nothing. The PAD token may be another, or be there in one alone: no model reads it.
    """
    if one is other:
        return True
    pads = {one.pad_token, other.pad_token}
    return (
        _vocabulary(one, pads) == _vocabulary(other, pads)
        and [_special(one, name) for name in ("bos_token", "eos_token")]
        == [_special(other, name) for name in ("bos_token", "eos_token")]
        and heads(one) == heads(other)
        and _rules(one) == _rules(other)
        and _encoded(one) == _encoded(other)
    )


# What tokenizers treat differently: contractions, digits, runs of spaces, tabs, accents, Chinese, an emoji,
# and texts that look like special tokens.
_PROBE = "The cat's 12 hats, 3.50 EUR:\n\n\tdef f(x):  return x\u00e9\u4e2d \U0001f600 </s> <|im_end|> "


def _vocabulary(tokenizer: Any, pads: set[str | None]) -> dict[str, int]:
    return {token: i for token, i in tokenizer.get_vocab().items() if token not in pads}


def _special(tokenizer: Any, name: str) -> tuple[str | None, int | None]:
    return getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")


def _rules(tokenizer: Any) -> Any:
    """What a fast tokenizer does between text and ids; None where that cannot be seen, and the probe must do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    found = json.loads(backend.to_str())
    # The vocabulary is compared on its own, without the PAD tokens.
    model = {name: x for name, x in found["model"].items() if name != "vocab"}
    return model, found["normalizer"], found["pre_tokenizer"], found["decoder"]


def _encoded(tokenizer: Any) -> Any:
    # Once with special tokens read as such and once as plain
    # text, because both are done when rows are encoded.
    return [
        tokenizer(_PROBE, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        for split in (False, True)
    ]
