"""Encodes responses as a reward model reads them: with its own tokenizer and template, up to the token of its score.

A reward model reads its score at one token; which one, its makers decided:

    eos       the end-of-sequence token behind the response; what `reward_model` trains
    last      the last token of the response itself, with no end token behind it (AlpacaFarm)
    template  the last token of all that the chat template writes, a line break behind the end token for example; what
              sequence classifiers of transformers read where they are given whole conversations

A response that did not end by itself has no end to stand behind: its score is read at its last token.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from rlhf_jax.data.batches import Sequences
from rlhf_jax.data.chat.chat_encoding import CHAT, encode_chats, end_of_turn
from rlhf_jax.data.chat.chat_templates import render_chat
from rlhf_jax.data.records.messages import messages_of
from rlhf_jax.data.templates import Handling, render
from rlhf_jax.data.tokenization import encode_prompt_texts, encode_responses
from rlhf_jax.errors import UserError

EOS, LAST, TEMPLATE = SCORE_AT = ("eos", "last", "template")

Row = Mapping[str, Any]


def default_score_at(template: str) -> str:
    """Returns where a reward model is read that does not say it itself."""
    return TEMPLATE if template == CHAT else EOS


class Closing(NamedTuple):
    """What stands behind a response that ended: the end token, and the ids between it and where the score is read."""

    end: int
    tail: tuple[int, ...] = ()

    def read(self, score_at: str) -> tuple[int, ...]:
        """Returns the ids behind a response that a reward model reads."""
        return () if score_at == LAST else (self.end, *self.tail)


def closing(tokenizer: Any, template: str, score_at: str, how: Handling) -> Closing:
    """Finds what stands behind a response that ended. UserError for a place that cannot be, and as `encode_chats`."""
    if score_at not in SCORE_AT:
        raise UserError(f"model.score_at: {score_at!r}; use one of {', '.join(SCORE_AT)}")
    if template != CHAT:
        if score_at == TEMPLATE:
            raise UserError(
                f"model.score_at: template is for the template chat, but this one is {template}; use eos or last"
            )
        return Closing(tokenizer.eos_token_id)
    end = end_of_turn(tokenizer, how)
    if score_at != TEMPLATE:
        return Closing(end)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    ids = tokenizer(render_chat(chat, tokenizer, how), add_special_tokens=False)["input_ids"]
    # Counted from the right, since the template may end the user's turns with the same token.
    behind = ids[::-1].index(end) if end in ids else 0
    return Closing(end, tuple(ids[len(ids) - behind :]))


def up_to_score(
    ids: Int32[np.ndarray, "T"], ended: bool, score_at: str, behind: Closing
) -> Int32[np.ndarray, "S"]:
    """Cuts or extends the tokens of a prompt and response (its end token included) so that the score's is the last."""
    if not ended:
        return ids
    return np.append(ids[:-1], np.array(behind.read(score_at), np.int32)).astype(np.int32)


def sequences_up_to_score(found: Sequences, score_at: str, behind: Closing) -> Sequences:
    """Does the same for many rows; a row has ended if its last token is the end token."""
    # With the score at the end token itself, as most have it, the rows are right as they are.
    if behind.read(score_at) == (behind.end,):
        return found
    all_ids = [found[i] for i in range(len(found))]
    rows = [up_to_score(ids, bool(ids[-1] == behind.end), score_at, behind) for ids in all_ids]
    offsets = np.cumsum([0, *map(len, rows)])
    return Sequences(np.concatenate(rows), offsets, found.prompt_lengths)


def encode_scored(
    rows: Several[Row], tokenizer: Any, template: str, score_at: str, behind: Closing, how: Handling
) -> list[Int32[np.ndarray, "T"] | str]:
    """Encodes rows with `output` (and `ended`, where that is known) up to the score's token; else says why not."""
    ended = [row.get("ended") is not False for row in rows]
    texts = [row["output"] for row in rows]
    found: Several[np.ndarray | str]
    if template == CHAT:
        chats = [
            [*messages_of(row), {"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        encoded = encode_chats(chats, tokenizer, all_turns=False, ended=ended, how=how)
        found = [x if isinstance(x, str) else x.ids for x in encoded]
    else:
        prompts = encode_prompt_texts([render(row, template) for row in rows], tokenizer)
        responses = encode_responses(texts, ended, tokenizer)
        found = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
    return [
        x if isinstance(x, str) else up_to_score(x, whole, score_at, behind)
        for x, whole in zip(found, ended, strict=True)
    ]
