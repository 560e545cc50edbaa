"""Rows of more tokens than fit: left out, or cut, and what is said of them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

DROP, CUT_RESPONSE, CUT_PROMPT = "drop", "cut_response", "cut_prompt"


class Fit(NamedTuple):
    """A prompt that fits, how many tokens of a response fit behind it, and what was done to either."""

    prompt: Int32[np.ndarray, " P"]
    room: int
    notes: tuple[str, ...] = ()


def fitted(
    prompt: Int32[np.ndarray, " P"], response: int, max_length: int, too_long: str, tokenizer: Any
) -> Fit | str:
    """What of a prompt and a response of so many tokens fits max_length, or the reason why the row is left out.

    cut_prompt leaves of the prompt its last tokens, half of max_length (dpo-rlaif's 256 of 512); after that, as
    cut_response does at once, the response loses what is still too long. A response that is cut has no end token.
    """
    if len(prompt) + response <= max_length:
        return Fit(prompt, max_length - len(prompt))
    notes: tuple[str, ...] = ()
    if too_long == CUT_PROMPT and len(prompt) > max(max_length // 2, 1):
        prompt = cut_left(prompt, max(max_length // 2, 1), tokenizer)
        notes = ("prompt cut at its beginning (row kept)",)
    if len(prompt) >= max_length:
        return "prompt too long"
    if len(prompt) + response <= max_length:
        return Fit(prompt, max_length - len(prompt), notes)
    if too_long == DROP:
        return "response too long"
    return Fit(prompt, max_length - len(prompt), (*notes, "response cut (row kept)"))


def cut_left(prompt: Int32[np.ndarray, " P"], length: int, tokenizer: Any) -> Int32[np.ndarray, " L"]:
    """The last tokens of a prompt; its BOS stays in front."""
    begins = prompt[:1] if len(prompt) and prompt[0] == tokenizer.bos_token_id else prompt[:0]
    kept = prompt[len(prompt) - max(length - len(begins), 0) :] if length > len(begins) else prompt[:0]
    return np.concatenate([begins, kept])
