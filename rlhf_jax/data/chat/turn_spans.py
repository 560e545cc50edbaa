"""Cuts rendered texts at marks around the assistant's turns, and says which characters of them are trained."""

import re
from collections.abc import Callable
from typing import NamedTuple

from rlhf_jax.data.chat.chat_templates import FIELDS, Chat, said_of, written
from rlhf_jax.data.records.messages import ChatMessage
from rlhf_jax.data.templates import Handling

Span = tuple[int, int]

# Noncharacters, which Unicode reserves for internal use, so no text should hold them.
START, END = "\ufdd0", "\ufdd1"
MARKS = re.compile(f"[{START}{END}]")
# A template that trims its texts does not trim the space between a mark and the text. So the text is trimmed
# before the marks are put around it, in whichever of these ways gives the same text.
_TRIMS = (str, str.strip, str.rstrip, str.lstrip)


class ChatTurn(NamedTuple):
    """What a template writes around an assistant's text.

    Attributes:
      opening: what it writes to have the assistant speak, "" when nothing.
      lead: what it writes between that and the text: " ", for example.
      end: what it writes behind the text, "" when nothing.
      end_id: the token that the end ends with, or else EOS.
      meets: whether training text goes on where a prompt for sampling ends.
      opens: whether the prompt for sampling opens the thoughts, where they are wanted.
    """

    opening: str
    lead: str
    end: str
    end_id: int
    meets: bool
    opens: bool


def marked_pieces(
    plain: Chat, turns: dict[int, ChatMessage], form: str, text: str, render: Callable[[Chat], str]
) -> list[str] | None:
    """Cuts the text so that every second piece is what these turns say; None where the template writes it otherwise.

    plain: the conversation that the text is of. turns: by number, as the record has them.
    """
    parts = [1 + (form == FIELDS and bool(said_of(turn).thoughts)) for turn in turns.values()]
    for trim in _TRIMS:
        marks = {i: written(turn, form, (START, END), trim) for i, turn in turns.items()}
        pieces = MARKS.split(render([marks.get(i, message) for i, message in enumerate(plain)]))
        if len(pieces) == 2 * sum(parts) + 1 and "".join(pieces) == text:
            return _merged(pieces, parts)
    return None


def _merged(pieces: list[str], parts: list[int]) -> list[str]:
    """Joins the thoughts of a turn, what the template writes after them, and the answer into one piece.

    The model has to write the closing tag in between, too, so it is trained like the rest.
    """
    merged, at = [pieces[0]], 1
    for count in parts:
        stop = at + 2 * count - 1
        merged += ["".join(pieces[at:stop]), pieces[stop]]
        at = stop + 1
    return merged


def spans_of(pieces: list[str], turn: ChatTurn, how: Handling, ended: bool) -> list[Span]:
    """Finds where the trained turns lie; every second of `pieces` is what the assistant says.

    ended: whether the last of them has an end.
    """
    spans, at = [], 0
    for before, said, after in zip(pieces[:-1:2], pieces[1::2], pieces[2::2], strict=True):
        start = at + len(before)
        stop = start + len(said)
        # With that setting the lead is part of the prompt, so the model never has to write it.
        lead = 0 if how.generation_prompt == "training" else _lead(before, turn)
        spans.append((start - lead, stop + len(turn.end) if after.startswith(turn.end) else stop))
        at = stop
    # The end that the template writes was never sampled in a response that its sampler cut.
    return spans if ended else [*spans[:-1], (spans[-1][0], at)]


def _lead(before: str, turn: ChatTurn) -> int:
    """The number of characters between the end of the sampling prompt and the text, which the model writes itself."""
    if turn.meets and turn.opening and turn.opening in before:
        return len(before) - before.rindex(turn.opening) - len(turn.opening)
    return len(turn.lead) if before.endswith(turn.lead) else 0
