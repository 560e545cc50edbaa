"""Text to token ids: the encoding of demonstrations, pairs and prompts.

Prompt and response are tokenised apart and joined: [BOS] prompt | response EOS. So the prompt's ids are the
same in training and in generation, no token straddles the border, and the mask is a pair of lengths. Special
tokens are added here by id, exactly once; text that merely looks like one ("</s>") is encoded as plain text.
A response that its record says did not end (its sampler ran out of tokens) gets no end token.

With the template `chat` the tokenizer's own chat template writes everything, special tokens too (see `chat`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from rlhf_jax.data.chat import CHAT, Encoded, encode_chat_prompts, encode_chats, prompts_differ
from rlhf_jax.data.handling import Handling
from rlhf_jax.data.limits import CUT_PROMPT, CUT_RESPONSE, DROP, cut_left, fitted
from rlhf_jax.data.messages import messages_of
from rlhf_jax.data.records import describe
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenizer_calls import tokenized
from rlhf_jax.data.tokenizer_files import load_tokenizer as load_tokenizer  # for notebooks
from rlhf_jax.data.turns import PROMPTS_DIFFER
from rlhf_jax.errors import UserError

NO_LIMIT = 2**31 - 1  # As max_length: nothing is cut or dropped for its length.
Row = Mapping[str, Any]
SIDES = ("chosen", "rejected")
_DEFAULTS = Handling()


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


def encode_sft(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Sequences, Counter[str]]:
    """Rows with `output` -> [BOS] prompt, response, EOS of at most `max_length` tokens each, and counts.

    A prompt that leaves no room for a response is dropped. A response that is too long is cut, unless
    `how.too_long` says otherwise, and then has no EOS: the model must not learn to stop in mid-sentence; nor has
    one whose row says `ended` False. All are counted in the second result.
    With the template `chat` every turn of the assistant is trained, and a row is dropped when no trained token
    is left within `max_length`. Raises UserError when no row is left.
    """
    return encode_answers(rows, tokenizer, template, max_length, how)[:2]


def encode_answers(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Sequences, Counter[str], Int64[np.ndarray, "n"]]:
    """As `encode_sft`, with the indices of the rows that are kept."""
    counts: Counter[str] = Counter()
    ended = [_ended(row) for row in rows]
    if template == CHAT:
        chats = [_answered(row, "output") for row in rows]
        found = encode_chats(chats, tokenizer, ended=ended, how=how)
    else:
        prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
        responses = encode_responses([row["output"] for row in rows], ended, tokenizer)
        found = [
            Encoded(np.append(prompt, response), np.arange(len(prompt) + len(response)) >= len(prompt))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    kept, indices = [], []
    for i, (one, whole) in enumerate(zip(found, ended, strict=True)):
        if not _wanted(whole, counts, how):
            continue
        one = (
            one if isinstance(one, str) else _within(one, max_length, how.too_long or CUT_RESPONSE, tokenizer)
        )
        if isinstance(one, str):
            counts[one] += 1
            continue
        counts.update(one.notes)
        kept.append(one)
        indices.append(i)
    _check_some(kept, rows, counts, "max_length", max_length)
    lengths = np.array([_first(one) for one in kept], np.int32)
    several = any(not one.trained[n:].all() for one, n in zip(kept, lengths, strict=True))
    trained = np.concatenate([one.trained for one in kept]) if several else None
    sequences = Sequences(*_flatten([one.ids for one in kept]), lengths, trained)
    return sequences, counts, np.array(indices, np.int64)


def _first(found: Encoded) -> int:
    """Tokens before the first trained one."""
    return int(found.trained.argmax()) if found.trained.any() else len(found.ids)


def _within(found: Encoded, max_length: int, too_long: str, tokenizer: Any) -> Encoded | str:
    """A row cut to max_length, or the reason why it is left out."""
    n = _first(found)
    fit = fitted(found.ids[:n], len(found.ids) - n, max_length, too_long, tokenizer)
    if isinstance(fit, str):
        return fit
    said, mask = found.ids[n:][: fit.room], found.trained[n:][: fit.room]
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    # A turn of the user that the cut left at the end would teach nothing.
    ids = np.concatenate([fit.prompt, said[:last]]).astype(np.int32)
    trained = np.concatenate([np.zeros(len(fit.prompt), bool), mask[:last]])
    return Encoded(ids, trained, (*found.notes, *fit.notes))


def encode_pairs(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Pairs, Counter[str]]:
    """Rows with `chosen` and `rejected` -> two aligned Sequences, both ending with EOS if the response ended.

    A pair is dropped when either side is longer than `max_length`: cutting would compare unequal things, as
    would keeping one side. `how.too_long` may say to cut both sides all the same, as the papers do. Pairs that
    differ only in what the tokenizer cannot see are dropped too. Dropped pairs are counted by reason. Raises
    UserError when none is left.
    """
    counts: Counter[str] = Counter()
    sides = (
        _chat_sides(rows, tokenizer, how, counts) if template == CHAT else _sides(rows, tokenizer, template)
    )
    kept = []
    for row, chosen, rejected in zip(rows, *sides, strict=True):
        if not _wanted(all(_ended(row, side) for side in SIDES), counts, how):
            continue
        if isinstance(chosen, str) or isinstance(rejected, str):
            counts[chosen if isinstance(chosen, str) else rejected] += 1
            continue
        # A token may join a chat's prompt and its response, so the prompts of the sides may differ.
        longest = max(len(response) for _, response in (chosen, rejected))
        fits = [
            fitted(p, longest, max_length, how.too_long or DROP, tokenizer) for p, _ in (chosen, rejected)
        ]
        wrong = next((fit for fit in fits if isinstance(fit, str)), None)
        if wrong is None:
            pair = [(fit.prompt, x[: fit.room]) for fit, (_, x) in zip(fits, (chosen, rejected), strict=True)]
            wrong = "identical tokens" if np.array_equal(pair[0][1], pair[1][1]) else None
        if wrong is not None:
            counts[wrong] += 1
            continue
        counts.update({note for fit in fits for note in fit.notes})
        kept.append(pair)
    _check_some(kept, rows, counts, "max_length", max_length)
    return Pairs(_sequences([pair[0] for pair in kept]), _sequences([pair[1] for pair in kept])), counts


def encode_prompts(
    rows: Sequence[Row], tokenizer: Any, template: str, max_prompt_length: int, how: Handling = _DEFAULTS
) -> tuple[Prompts, Counter[str], Int64[np.ndarray, "n"]]:
    """Rows -> prompts of at most `max_prompt_length` tokens, the counted drops, and the indices of kept rows.

    Longer prompts are dropped, as cutting removes the template's head; with `how.too_long` cut_prompt they lose
    their beginning. Raises UserError when none is left.
    """
    if template == CHAT:
        found = encode_chat_prompts([messages_of(row) for row in rows], tokenizer, how)
        prompts = [x if isinstance(x, str) else x.ids for x in found]
        notes = [() if isinstance(x, str) else x.notes for x in found]
    else:
        prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
        notes = [()] * len(rows)
    kept, counts = [], Counter()
    differ = template == CHAT and prompts_differ(tokenizer, how)
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            counts[prompt] += 1
        elif len(prompt) > max_prompt_length and how.too_long != CUT_PROMPT:
            counts["prompt too long"] += 1
        else:
            if len(prompt) > max_prompt_length:
                counts["prompt cut at its beginning (row kept)"] += 1
                prompts[i] = cut_left(prompt, max_prompt_length, tokenizer)
            counts.update(notes[i])
            kept.append(i)
    if differ and kept:
        counts[PROMPTS_DIFFER] = len(kept)
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


def _sides(rows: Sequence[Row], tokenizer: Any, template: str) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(prompt, response) of every chosen and of every rejected side."""
    prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
    # In one call: an answer that wins one pair and loses another is encoded once.
    texts = [row[side] for side in SIDES for row in rows]
    ended = [_ended(row, side) for side in SIDES for row in rows]
    responses = encode_responses(texts, ended, tokenizer)
    sides = responses[: len(rows)], responses[len(rows) :]
    return [list(zip(prompts, side, strict=True)) for side in sides]


def _chat_sides(
    rows: Sequence[Row], tokenizer: Any, how: Handling, counts: Counter[str]
) -> list[list[tuple[np.ndarray, np.ndarray] | str]]:
    """The same for chats: the response is the last turn alone. Or the reason why a side cannot be used.

    counts: gets what is to be said of the pairs that can, each note once a pair.
    """

    def halves(found: Encoded | str) -> tuple[np.ndarray, np.ndarray] | str:
        return found if isinstance(found, str) else tuple(np.split(found.ids, [found.trained.argmax()]))

    chats = [_answered(row, side) for side in SIDES for row in rows]
    ended = [_ended(row, side) for side in SIDES for row in rows]
    encoded = encode_chats(chats, tokenizer, all_turns=False, ended=ended, how=how)
    for pair in zip(encoded[: len(rows)], encoded[len(rows) :], strict=True):
        if not any(isinstance(side, str) for side in pair):
            counts.update({note for side in pair for note in side.notes})
    found = [halves(x) for x in encoded]
    return [found[: len(rows)], found[len(rows) :]]


def _answered(row: Row, side: str) -> list[dict[str, Any]]:
    """The conversation of a row, its response with what the template may read besides the text."""
    further = row.get(f"{side}_fields") or {}
    return [*messages_of(row), {"role": "assistant", "content": row[side]} | further]


def encode_responses(
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
        long = [reason for reason in counts if "too long" in reason]
        if not long:
            raise UserError(f"none of {len(rows)} rows can be used ({describe(counts)})")
        raise UserError(
            f"{field}: none of {len(rows)} rows fits {limit} tokens ({describe(counts)}); raise it"
        )
