"""Finds what a chat template writes around the assistant's turns, and where the trained turns lie in a rendered text.

transformers offers masks of the assistant's tokens only for templates with {% generation %} blocks, which few have.
Here the conversation is rendered a second time with invisible marks around the assistant's texts; without its marks
that text must be the first one. So any template works, also one that trims its texts, and one that rewrites a
response costs the row. The thoughts of a reasoning model are given to the template as it takes them; one that leaves
them out costs the row, too. Where tool calls lie is found in a similar way, see `chat_templates.call_span`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

from rlhf_jax.data.chat.chat_templates import (
    CLOSE,
    FIELDS,
    INLINE,
    MARK,
    OPEN,
    VERBATIM,
    call_span,
    check_shown,
    check_template,
    check_tools,
    continued,
    holds,
    kept,
    marked_turns,
    read_text,
    render_chat,
    render_plain,
    said_of,
    written,
)
from rlhf_jax.data.chat.outlines import Outlines, outlines_of
from rlhf_jax.data.chat.tools import OPENED
from rlhf_jax.data.chat.turn_spans import END, MARKS, START, ChatTurn, Span, marked_pieces, spans_of
from rlhf_jax.data.records.left_out import RowError
from rlhf_jax.data.records.messages import THOUGHTS, ChatMessage
from rlhf_jax.data.templates import Handling
from rlhf_jax.errors import UserError

Chat = Sequence[ChatMessage]

# Qwen 3 writes an empty block into a last turn that has no thoughts.
_EMPTY_THOUGHTS = re.compile(r"<think>\s*</think>")
PROMPTS_DIFFER = (
    "chat template begins a response otherwise in training text than where it is sampled "
    "(row kept; data.generation_prompt=training or sampling makes them meet)"
)
_PLAIN_FIELDS, _PLAIN_ROLES = {"role", "content", "train", OPENED}, ("system", "user", "assistant")


class Text(NamedTuple):
    """A rendered conversation: texts that are tokenised apart, where in each the trained turns lie, and notes."""

    pieces: list[str]
    spans: list[list[Span]]
    notes: tuple[str, ...] = ()


def turn_of(tokenizer: Any, how: Handling) -> ChatTurn:
    """Finds how the template writes a turn of the assistant, from a conversation of two short messages.

    Its end must be one token, or several of which the last stands for nothing else, as sampling stops there.
    UserError otherwise, and when the tokenizer cannot be used for chats at all.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    check_template(tokenizer, name, how)
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"{START}x{END}"}]
    try:
        pieces = MARKS.split(render_chat(probe, tokenizer, how))
        asked = render_chat(probe[:1], tokenizer, how)
        prompt = render_chat(probe[:1], tokenizer, how, add_generation_prompt=True)
        thinking = render_chat(
            probe[:1], tokenizer, replace(how, thoughts="keep"), add_generation_prompt=True
        )
    except RowError as e:
        raise UserError(
            f"template: the chat template of {name} does not take a plain conversation ({e})"
        ) from e
    if len(pieces) != 3:
        raise UserError(f"template: the chat template of {name} does not write what the assistant says")
    # A line break behind the end token is never sampled, since sampling stops at the token before it.
    end = pieces[2].rstrip()
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else [tokenizer.eos_token_id]
    if len(ids) > 1 and ids[-1] not in {tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}:
        raise UserError(
            f"template: the chat template of {name} ends a turn with {end!r}, which is {len(ids)} tokens of plain "
            f"text, and EOS is {tokenizer.eos_token!r}, so sampling would not stop there; add {end!r} with "
            "tokenizer.add_special_tokens and save it to a new folder with save_pretrained"
        )
    # Not so for templates that open the thoughts in the prompt alone, as DeepSeek R1's does.
    meets = pieces[0].startswith(prompt)
    opening = prompt.removeprefix(asked) if prompt.startswith(asked) else ""
    opens = thinking.rstrip().endswith(OPEN)
    return ChatTurn(opening, pieces[0].removeprefix(prompt) if meets else "", end, int(ids[-1]), meets, opens)


def prompt_of(chat: Chat, tokenizer: Any, how: Handling) -> tuple[str, tuple[str, ...]]:
    """Renders a conversation up to where the assistant speaks: (text, remarks to count)."""
    text = _prompt_text(chat, tokenizer, how)
    render = partial(_prompt_text, tokenizer=tokenizer, how=how)
    notes = check_tools(chat, text, render)
    return text, notes + check_shown(chat, range(len(chat)), text, render)


def _prompt_text(chat: Chat, tokenizer: Any, how: Handling) -> str:
    if how.generation_prompt != "training":
        return render_chat(chat, tokenizer, how, add_generation_prompt=True)
    return render_chat(_prompt_chat(chat, how), tokenizer, how).partition(START)[0]


def prompts_of(
    chats: Sequence[tuple[Chat, tuple[str, ...]]], tokenizer: Any, how: Handling
) -> Iterator[Text | str]:
    """Yields what `prompt_of` says of conversations, each with the remarks on it; plain ones are rendered together."""
    options = {} if how.generation_prompt == "training" else {"add_generation_prompt": True}
    outlines = outlines_of(tokenizer, how, **options) if options else None
    known = [outlines.of(chat) if outlines is not None and _is_plain(chat) else None for chat, _ in chats]
    asked = [
        _prompt_chat(x, how)
        for (chat, _), parts in zip(chats, known, strict=True)
        if _is_plain(chat) and parts is None
        for x in (chat, marked_turns(chat, range(len(chat)))[1])
    ]
    texts = iter(render_plain(asked, tokenizer, how, **options))
    for (chat, notes), parts in zip(chats, known, strict=True):
        if parts is not None:
            yield Text(["".join(parts)], [[]], notes)
            continue
        text, marked = (next(texts), next(texts)) if _is_plain(chat) else (None, None)
        try:
            if text is None or marked is None:
                text, further = prompt_of(chat, tokenizer, how)
            else:
                text = _prompt_part(text, how)
                written = _prompt_part(marked, how)
                further = check_shown(chat, range(len(chat)), text, lambda _, written=written: written)
            yield Text([text], [[]], notes + further)
        except RowError as reason:
            yield str(reason)


def _prompt_part(text: str, how: Handling) -> str:
    return text.partition(START)[0] if how.generation_prompt == "training" else text


def _prompt_chat(chat: Chat, how: Handling) -> Chat:
    """The conversation whose text, up to a mark, is the prompt."""
    # The prompt is cut out of a text with an answer, so that it ends exactly as training text does.
    answered = how.generation_prompt == "training"
    return [*chat, {"role": "assistant", "content": f"{START}x{END}"}] if answered else chat


def _is_plain(chat: Chat) -> bool:
    """Whether a conversation is texts alone: no tools, and no thoughts in fields of their own."""
    return all(m.keys() <= _PLAIN_FIELDS and m["role"] in _PLAIN_ROLES for m in chat)


def _chosen(chat: Chat, all_turns: bool) -> list[int]:
    """The numbers of the turns that are trained."""
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    chosen = [i for i in (turns if all_turns else turns[-1:]) if chat[i].get("train", True)]
    if not chosen:
        raise RowError("every turn has weight 0")
    return chosen


def as_sampled(
    chat: Chat, tokenizer: Any, turn: ChatTurn, all_turns: bool, ended: bool, how: Handling
) -> Text:
    """Writes the prompt as it is sampled from and, as a text of its own, what the model has to write after it.

    The two are tokenised apart, as they are in sampling, so no token can join them.
    """
    if len(chat) - 1 not in _chosen(chat, all_turns):
        raise RowError("the last turn has weight 0")
    if chat[-1].get("tool_calls"):
        raise RowError("tool calls, which data.generation_prompt=sampling cannot write")
    prompt, notes = prompt_of(kept(chat[:-1], how.thoughts, prompt=True), tokenizer, how)
    said = said_of(chat[-1])
    if not said.answer.strip():
        raise RowError("empty response")
    # A response that was cut while it thought has no closing tag, and must not be given one.
    unfinished = not ended and CLOSE not in chat[-1]["content"] and not said.thoughts
    text = chat[-1]["content"] if unfinished else continued(prompt, said)
    text += turn.end if ended else ""
    return Text([prompt, text], [[], [(0, len(text))]], notes)


def texts_of(
    chats: Sequence[tuple[Chat, tuple[str, ...], bool]],
    tokenizer: Any,
    turn: ChatTurn,
    all_turns: bool,
    how: Handling,
) -> Iterator[Text | str]:
    """Yields conversations as they are trained, or the reasons why one cannot be: as `as_sampled` or `as_templated`.

    Nothing is rendered where the template's outline is known. Else plain ones are rendered in one call, and a second
    time with all marks at once, around what is trained and behind what is shown. Where the second text without its
    marks is the first, each kind of mark alone would have shown the same; any other conversation goes the long way,
    which tells why.
    chats: each with the remarks on it, and whether its last turn ended.
    """
    sampled = how.generation_prompt == "sampling"
    outlines = None if sampled else outlines_of(tokenizer, how)
    known = [None if outlines is None else _outlined(*x, outlines, turn, all_turns, how) for x in chats]
    marked = [
        None if sampled or text else _marked_chat(chat, all_turns)
        for (chat, *_), text in zip(chats, known, strict=True)
    ]
    plain = [chat for (chat, *_), x in zip(chats, marked, strict=True) if x is not None]
    texts = render_plain([*plain, *filter(None, marked)], tokenizer, how)
    both = iter(zip(texts[: len(plain)], texts[len(plain) :], strict=True))
    for (chat, notes, ended), marks, text in zip(chats, marked, known, strict=True):
        pair = (None, None) if marks is None else next(both)
        try:
            if None not in pair:
                text = _read_marks(chat, all_turns, *pair, turn, ended, how)
            if text is None:
                write = as_sampled if sampled else as_templated
                text = write(chat, tokenizer, turn, all_turns, ended, how)
            yield text._replace(notes=notes + text.notes) if notes else text
        except RowError as reason:
            yield str(reason)


def _marked_chat(chat: Chat, all_turns: bool) -> list[ChatMessage] | None:
    """The conversation with its marks; None where it is not plain or trains thoughts."""
    with suppress(RowError):
        chosen = _chosen(chat, all_turns)
        if not _is_plain(chat) or any(CLOSE in chat[i]["content"] for i in chosen):
            return None
        shown = marked_turns(chat, [i for i in range(len(chat)) if i not in chosen])[1]
        return [
            m | {"content": f"{START}{m['content']}{END}"} if i in chosen else m for i, m in enumerate(shown)
        ]
    return None


def _outlined(
    chat: Chat, _: Any, ended: bool, outlines: Outlines, turn: ChatTurn, all_turns: bool, how: Handling
) -> Text | None:
    """What marks would say of a plain conversation, by the outline of its kind; None where there is none."""
    with suppress(RowError):
        chosen = _chosen(chat, all_turns)
        if not _is_plain(chat) or any(CLOSE in chat[i]["content"] for i in chosen):
            return None
        parts = outlines.of(chat)
        if parts is None:
            return None
        ends = [2 * i + 1 for i in chosen]
        bounds = pairwise([0, *chain.from_iterable((i, i + 1) for i in ends), len(parts)])
        pieces = ["".join(parts[i:j]) for i, j in bounds]
        text = "".join(pieces)
        spans = spans_of(pieces, turn, how, ended or chosen[-1] != len(chat) - 1)
        return Text([text], [spans], (*_differ_note(turn, how), *_empty_note(text, spans)))
    return None


def _read_marks(
    chat: Chat, all_turns: bool, text: str, marked: str, turn: ChatTurn, ended: bool, how: Handling
) -> Text | None:
    """What the marks of a plain conversation say; None where anything about them is unusual."""
    chosen = _chosen(chat, all_turns)
    shown = [i for i, m in enumerate(chat) if i not in chosen and m["content"].strip()]
    # Each of these marks is a number between two signs, so every second part is a number.
    parts = marked.split(MARK)
    if sorted(parts[1::2]) != sorted(map(str, shown)):
        return None
    pieces = MARKS.split("".join(parts[::2]))
    if len(pieces) != 2 * len(chosen) + 1 or "".join(pieces) != text:
        return None
    said = zip(pieces[1::2], chosen, strict=True)
    if not all(holds(piece, chat[i]["content"]) for piece, i in said):
        return None
    if not all(holds(text, read_text(chat[i])) for i in shown):
        return None
    spans = spans_of(pieces, turn, how, ended or chosen[-1] != len(chat) - 1)
    return Text([text], [spans], (*_differ_note(turn, how), *_empty_note(text, spans)))


def as_templated(
    chat: Chat, tokenizer: Any, turn: ChatTurn, all_turns: bool, ended: bool, how: Handling
) -> Text:
    """Writes a conversation as the template does, and finds where the trained turns lie, their ends included.

    ended: whether the last turn has an end; one that its sampler cut has none.
    """
    chosen = _chosen(chat, all_turns)
    calling = [i for i in chosen if chat[i].get("tool_calls")]
    if not ended and len(chat) - 1 in calling:
        raise RowError("tool calls of a response that did not end")
    thinking = [bool(said_of(chat[i]).thoughts) for i in chosen]
    notes = _differ_note(turn, how)
    render = partial(render_chat, tokenizer=tokenizer, how=how)
    for form in (VERBATIM, FIELDS, INLINE) if any(thinking) else (VERBATIM,):
        # Verbatim, thoughts in a field of their own would get no marks, and would not be trained.
        in_fields = any(chat[i].get(name) for i in chosen for name in THOUGHTS)
        if form == VERBATIM and in_fields:
            continue
        plain = [written(m, form) if i in chosen else m for i, m in enumerate(chat)]
        text = render(plain)
        pieces = marked_pieces(plain, {i: chat[i] for i in chosen if i not in calling}, form, text, render)
        if pieces is None:
            continue
        whole = [said_of(chat[i]) for i in chosen if i not in calling]
        if not all(holds(said, x) for said, told in zip(pieces[1::2], whole, strict=True) for x in told):
            continue
        spans = spans_of(pieces, turn, how, ended or chosen[-1] != len(chat) - 1)
        opening = turn.opening if turn.meets else ""
        called = [call_span(plain, i, text, opening, render) for i in calling]
        # A turn with calls is found without marks, so its thoughts have to be looked for in the text.
        if not all(
            said_of(chat[i]).thoughts in text[slice(*x)] for i, x in zip(calling, called, strict=True)
        ):
            continue
        spans = sorted([*spans, *called])
        notes += check_tools(plain, text, render)
        notes += check_shown(plain, [i for i in range(len(plain)) if i not in chosen], text, render)
        if form == INLINE:
            notes += (f"thoughts written {INLINE} (row kept)",)
        return Text([text], [spans], notes + _empty_note(text, spans))
    if any(thinking):
        earlier = any(thinking[:-1])
        raise RowError(
            "chat template leaves out thoughts of earlier turns (data.thoughts=last leaves them out, too)"
            if earlier
            else "chat template leaves out thoughts (data.generation_prompt=sampling writes them, "
            "data.thoughts=drop trains without)"
        )
    raise RowError("chat template rewrites a response")


def _differ_note(turn: ChatTurn, how: Handling) -> tuple[str, ...]:
    return () if turn.meets or how.generation_prompt != "template" else (PROMPTS_DIFFER,)


def _empty_note(text: str, spans: list[Span]) -> tuple[str, ...]:
    empty = OPEN in text and any(_EMPTY_THOUGHTS.search(text, *span) for span in spans)
    return ("empty think block of the chat template trained (row kept)",) if empty else ()
