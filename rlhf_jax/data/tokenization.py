"""Encodes demonstrations, pairs and prompts as token ids.

Prompt and response are tokenised apart and joined: [BOS] [prefix] prompt | response EOS. So the prompt's ids are the
same in training and in generation, no token straddles the border, and the mask is a pair of lengths. Special
tokens are added here by id, exactly once; text that merely looks like one ("</s>") is encoded as plain text.
The prefix is what the tokenizer says belongs in front of every prompt (see `tokens.tokenizer_files`); few have one.
A response that its record says did not end (its sampler ran out of tokens) gets no end token.

With the template `chat` the tokenizer's own chat template writes everything, special tokens too (see
`chat.chat_encoding`). Reading files is not done here, see `records`; nor is padding, see `batches`.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from rlhf_jax.data.batches import Pairs, Prompts, Sequences, flattened
from rlhf_jax.data.chat.chat_encoding import (
    CHAT,
    Encoded,
    encode_chat_prompts,
    encode_chats,
    encoded_chats,
    prompts_differ,
)
from rlhf_jax.data.chat.turns import PROMPTS_DIFFER
from rlhf_jax.data.records.messages import messages_of
from rlhf_jax.data.records.records import counts_text
from rlhf_jax.data.templates import Handling, render
from rlhf_jax.data.tokens.text_batches import ahead, in_batches, token_lists
from rlhf_jax.data.tokens.tokenizer_files import heads, prefix_text
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer as load_tokenizer  # for notebooks
from rlhf_jax.errors import UserError

# As max_length: nothing is cut or dropped for its length.
NO_LIMIT = 2**31 - 1
Row = Mapping[str, Any]
SIDES = ("chosen", "rejected")
_DEFAULTS = Handling()


class Ragged:
    """Token rows that are put end to end as they come, so that no list of many small arrays is kept."""

    def __init__(self) -> None:
        self._tokens, self._trained, self._offsets = array("i"), bytearray(), array("q", [0])

    def add(self, ids: Int32[np.ndarray, " T"], trained: Bool[np.ndarray, " T"]) -> None:
        """Appends a row."""
        self._tokens.frombytes(ids.tobytes())
        self._trained += trained.tobytes()
        self._offsets.append(len(self._tokens))

    def arrays(self) -> tuple[Int32[np.ndarray, " N"], Int64[np.ndarray, " M"], Bool[np.ndarray, " N"]]:
        """All tokens, the offset at which each row begins and one for the end, and which tokens are trained."""
        made = ((self._tokens, np.int32), (self._offsets, np.int64), (self._trained, np.bool_))
        return tuple(np.frombuffer(x, dtype) for x, dtype in made)


def encode_sft(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Sequences, Counter[str]]:
    """Encodes demonstrations, rows with `output`, as [BOS] prompt response EOS of at most `max_length` tokens each.

    A prompt that leaves no room for a response is dropped. A response that is too long is cut, unless
    `how.too_long` says otherwise, and then has no EOS: the model must not learn to stop in mid-sentence; nor has
    one whose row says `ended` False. All are counted by reason in the second result.
    With the template `chat` every turn of the assistant is trained, and a row is dropped when no trained token
    is left within `max_length`. Raises UserError when no row is left.
    """
    return encode_answers(rows, tokenizer, template, max_length, how)[:2]


def encode_answers(
    rows: Sequence[Row],
    tokenizer: Any,
    template: str,
    max_length: int,
    how: Handling = _DEFAULTS,
    *,
    all_turns: bool = True,
) -> tuple[Sequences, Counter[str], Int64[np.ndarray, "n"]]:
    """Encodes as `encode_sft` does, and also returns the indices of the rows that are kept.

    all_turns: of conversations, whether the assistant's earlier turns are trained, or its last one alone.
    """
    counts: Counter[str] = Counter()
    found = (
        _conversations(rows, tokenizer, how, all_turns=all_turns)
        if template == CHAT
        else _answers(rows, tokenizer, template)
    )
    kept, lengths, indices = Ragged(), array("i"), array("q")
    for i, (row, one) in enumerate(zip(rows, found, strict=True)):
        # Asked first, so that a row that is not wanted anyway is not counted as too long as well.
        if not _wanted(_ended(row), counts, how):
            continue
        if not isinstance(one, str) and len(one.ids) > max_length:
            one = _within(one, max_length, how.too_long or CUT_RESPONSE, tokenizer)
        if isinstance(one, str):
            counts[one] += 1
            continue
        counts.update(one.notes)
        kept.add(one.ids, one.trained)
        lengths.append(_first(one))
        indices.append(i)
    _check_some(len(indices), rows, counts, "max_length", max_length, tokenizer)
    tokens, offsets, trained = kept.arrays()
    lengths_n = np.array(lengths, np.int32)
    # Where all tokens after the prompts are trained, the prompt lengths say it all; no mask is carried.
    several = int(trained.sum()) < int((np.diff(offsets) - lengths_n).sum())
    sequences = Sequences(tokens, offsets, lengths_n, trained if several else None)
    return sequences, counts, np.array(indices, np.int64)


def _conversations(
    rows: Sequence[Row], tokenizer: Any, how: Handling, *, all_turns: bool
) -> Iterator[Encoded | str]:
    chats, ended = (_answered(row, "output") for row in rows), (_ended(row) for row in rows)
    return encoded_chats(chats, tokenizer, all_turns=all_turns, ended=ended, how=how)


def _answers(rows: Sequence[Row], tokenizer: Any, template: str) -> Iterator[Encoded]:
    """The same for the other templates."""

    def tokenize(job: tuple[list[Row], list[str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batch, texts = job
        responses = encode_responses(
            [row["output"] for row in batch], [_ended(row) for row in batch], tokenizer
        )
        return zip(encode_prompt_texts(texts, tokenizer), responses, strict=True)

    batches = ((batch, [render(row, template) for row in batch]) for batch in in_batches(rows))
    for prompt, response in chain.from_iterable(ahead(tokenize, batches)):
        ids = np.concatenate([prompt, response])
        yield Encoded(ids, np.arange(len(ids)) >= len(prompt))


def _first(found: Encoded) -> int:
    """The number of tokens before the first trained one; all of them where none is trained."""
    first = int(found.trained.argmax()) if len(found.ids) else 0
    return first if len(found.ids) and found.trained[first] else len(found.ids)


def _within(found: Encoded, max_length: int, too_long: str, tokenizer: Any) -> Encoded | str:
    """A row cut to max_length, or the reason why it is left out."""
    n = _first(found)
    fit = fitted(found.ids[:n], len(found.ids) - n, max_length, too_long, tokenizer)
    if isinstance(fit, str):
        return fit
    said, mask = found.ids[n:][: fit.room], found.trained[n:][: fit.room]
    # Behind the last trained token the cut may have left a turn of the user, which would teach nothing.
    last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    ids = np.concatenate([fit.prompt, said[:last]]).astype(np.int32)
    trained = np.concatenate([np.zeros(len(fit.prompt), bool), mask[:last]])
    return Encoded(ids, trained, (*found.notes, *fit.notes))


def encode_pairs(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Pairs, Counter[str]]:
    """Encodes pairs, rows with `chosen` and `rejected`, as two aligned Sequences; a response that ended has EOS.

    A pair is dropped when either side is longer than `max_length`: cutting would compare unequal things, as
    would keeping one side. `how.too_long` may say to cut both sides all the same, as the papers do. Pairs that
    differ only in what the tokenizer cannot see are dropped too. Dropped pairs are counted by reason. Raises
    UserError when none is left.
    """
    return encode_labelled_pairs(rows, tokenizer, template, max_length, how)[:2]


def encode_labelled_pairs(
    rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, how: Handling = _DEFAULTS
) -> tuple[Pairs, Counter[str], Int64[np.ndarray, "n"]]:
    """Encodes as `encode_pairs` does, and also returns the indices of the rows that are kept."""
    counts: Counter[str] = Counter()
    sides = (
        _chat_sides(rows, tokenizer, how, counts) if template == CHAT else _sides(rows, tokenizer, template)
    )
    kept, indices = [], []
    for i, (row, chosen, rejected) in enumerate(zip(rows, *sides, strict=True)):
        if not _wanted(all(_ended(row, side) for side in SIDES), counts, how):
            continue
        if isinstance(chosen, str) or isinstance(rejected, str):
            counts[chosen if isinstance(chosen, str) else rejected] += 1
            continue
        # Both prompts are fitted to the longer response, as in the original DPO
        # code, so that both lose the same tokens. They are two prompts, since a
        # token may join a chat's prompt and the beginning of its response.
        longest = max(len(response) for _, response in (chosen, rejected))
        fits = [
            fitted(p, longest, max_length, how.too_long or DROP, tokenizer) for p, _ in (chosen, rejected)
        ]
        wrong = next((fit for fit in fits if isinstance(fit, str)), None)
        if wrong is None:
            pair = [(fit.prompt, x[: fit.room]) for fit, (_, x) in zip(fits, (chosen, rejected), strict=True)]
            # Texts may differ in what the tokenizer normalises or cuts off; equal tokens have no gradient.
            wrong = "identical tokens" if np.array_equal(pair[0][1], pair[1][1]) else None
        if wrong is not None:
            counts[wrong] += 1
            continue
        # A set: what happened to both sides is counted once for the pair.
        counts.update({note for fit in fits for note in fit.notes})
        kept.append(pair)
        indices.append(i)
    _check_some(len(kept), rows, counts, "max_length", max_length, tokenizer)
    pairs = Pairs(_sequences([pair[0] for pair in kept]), _sequences([pair[1] for pair in kept]))
    return pairs, counts, np.array(indices, np.int64)


def encode_prompts(
    rows: Sequence[Row], tokenizer: Any, template: str, max_prompt_length: int, how: Handling = _DEFAULTS
) -> tuple[Prompts, Counter[str], Int64[np.ndarray, "n"]]:
    """Encodes prompts of at most `max_prompt_length` tokens: (prompts, counted drops, indices of the kept rows).

    Longer prompts are dropped, as cutting removes the template's head; with `how.too_long` cut_prompt they lose
    their beginning. Raises UserError when none is left.
    """
    if template == CHAT:
        found = list(encode_chat_prompts(map(messages_of, rows), tokenizer, how))
        prompts = [x if isinstance(x, str) else x.ids for x in found]
        notes = [() if isinstance(x, str) else x.notes for x in found]
    else:
        prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
        notes = [()] * len(rows)
    # Cut to its BOS and prefix a prompt would ask nothing.
    if max_prompt_length <= len(heads(tokenizer)):
        raise UserError(
            f"max_prompt_length: {max_prompt_length}; what stands in front of every prompt takes "
            f"{len(heads(tokenizer))} of them; use more"
        )
    kept, counts = [], Counter()
    # This is a property of the template, so it is found once and counted for every row.
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
    _check_some(len(kept), rows, counts, "max_prompt_length", max_prompt_length, tokenizer)
    return Prompts(*flattened([prompts[i] for i in kept])), counts, np.array(kept, np.int64)


def encode_prompt_texts(texts: Sequence[str], tokenizer: Any) -> list[Int32[np.ndarray, "P"]]:
    """Encodes rendered prompts, with BOS and prefix in front when the tokenizer has them; for all templates but `chat`.

    Equal texts share one array, so callers must not write into them.
    """
    return token_lists(texts, tokenizer, before=heads(tokenizer))


def decode(tokenizer: Any, ids: Sequence[int] | Integer[np.ndarray, "R"]) -> str:
    """Decodes the ids of a response, special tokens left out. Padding has to be cut off by length before."""
    # The Rust tokenizers want Python's integers. Without
    # clean_up_tokenization_spaces=False transformers removes spaces before punctuation
    # for some tokenizers, and the text would encode to other tokens than were sampled.
    ids = [int(i) for i in ids]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ended(row: Row, side: str = "") -> bool:
    """Whether the response ended by itself, as one does whose row says nothing about it."""
    return row.get(f"{side}_ended" if side else "ended") is not False


def _wanted(ended: bool, counts: Counter[str], how: Handling) -> bool:
    """Whether a row is kept, as far as the ends of its responses go; one that did not end is counted."""
    if ended:
        return True
    keep = how.not_ended == "keep"
    counts[f"response did not end{' (row kept, no end token)' if keep else ''}"] += 1
    return keep


def _sides(rows: Sequence[Row], tokenizer: Any, template: str) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Encodes both sides of all pairs: a list of (prompt, response) for chosen and one for rejected."""
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

    # Only the last turn is marked as trained here, so the first trained token is where the response begins.
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
    """Encodes responses, with EOS behind those that ended."""
    # All get an EOS first, so that a text is encoded once whether it ended
    # or not. The id is never tested for truth: in some tokenizers EOS is 0.
    found = token_lists(texts, tokenizer, after=(tokenizer.eos_token_id,))
    return [ids if whole else ids[:-1] for ids, whole in zip(found, ended, strict=True)]


def _sequences(kept: Sequence[tuple[np.ndarray, np.ndarray]]) -> Sequences:
    prompt_lengths = np.array([len(prompt) for prompt, _ in kept], np.int32)
    return Sequences(*flattened([np.concatenate(pair) for pair in kept]), prompt_lengths)


def _check_some(
    kept: int, rows: Sequence, counts: Counter[str], field: str, limit: int, tokenizer: Any
) -> None:
    """Raises UserError where no row is left; adds the remark that a prefix stands in front of those that are."""
    if kept and (prefix := prefix_text(tokenizer)):
        counts[f"{prefix!r} in front of the prompt, as the tokenizer says (row kept)"] = kept
    if not kept:
        # The limit is only worth raising where rows were too long.
        long = [reason for reason in counts if "too long" in reason]
        if not long:
            raise UserError(f"none of {len(rows)} rows can be used ({counts_text(counts)})")
        raise UserError(
            f"{field}: none of {len(rows)} rows fits {limit} tokens ({counts_text(counts)}); raise it"
        )


# Rows of more tokens than fit: they are left out or cut, and either is counted.

DROP, CUT_RESPONSE, CUT_PROMPT = "drop", "cut_response", "cut_prompt"


class Fit(NamedTuple):
    """A prompt that fits, how many tokens of a response fit behind it, and what was done to either."""

    prompt: Int32[np.ndarray, " P"]
    room: int
    notes: tuple[str, ...] = ()


def fitted(
    prompt: Int32[np.ndarray, " P"], response: int, max_length: int, too_long: str, tokenizer: Any
) -> Fit | str:
    """Fits a prompt and a response of so many tokens into max_length, or says why the row is left out.

    cut_prompt leaves of the prompt its last tokens, half of max_length (dpo-rlaif's 256 of 512); after that, as
    cut_response does at once, the response loses what is still too long. A response that is cut has no end token.
    """
    if len(prompt) + response <= max_length:
        return Fit(prompt, max_length - len(prompt))
    notes: tuple[str, ...] = ()
    if too_long == CUT_PROMPT and len(prompt) > max(max_length // 2, 1):
        prompt = cut_left(prompt, max(max_length // 2, 1), tokenizer)
        notes = ("prompt cut at its beginning (row kept)",)
    # A prompt that leaves no room for even one token of the response would train nothing.
    if len(prompt) >= max_length:
        return "prompt too long"
    if len(prompt) + response <= max_length:
        return Fit(prompt, max_length - len(prompt), notes)
    if too_long == DROP:
        return "response too long"
    return Fit(prompt, max_length - len(prompt), (*notes, "response cut (row kept)"))


def cut_left(prompt: Int32[np.ndarray, " P"], length: int, tokenizer: Any) -> Int32[np.ndarray, " L"]:
    """Cuts a prompt to `length` tokens, its last ones and, which models expect in front, its BOS and prefix."""
    before = np.array(heads(tokenizer), np.int32)
    begins = prompt[: len(before)] if np.array_equal(prompt[: len(before)], before) else prompt[:0]
    kept = prompt[len(prompt) - max(length - len(begins), 0) :] if length > len(begins) else prompt[:0]
    return np.concatenate([begins, kept])
