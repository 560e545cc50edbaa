"""What a model's maker had in front of every prompt, such as a control token: kept with the tokenizer, which says so.

    "prompt_prefix": {"text": "<|chosen|>", "ids": [4096]}          in tokenizer_config.json

A model that was trained behind such a text answers otherwise without it, so nobody should have to remember it: all that
encodes prompts puts it behind the BOS token, for sampling and for further training alike. Other programs than ours have
to be told.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from rlhf_jax.errors import UserError, read_object

FIELD = "prompt_prefix"
_CONFIG = "tokenizer_config.json"


def prefix_text(tokenizer: Any) -> str:
    """What a tokenizer says stands in front of every prompt; "" where it says nothing."""
    return _said(tokenizer).get("text", "")


def prefix_ids(tokenizer: Any) -> Int32[np.ndarray, " F"]:
    """The same as token ids, none where it says nothing."""
    return np.array(_said(tokenizer).get("ids", ()), np.int32)


def heads(tokenizer: Any) -> tuple[int, ...]:
    """The ids that every prompt begins with: BOS, where the tokenizer has one, and the prefix."""
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return (*bos, *_said(tokenizer).get("ids", ()))


def with_prefix(tokenizer: Any, text: str) -> Any:
    """The same tokenizer with another text in front of every prompt. A token that was added to it counts as one."""
    found = copy.copy(tokenizer)
    # The copy shares its vocabulary with the original, and must not share what it says.
    found.init_kwargs = {**tokenizer.init_kwargs, FIELD: {"text": text, "ids": _encoded(tokenizer, text)}}
    return found


def check_prefix(tokenizer: Any, path: str | Path) -> None:
    """Raises UserError where a tokenizer's folder asks for a prefix that its vocabulary does not make of that text."""
    found = getattr(tokenizer, "init_kwargs", {}).get(FIELD)
    if found is None:
        return
    where, again = f"tokenizer: {Path(path) / _CONFIG}: {FIELD}", "copy the folder again as it was exported"
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found.get("ids"):
        raise UserError(f'{where}: {found!r} is not {{"text": TEXT, "ids": [ID, ...]}}; {again}')
    ids = _encoded(tokenizer, found["text"])
    if ids != found["ids"]:
        raise UserError(
            f"{where}: {found['text']!r} was {found['ids']} when the model was trained, and is {ids} for the tokenizer "
            f"beside it; {again}"
        )


def highest_id(folder: Path) -> int:
    """The highest id of the prefix that a folder's tokenizer asks for; -1 where it asks for none."""
    path = folder / _CONFIG
    found = read_object(path).get(FIELD) if path.is_file() else None
    return max(found["ids"]) if isinstance(found, dict) and found.get("ids") else -1


def _said(tokenizer: Any) -> dict[str, Any]:
    return getattr(tokenizer, "init_kwargs", {}).get(FIELD) or {}


def _encoded(tokenizer: Any, text: str) -> list[int]:
    added = tokenizer.get_added_vocab()
    if text in added:
        return [added[text]]
    return list(tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0])
