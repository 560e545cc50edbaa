"""Text to token ids: tokenizer loading and the encoding of demonstrations, pairs and prompts.

Prompt and response are tokenised apart and joined: [BOS] prompt | response EOS. So the prompt's ids are the
same in training and in generation, no token straddles the border, and the mask is a pair of lengths. Special
tokens are added here by id, exactly once; text that merely looks like one ("</s>") is encoded as plain text.
A response that its record says did not end (its sampler ran out of tokens) gets no end token.

With the template `chat` the tokenizer's own chat template writes everything, special tokens too (see `chat`).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from rlhf_jax.data.chat import CHAT, Encoded, encode_chat_prompts, encode_chats
from rlhf_jax.data.handling import Handling
from rlhf_jax.data.messages import messages_of
from rlhf_jax.data.records import describe
from rlhf_jax.data.tables import is_hub_name
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenizer_calls import tokenized
from rlhf_jax.errors import UserError

NO_LIMIT = 2**31 - 1  # As max_length: nothing is cut or dropped for its length.
Row = Mapping[str, Any]
SIDES = ("chosen", "rejected")
_DEFAULTS = Handling()
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)


@dataclass(frozen=True)
class Prompts:
    """n ragged prompts: prompt i is tokens[offsets[i]:offsets[i+1]], so there are n + 1 offsets."""

    tokens: Int32[np.ndarray, "N"]
    offsets: Int64[np.ndarray, "M"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int | np.integer) -> Int32[np.ndarray, "T"]:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> Int32[np.ndarray, "n"]:
        """Tokens in each."""
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class Sequences(Prompts):
    """Ragged prompt + response sequences; the first prompt_lengths[i] tokens of sequence i are its prompt.

    trained: which tokens are, where those after the prompt are not all trained (conversations of several turns,
        whose prompt ends where the assistant's first turn begins); None: all after the prompt.
    """

    prompt_lengths: Int32[np.ndarray, "n"]
    trained: Bool[np.ndarray, "N"] | None = None

    def select(self, rows: Int64[np.ndarray, "k"]) -> "Sequences":
        """These rows alone, in this order."""
        tokens, offsets = _flatten([self[i] for i in rows])
        trained = self.trained
        if trained is not None:
            trained = np.concatenate([trained[self.offsets[i] : self.offsets[i + 1]] for i in rows])
        return Sequences(tokens, offsets, self.prompt_lengths[rows], trained)


class Pairs(NamedTuple):
    """Preference pairs: row i of both are answers to the same prompt."""

    chosen: Sequences
    rejected: Sequences

    def __len__(self) -> int:
        return len(self.chosen)


def load_tokenizer(path: str | Path, *, made_by: str = "") -> Any:
    """Loads a Hugging Face tokenizer from a folder (or a hub name) and checks that it can be trained with.

    It must have an EOS token. It need not have a PAD token, and that may be EOS: masks come from lengths. Nothing
    is added silently. made_by: the command that makes a missing folder. Raises UserError.
    """
    tokenizer = _read_tokenizer(path, made_by)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer: {path} has no EOS token, so responses could not end; set tokenizer.eos_token and "
            "save it to a new folder with save_pretrained"
        )
    return tokenizer


def add_pad(source: str | Path, token: str, folder: Path, *, made_by: str = "") -> bool:
    """Writes the tokenizer of `source` with the PAD token `token` to `folder`; False when it has a PAD already.

    A PAD that is the EOS token counts as none. The other tokens keep their ids. Errors as `load_tokenizer`.
    """
    tokenizer = _read_tokenizer(source, made_by)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.save_pretrained(str(folder))
    return True


def _read_tokenizer(path: str | Path, made_by: str) -> Any:
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"tokenizer: {path} holds no tokenizer (no tokenizer.json); {_made_by(made_by)}")
    if not folder.exists() and not is_hub_name(str(path)):
        raise UserError(f"tokenizer: {path} does not exist; {_made_by(made_by)}")
    # transformers would ask for torch, which we never use
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as e:  # transformers raises many kinds, down to bare Exception from its Rust core
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"tokenizer: {path} could not be loaded ({reason}); {_made_by(made_by)}") from e


def _made_by(made_by: str) -> str:
    return f"make it with: {made_by}" if made_by else "give a folder saved with save_pretrained"


def encode_sft(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Sequences, Counter[str]]:
    """Rows with `output` -> [BOS] prompt, response, EOS of at most `max_length` tokens each.

    A prompt that leaves no room for a response is dropped. A response that is too long is cut, and then has
    no EOS: the model must not learn to stop in mid-sentence; nor has one whose row says `ended` False.
    All are counted in the second result.
    With the template `chat` every turn of the assistant is trained, and a row is dropped when no trained token
    is left within `max_length`. Raises UserError when no row is left.
    """
    if template == CHAT:
        return _encode_sft_chats(rows, tokenizer, max_length, how)
    counts: Counter[str] = Counter()
    prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
    ended = [_ended(row) for row in rows]
    responses = _encode_responses([row["output"] for row in rows], ended, tokenizer)
    kept = []
    for prompt, response, whole in zip(prompts, responses, ended, strict=True):
        if not _wanted(whole, counts, how):
            continue
        if len(prompt) >= max_length:
            counts["prompt too long"] += 1
            continue
        if len(prompt) + len(response) > max_length:
            counts["response cut (row kept)"] += 1
        kept.append((prompt, response[: max_length - len(prompt)]))
    _check_some(kept, rows, counts, "max_length", max_length)
    return _sequences(kept), counts


def encode_pairs(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Pairs, Counter[str]]:
    """Rows with `chosen` and `rejected` -> two aligned Sequences, both ending with EOS if the response ended.

    A pair is dropped when either side is longer than `max_length`: cutting would compare unequal things, as
    would keeping one side. Pairs that differ only in what the tokenizer cannot see are dropped too. Dropped
    pairs are counted by reason. Raises UserError when none is left.
    """
    counts: Counter[str] = Counter()
    sides = _chat_sides(rows, tokenizer) if template == CHAT else _sides(rows, tokenizer, template)
    kept = []
    for row, chosen, rejected in zip(rows, *sides, strict=True):
        if not _wanted(all(_ended(row, side) for side in SIDES), counts, how):
            continue
        if isinstance(chosen, str) or isinstance(rejected, str):
            counts[chosen if isinstance(chosen, str) else rejected] += 1
            continue
        (prompt, good), (same, bad) = chosen, rejected  # a token may join a chat's prompt and its response
        if max(len(prompt), len(same)) >= max_length:
            counts["prompt too long"] += 1
        elif max(len(prompt) + len(good), len(same) + len(bad)) > max_length:
            counts["response too long"] += 1
        elif np.array_equal(good, bad):
            counts["identical tokens"] += 1
        else:
            kept.append((chosen, rejected))
    _check_some(kept, rows, counts, "max_length", max_length)
    return Pairs(_sequences([pair[0] for pair in kept]), _sequences([pair[1] for pair in kept])), counts


def encode_prompts(
    rows: Sequence[Row], tokenizer: Any, template: str, max_prompt_length: int, how: Handling = _DEFAULTS
) -> tuple[Prompts, Counter[str], Int64[np.ndarray, "n"]]:
    """Rows -> prompts of at most `max_prompt_length` tokens, the counted drops, and the indices of kept rows.

    Longer prompts are dropped, not cut: cutting would remove the template's head or tail.
    Raises UserError when none is left.
    """
    if template == CHAT:
        prompts = encode_chat_prompts([messages_of(row) for row in rows], tokenizer)
    else:
        prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
    kept, counts = [], Counter()
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            counts[prompt] += 1
        elif len(prompt) > max_prompt_length:
            counts["prompt too long"] += 1
        else:
            kept.append(i)
    _check_some(kept, rows, counts, "max_prompt_length", max_prompt_length)
    return Prompts(*_flatten([prompts[i] for i in kept])), counts, np.array(kept, np.int64)


def encode_prompt_texts(texts: Sequence[str], tokenizer: Any) -> list[Int32[np.ndarray, "P"]]:
    """Rendered prompts -> ids, with one BOS in front when the tokenizer has one. Of all templates but `chat`.

    Equal texts share one array.
    """
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return _encode(texts, tokenizer, before=bos)


def decode(tokenizer: Any, ids: Sequence[int] | Integer[np.ndarray, "R"]) -> str:
    """The text of response ids, special tokens left out. Cut pads off by length before."""
    ids = [int(i) for i in ids]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ended(row: Row, side: str = "") -> bool:
    """Whether the response ended by itself; one of which nothing is said did."""
    return row.get(f"{side}_ended" if side else "ended") is not False


def _wanted(ended: bool, counts: Counter[str], how: Handling) -> bool:
    """Whether a row is kept, as far as the ends of its responses go; one that did not end is counted."""
    if ended:
        return True
    keep = how.not_ended == "keep"
    counts[f"response did not end{' (row kept, no end token)' if keep else ''}"] += 1
    return keep


def _encode_sft_chats(
    rows: Sequence[Row], tokenizer: Any, max_length: int, how: Handling
) -> tuple[Sequences, Counter[str]]:
    counts: Counter[str] = Counter()
    kept: list[Encoded] = []
    ended = [_ended(row) for row in rows]
    chats = [_answered(row, "output") for row in rows]
    for found, whole in zip(encode_chats(chats, tokenizer, ended=ended), ended, strict=True):
        if not _wanted(whole, counts, how):
            continue
        if isinstance(found, str):
            counts[found] += 1
            continue
        trained = np.flatnonzero(found.trained[:max_length])
        if not len(trained):
            counts["prompt too long"] += 1
            continue
        if len(found.ids) > max_length:
            counts["response cut (row kept)"] += 1
        length = trained[-1] + 1  # a turn of the user that the cut left at the end would teach nothing
        kept.append(Encoded(found.ids[:length], found.trained[:length]))
    _check_some(kept, rows, counts, "max_length", max_length)
    prompt_lengths = np.array([found.trained.argmax() for found in kept], np.int32)
    several = any(not found.trained[n:].all() for found, n in zip(kept, prompt_lengths, strict=True))
    trained = np.concatenate([found.trained for found in kept]) if several else None
    return Sequences(*_flatten([found.ids for found in kept]), prompt_lengths, trained), counts


def _sides(rows: Sequence[Row], tokenizer: Any, template: str) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(prompt, response) of every chosen and of every rejected side."""
    prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
    # In one call: an answer that wins one pair and loses another is encoded once.
    texts = [row[side] for side in SIDES for row in rows]
    ended = [_ended(row, side) for side in SIDES for row in rows]
    responses = _encode_responses(texts, ended, tokenizer)
    sides = responses[: len(rows)], responses[len(rows) :]
    return [list(zip(prompts, side, strict=True)) for side in sides]


def _chat_sides(rows: Sequence[Row], tokenizer: Any) -> list[list[tuple[np.ndarray, np.ndarray] | str]]:
    """The same for chats: the response is the last turn alone. Or the reason why a side cannot be used."""

    def halves(found: Encoded | str) -> tuple[np.ndarray, np.ndarray] | str:
        return found if isinstance(found, str) else tuple(np.split(found.ids, [found.trained.argmax()]))

    chats = [_answered(row, side) for side in SIDES for row in rows]
    ended = [_ended(row, side) for side in SIDES for row in rows]
    found = [halves(x) for x in encode_chats(chats, tokenizer, all_turns=False, ended=ended)]
    return [found[: len(rows)], found[len(rows) :]]


def _answered(row: Row, side: str) -> list[dict[str, Any]]:
    """The conversation of a row, its response with what the template may read besides the text."""
    further = row.get(f"{side}_fields") or {}
    return [*messages_of(row), {"role": "assistant", "content": row[side]} | further]


def _encode_responses(
    texts: Sequence[str], ended: Sequence[bool], tokenizer: Any
) -> list[Int32[np.ndarray, "R"]]:
    """Texts -> ids, with EOS behind those that ended."""
    found = _encode(texts, tokenizer, after=(tokenizer.eos_token_id,))  # an id of 0 is as good as any
    return [ids if whole else ids[:-1] for ids, whole in zip(found, ended, strict=True)]


def _encode(
    texts: Sequence[str], tokenizer: Any, before: tuple[int, ...] = (), after: tuple[int, ...] = ()
) -> list[Int32[np.ndarray, "T"]]:
    ids_of = {
        text: np.array([*before, *found["input_ids"], *after], np.int32)
        for text, found in tokenized(texts, tokenizer, split_special_tokens=True)
    }
    return [ids_of[text] for text in texts]


def _sequences(kept: Sequence[tuple[np.ndarray, np.ndarray]]) -> Sequences:
    prompt_lengths = np.array([len(prompt) for prompt, _ in kept], np.int32)
    return Sequences(*_flatten([np.concatenate(pair) for pair in kept]), prompt_lengths)


def _flatten(rows: Sequence[np.ndarray]) -> tuple[Int32[np.ndarray, "N"], Int64[np.ndarray, "M"]]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate(rows), offsets


def _check_some(kept: Sequence, rows: Sequence, counts: Counter[str], field: str, limit: int) -> None:
    if not kept:
        raise UserError(
            f"{field}: none of {len(rows)} rows fits {limit} tokens ({describe(counts)}); raise it"
        )
