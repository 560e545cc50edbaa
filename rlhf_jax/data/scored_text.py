"""Responses as a reward model reads them: with its own tokenizer and template, up to where it reads its score.

A reward model's score stands at one token, and which one that is its makers decided:

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

from rlhf_jax.data.chat import CHAT, encode_chats, end_of_turn
from rlhf_jax.data.chat_templates import render_chat
from rlhf_jax.data.handling import Handling
from rlhf_jax.data.messages import messages_of
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import Sequences, encode_prompt_texts, encode_responses
from rlhf_jax.errors import UserError

EOS, LAST, TEMPLATE = SCORE_AT = ("eos", "last", "template")

Row = Mapping[str, Any]


def default_score_at(template: str) -> str:
    """Of a reward model that does not say where it is read."""
    return TEMPLATE if template == CHAT else EOS


class Closing(NamedTuple):
    """What stands behind a response that ended: the end token, and the ids between it and where the score is read."""

    end: int
    tail: tuple[int, ...] = ()

    def read(self, score_at: str) -> tuple[int, ...]:
        """All that a reward model reads of it."""
        return () if score_at == LAST else (self.end, *self.tail)


def closing(tokenizer: Any, template: str, score_at: str, how: Handling) -> Closing:
    """Raises UserError for a place that cannot be, and as `encode_chats`."""
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
    behind = ids[::-1].index(end) if end in ids else 0
    return Closing(end, tuple(ids[len(ids) - behind :]))


def up_to_score(
    ids: Int32[np.ndarray, "T"], ended: bool, score_at: str, behind: Closing
) -> Int32[np.ndarray, "S"]:
    """Tokens of prompt and response, the end token included where it ended -> those up to the score's."""
    if not ended:
        return ids
    return np.append(ids[:-1], np.array(behind.read(score_at), np.int32)).astype(np.int32)


def sequences_up_to_score(found: Sequences, score_at: str, behind: Closing) -> Sequences:
    """The same of many rows; one that ended is one whose last token is the end token."""
    if behind.read(score_at) == (behind.end,):
        return found
    all_ids = [found[i] for i in range(len(found))]
    rows = [up_to_score(ids, bool(ids[-1] == behind.end), score_at, behind) for ids in all_ids]
    offsets = np.cumsum([0, *map(len, rows)])
    return Sequences(np.concatenate(rows), offsets, found.prompt_lengths)


def encode_scored(
    rows: Several[Row], tokenizer: Any, template: str, score_at: str, behind: Closing, how: Handling
) -> list[Int32[np.ndarray, "T"] | str]:
    """Rows with `output`, and `ended` where that is known -> tokens up to the score's, or why there are none."""
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
