"""Chooses special token ids: those that end a response, one to fill rows with, and a PAD that no text contains."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from rlhf_jax.data.chat.chat_encoding import CHAT, end_of_turn
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.tokenizer_files import heads
from rlhf_jax.errors import UserError

_GENERATION, _CONFIG = "generation_config.json", "config.json"
# Llama 3 has <|reserved_special_token_0|>, T5 <extra_id_0>, Phi 3 <|placeholder1|>, BERT [unused0].
_SPARE = re.compile(r"pad|reserved|unused|extra|placeholder|dummy", re.IGNORECASE)
_NEW_PAD = "<|pad|>"
_DEFAULTS = Handling()


def end_ids(tokenizer: Any, folder: str | Path, template: str, how: Handling = _DEFAULTS) -> tuple[int, ...]:
    """Returns the tokens at which sampling stops, each once: first the one that training text ends with.

    That is what the template writes behind a turn (the tokenizer's EOS, where it is no chat template). Then the
    tokenizer's EOS and what the model's makers list: `eos_token_id` of generation_config.json in `folder`, or of
    config.json where there is no such file. Raises UserError for a file that cannot be read.
    """
    written = end_of_turn(tokenizer, how) if template == CHAT else tokenizer.eos_token_id
    # Chat models often end a turn with another token than EOS:
    # Llama 3 with <|eot_id|>. All of them must stop sampling.
    return tuple(dict.fromkeys([written, tokenizer.eos_token_id, *_listed(Path(folder))]))


def fill_id(tokenizer: Any) -> int:
    """Returns the id that rows are filled up with. Nothing reads it: masks are made from lengths, never from ids."""
    found = tokenizer.pad_token_id
    return tokenizer.eos_token_id if found is None else found


def without_end(ids: Integer[np.ndarray, " R"], ended: bool | np.bool_) -> Integer[np.ndarray, " L"]:
    """Takes the end token off a sampled response."""
    # By its place: the end token need not be a special one, so the decoder would not leave it out.
    return ids[:-1] if ended else ids


def with_spare_pad(tokenizer: Any, ends: Sequence[int], vocab_size: int) -> Any | None:
    """Gives the tokenizer a PAD token that cannot be part of a text, and returns it; None when there is none.

    For other programs: transformers finds the last token of a row as the last that is not PAD, and would score another
    one if PAD were EOS.

    Tried in this order: the tokenizer's own, unless it is an end token; a token that its makers reserved; a new one
    where the model has more embeddings than the tokenizer has tokens; the one for unknown characters.
    """
    taken = {*ends, *heads(tokenizer)}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return tokenizer
    found = {i: str(t) for i, t in sorted(tokenizer.added_tokens_decoder.items()) if t.special}
    # An id without an embedding would be looked up out of range, where jax silently takes another row.
    spare = [t for i, t in found.items() if i not in taken and i < vocab_size and _SPARE.search(t)]
    # A name with "pad" in it is the likeliest to be meant for this; sorting is stable, so else the lowest id.
    spare.sort(key=lambda token: "pad" not in token.lower())
    unknown = tokenizer.unk_token_id
    if spare:
        tokenizer.pad_token = spare[0]
    elif len(tokenizer) < vocab_size:
        tokenizer.add_special_tokens({"pad_token": _NEW_PAD})
    elif unknown is not None and unknown not in taken:
        tokenizer.pad_token = tokenizer.unk_token
    else:
        return None
    return tokenizer


def _listed(folder: Path) -> list[int]:
    """Reads `eos_token_id` from a model's folder, where it may be a number or a list."""
    path = next((folder / name for name in (_GENERATION, _CONFIG) if (folder / name).is_file()), None)
    if path is None:
        return []
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw.get("eos_token_id")
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: not a JSON object ({' '.join(str(e).split())}); copy it again") from e
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{path}: eos_token_id: {found!r}; use a token id or a list of them")
    # Some configs write -1 for none.
    return [i for i in ids if i >= 0]
