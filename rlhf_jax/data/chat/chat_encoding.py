"""Encodes conversations with the tokenizer's own chat template, with a mask of the tokens that the assistant said.

A conversation is rendered to one string and that string is tokenised once, as a server of the model would do it;
which tokens are trained follows from their character offsets. Trained is all that the model has to say itself: from
the end of the generation prompt (Mistral's template writes a space after it) over the assistant's text to the end
token that the template writes after it.

Where the assistant's texts lie in the string is found by rendering it a second time, see `turns`. What a template
cannot write as it was said costs the row, which is counted.

A row begins with exactly one BOS when the tokenizer has one, whether the template writes none, one, or the tokenizer
would add another. BOS tokens that a template writes between turns (Llama 2) stay where they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from rlhf_jax.data.chat.chat_templates import MARK, kept, opened, said_of, unopened_note
from rlhf_jax.data.chat.turns import (
    END,
    START,
    Chat,
    Span,
    Text,
    as_sampled,
    as_templated,
    prompt_of,
    turn_of,
)
from rlhf_jax.data.records.left_out import RowError
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.tokenizer_files import heads, tokenized

# The name under which a page asks for the tokenizer's own template.
CHAT = "chat"

_DEFAULTS = Handling()


class Encoded(NamedTuple):
    """The tokens of a conversation up to the last trained one, which of them are trained, and remarks to count."""

    ids: Int32[np.ndarray, "T"]
    trained: Bool[np.ndarray, "T"]
    notes: tuple[str, ...] = ()


def encode_chats(
    chats: Sequence[Chat],
    tokenizer: Any,
    *,
    all_turns: bool = True,
    ended: Sequence[bool] | None = None,
    how: Handling = _DEFAULTS,
) -> list[Encoded | str]:
    """Encodes conversations that end with the assistant; in place of one that cannot be used stands the reason.

    all_turns: train every turn of the assistant; otherwise the last one alone.
    ended: whether each conversation's last turn ended by itself; one that did not has no end. None: all did.
    Raises UserError when the tokenizer has no chat template, or one that cannot be trained with.
    """
    turn = turn_of(tokenizer, how)
    specials = _special_tokens(tokenizer)
    rendered: list[Text | str] = []
    ended = [True] * len(chats) if ended is None else ended
    for chat, whole in zip(chats, ended, strict=True):
        try:
            chat = opened(chat) if turn.opens else chat
            _check_text(chat, specials)
            notes, chat = unopened_note(chat, how), kept(chat, how.thoughts)
            write = as_sampled if how.generation_prompt == "sampling" else as_templated
            text = write(chat, tokenizer, turn, all_turns, whole, how)
            rendered.append(text._replace(notes=notes + text.notes))
        except RowError as reason:
            rendered.append(str(reason))
    # All pieces are tokenised in one call, which is fast and handles a repeated
    # text once; `_encoded` then takes from this iterator as many as its row has.
    tokens = iter(
        _tokenize([x for text in rendered if isinstance(text, Text) for x in text.pieces], tokenizer)
    )
    # A template that writes no end would leave the model without a sign to stop, so EOS is added.
    after = () if turn.end else (turn.end_id,)
    return [
        x if isinstance(x, str) else _encoded(x, tokens, tokenizer, after if whole else ())
        for x, whole in zip(rendered, ended, strict=True)
    ]


def encode_chat_prompts(
    chats: Sequence[Chat], tokenizer: Any, how: Handling = _DEFAULTS
) -> list[Encoded | str]:
    """Encodes conversations up to where the assistant is to speak; in place of an unusable one stands the reason."""
    # A tokenizer that cannot be trained with is refused here in the same words.
    turn = turn_of(tokenizer, how)
    specials = _special_tokens(tokenizer)
    rendered: list[tuple[str, tuple[str, ...]] | RowError] = []
    for chat in chats:
        try:
            chat = opened(chat) if turn.opens else chat
            _check_text(chat, specials)
            text, notes = prompt_of(kept(chat, how.thoughts, prompt=True), tokenizer, how)
            rendered.append((text, unopened_note(chat, how) + notes))
        except RowError as reason:
            rendered.append(reason)
    tokens = iter(_tokenize([x[0] for x in rendered if isinstance(x, tuple)], tokenizer))
    return [
        Encoded(*_one_bos(next(tokens)[0], tokenizer), x[1]) if isinstance(x, tuple) else str(x)
        for x in rendered
    ]


def end_of_turn(tokenizer: Any, how: Handling = _DEFAULTS) -> int:
    """Returns the token that the chat template writes behind the assistant's text. UserError as in `encode_chats`."""
    return turn_of(tokenizer, how).end_id


def prompts_differ(tokenizer: Any, how: Handling = _DEFAULTS) -> bool:
    """Whether the template begins a response differently in training and in sampling, and no setting corrects that."""
    return how.generation_prompt == "template" and not turn_of(tokenizer, how).meets


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    # Our own marks are forbidden too: a text that held one would be cut in the wrong place.
    found = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return re.compile("|".join(map(re.escape, sorted(found | {START, END, MARK}))))


def _check_text(chat: Chat, specials: re.Pattern[str]) -> None:
    # The conversation becomes one string, in which a user's "<|im_end|>" would end the turn like the
    # template's own. The tags around thoughts may be special tokens: `said_of` has taken them off.
    for message in chat:
        texts = said_of(message) if message["role"] == "assistant" else (message["content"],)
        calls = (text for call in message.get("tool_calls", ()) for text in call["function"].values())
        if any(specials.search(text) for text in (*texts, *calls, message.get("tools", ""))):
            raise RowError("text holds a special token")


def _tokenize(texts: Sequence[str], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids [T], character offsets [T, 2]) of each text; special tokens are read as such, and none is added."""
    # In `tokenization` a special token within a text is only characters; here the template has written it.
    options = {"split_special_tokens": False, "return_offsets_mapping": True}
    found = {
        text: (
            np.array(row["input_ids"], np.int32),
            np.array(row["offset_mapping"], np.int64).reshape(-1, 2),
        )
        for text, row in tokenized(texts, tokenizer, **options)
    }
    return [found[text] for text in texts]


def _encoded(
    text: Text, tokens: Iterator[tuple[np.ndarray, np.ndarray]], tokenizer: Any, after: tuple[int, ...]
) -> Encoded | str:
    """Joins the tokens of a rendered conversation, or says why it is left out.

    after: ids to end the row with, when the template does not.
    """
    parts = [(next(tokens), spans) for _, spans in zip(text.pieces, text.spans, strict=True)]
    ids = np.concatenate([found[0] for found, _ in parts])
    trained = np.concatenate([_overlapping(found[1], spans) for found, spans in parts])
    ids, trained = _one_bos(ids, tokenizer, trained)
    if not trained.any():
        return "empty response"
    notes = text.notes
    if any(_straddles(offsets, spans) for (_, offsets), spans in parts):
        notes += ("a token joins prompt and response (row kept; data.generation_prompt=sampling parts them)",)
    # What the template writes behind the last trained token, such as a line break, is never sampled.
    length = int(np.flatnonzero(trained)[-1]) + 1
    ids = np.append(ids[:length], np.array(after, np.int32)).astype(np.int32)
    return Encoded(ids, np.append(trained[:length], np.ones(len(after), bool)), notes)


def _straddles(offsets: np.ndarray, spans: list[Span]) -> bool:
    """Whether a token begins before a trained turn and ends in it, as no token of a sampled response could."""
    begin, stop = offsets[:, 0], offsets[:, 1]
    return any(bool(((begin < first) & (stop > first)).any()) for first, _ in spans if first)


def _overlapping(offsets: np.ndarray, spans: list[Span]) -> Bool[np.ndarray, "T"]:
    """True for tokens that hold a character of a span, be it one (a template's space before the text is in it).

    A byte-level tokenizer may leave spaces out of its offsets: a token of nothing but spaces then has no
    width, and what lies between it and the token before is its.
    """
    begin, stop = offsets[:, 0], offsets[:, 1]
    # Where the token before each ends: a running maximum, as one without width may lie anywhere.
    before = np.concatenate([[0], np.maximum.accumulate(stop)[:-1]]) if len(stop) else stop
    begin = np.where(begin < stop, begin, np.minimum(begin, before))
    trained = np.zeros(len(offsets), bool)
    for first, last in spans:
        trained |= (stop > first) & (begin < last) & (begin < stop)
    return trained


def _one_bos(
    ids: np.ndarray, tokenizer: Any, trained: np.ndarray | None = None
) -> tuple[Int32[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """The same tokens with exactly one BOS in front, and beside it the prefix, if the tokenizer has them."""
    trained = np.zeros(len(ids), bool) if trained is None else trained
    front = np.array(heads(tokenizer), np.int32)
    if not len(front):
        return ids, trained
    # Template and tokenizer may each write a BOS, so a row begins with none, one or two; without one nothing is equal.
    others = np.flatnonzero(ids != tokenizer.bos_token_id)
    doubled = int(others[0]) if len(others) else len(ids)
    return np.append(front, ids[doubled:]).astype(np.int32), np.append(front < 0, trained[doubled:])
