"""Conversations -> token ids by the tokenizer's own chat template, with a mask of what the assistant said.

A conversation is rendered to one string and that string is tokenised once, as a server of the model would do it;
which tokens are trained follows from their character offsets. Trained is all that the model has to say itself: from
the end of the generation prompt (Mistral's template writes a space after it) over the assistant's text to the end
token that the template writes after it.

Where the assistant's texts lie in the string is found by rendering a second time with invisible marks around
them; that string without its marks must be the first one. So any template works, also one that trims its texts, and
one that rewrites a response costs the row, which is counted. The thoughts of a reasoning model are given to the
template as it takes them (see `thoughts`); one that leaves them out costs the row, too.

A row begins with exactly one BOS when the tokenizer has one, whether the template writes none, one, or the tokenizer
would add another. BOS tokens that a template writes between turns (Llama 2) stay where they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from rlhf_jax.data.chat_templates import check_template, render_chat
from rlhf_jax.data.handling import Handling
from rlhf_jax.data.messages import THOUGHTS, ChatMessage, RowError
from rlhf_jax.data.thoughts import CLOSE, FIELDS, INLINE, VERBATIM, continued, kept, said_of, written
from rlhf_jax.data.tokenizer_calls import tokenized
from rlhf_jax.errors import UserError

CHAT = "chat"  # The name that says so among the templates.

_START, _END = (
    "\ufdd0",
    "\ufdd1",
)  # Unicode keeps these for uses like ours; text has no business holding them.
_MARKS = re.compile(f"[{_START}{_END}]")
_EMPTY_THOUGHTS = re.compile(r"<think>\s*</think>")
PROMPTS_DIFFER = (
    "chat template begins a response otherwise in training text than where it is sampled "
    "(row kept; data.generation_prompt=training or sampling makes them meet)"
)
_DEFAULTS = Handling()
_TRIMS = (str, str.strip, str.rstrip, str.lstrip)

Chat = Sequence[ChatMessage]
Span = tuple[int, int]


class Encoded(NamedTuple):
    """Tokens of a conversation, up to the last trained one, which are trained, and what is to be said of it."""

    ids: Int32[np.ndarray, "T"]
    trained: Bool[np.ndarray, "T"]
    notes: tuple[str, ...] = ()


class Turn(NamedTuple):
    """What a template writes around an assistant's text.

    Attributes:
      opening: what it writes to have the assistant speak, "" when nothing.
      lead: what it writes between that and the text: " ", for example.
      end: what it writes behind the text, "" when nothing.
      end_id: the token that the end ends with, or else EOS.
      meets: whether training text goes on where a prompt for sampling ends.
    """

    opening: str
    lead: str
    end: str
    end_id: int
    meets: bool


class Text(NamedTuple):
    """A rendered conversation: texts that are tokenised apart, where in each the trained turns lie, and notes."""

    pieces: list[str]
    spans: list[list[Span]]
    notes: tuple[str, ...] = ()


def encode_chats(
    chats: Sequence[Chat],
    tokenizer: Any,
    *,
    all_turns: bool = True,
    ended: Sequence[bool] | None = None,
    how: Handling = _DEFAULTS,
) -> list[Encoded | str]:
    """Conversations that end with the assistant -> their tokens, or the reason why a row cannot be used.

    all_turns: train every turn of the assistant; otherwise the last one alone.
    ended: whether each conversation's last turn ended by itself; one that did not has no end. None: all did.
    Raises UserError when the tokenizer has no chat template, or one that cannot be trained with.
    """
    turn = _turn(tokenizer, how)
    specials = _special_tokens(tokenizer)
    rendered: list[Text | str] = []
    ended = [True] * len(chats) if ended is None else ended
    for chat, whole in zip(chats, ended, strict=True):
        try:
            _check_text(chat, specials)
            chat = kept(chat, how.thoughts)
            write = _as_sampled if how.generation_prompt == "sampling" else _as_templated
            rendered.append(write(chat, tokenizer, turn, all_turns, whole, how))
        except RowError as reason:
            rendered.append(str(reason))
    tokens = iter(
        _tokenize([x for text in rendered if isinstance(text, Text) for x in text.pieces], tokenizer)
    )
    after = () if turn.end else (turn.end_id,)
    return [
        x if isinstance(x, str) else _encoded(x, tokens, tokenizer, after if whole else ())
        for x, whole in zip(rendered, ended, strict=True)
    ]


def encode_chat_prompts(
    chats: Sequence[Chat], tokenizer: Any, how: Handling = _DEFAULTS
) -> list[Int32[np.ndarray, "P"] | str]:
    """Conversations that end with the user -> tokens up to where the assistant begins, or the reason why not."""
    _turn(tokenizer, how)
    specials = _special_tokens(tokenizer)
    rendered: list[str | RowError] = []
    for chat in chats:
        try:
            _check_text(chat, specials)
            rendered.append(_prompt_text(kept(chat, how.thoughts, prompt=True), tokenizer, how))
        except RowError as reason:
            rendered.append(reason)
    tokens = iter(_tokenize([text for text in rendered if isinstance(text, str)], tokenizer))
    return [
        str(text) if isinstance(text, RowError) else _one_bos(next(tokens)[0], tokenizer)[0]
        for text in rendered
    ]


def end_of_turn(tokenizer: Any, how: Handling = _DEFAULTS) -> int:
    """The token that the chat template writes behind what the assistant says. Raises UserError as `encode_chats`."""
    return _turn(tokenizer, how).end_id


def prompts_differ(tokenizer: Any, how: Handling = _DEFAULTS) -> bool:
    """Whether the template begins a response otherwise in training text than where it is sampled, uncorrected."""
    return how.generation_prompt == "template" and not _turn(tokenizer, how).meets


def _turn(tokenizer: Any, how: Handling) -> Turn:
    """How the template writes a turn of the assistant.

    Its end must be one token, or several of which the last stands for nothing else, as sampling stops there.
    UserError otherwise, and when the tokenizer cannot be used for chats at all.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    check_template(tokenizer, name, how)
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"{_START}x{_END}"}]
    try:
        pieces = _MARKS.split(render_chat(probe, tokenizer, how))
        asked = render_chat(probe[:1], tokenizer, how)
        prompt = render_chat(probe[:1], tokenizer, how, add_generation_prompt=True)
    except RowError as e:
        raise UserError(
            f"template: the chat template of {name} does not take a plain conversation ({e})"
        ) from e
    if len(pieces) != 3:
        raise UserError(f"template: the chat template of {name} does not write what the assistant says")
    end = pieces[2].rstrip()
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else [tokenizer.eos_token_id]
    if len(ids) > 1 and ids[-1] not in {tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}:
        raise UserError(
            f"template: the chat template of {name} ends a turn with {end!r}, which is {len(ids)} tokens of plain "
            f"text, and EOS is {tokenizer.eos_token!r}, so sampling would not stop there; add {end!r} with "
            "tokenizer.add_special_tokens and save it to a new folder with save_pretrained"
        )
    meets = pieces[0].startswith(prompt)
    opening = prompt.removeprefix(asked) if prompt.startswith(asked) else ""
    return Turn(opening, pieces[0].removeprefix(prompt) if meets else "", end, int(ids[-1]), meets)


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    found = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return re.compile("|".join(map(re.escape, sorted(found | {_START, _END}))))


def _check_text(chat: Chat, specials: re.Pattern[str]) -> None:
    # In one string they could not be told from those of the template. The tags around thoughts are meant as such.
    for message in chat:
        texts = said_of(message) if message["role"] == "assistant" else (message["content"],)
        if any(specials.search(text) for text in texts):
            raise RowError("text holds a special token")


def _prompt_text(chat: Chat, tokenizer: Any, how: Handling) -> str:
    if how.generation_prompt != "training":
        return render_chat(chat, tokenizer, how, add_generation_prompt=True)
    answered = [*chat, {"role": "assistant", "content": f"{_START}x{_END}"}]
    return render_chat(answered, tokenizer, how).partition(_START)[0]


def _chosen(chat: Chat, all_turns: bool) -> list[int]:
    """Which turns are trained."""
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    chosen = [i for i in (turns if all_turns else turns[-1:]) if chat[i].get("train", True)]
    if not chosen:
        raise RowError("every turn has weight 0")
    return chosen


def _as_sampled(chat: Chat, tokenizer: Any, turn: Turn, all_turns: bool, ended: bool, how: Handling) -> Text:
    """The prompt as it is sampled from, and behind it what the model has to write, tokenised apart as there."""
    if len(chat) - 1 not in _chosen(chat, all_turns):
        raise RowError("the last turn has weight 0")
    prompt = _prompt_text(kept(chat[:-1], how.thoughts, prompt=True), tokenizer, how)
    said = said_of(chat[-1])
    if not said.answer.strip():
        raise RowError("empty response")
    unfinished = not ended and CLOSE not in chat[-1]["content"] and not said.thoughts
    text = chat[-1]["content"] if unfinished else continued(prompt, said)
    text += turn.end if ended else ""
    return Text([prompt, text], [[], [(0, len(text))]])


def _as_templated(
    chat: Chat, tokenizer: Any, turn: Turn, all_turns: bool, ended: bool, how: Handling
) -> Text:
    """The text of a conversation as the template writes it, and where the trained turns lie, their ends included.

    ended: whether the last turn has an end; one that its sampler cut has none.
    """
    chosen = _chosen(chat, all_turns)
    thinking = [bool(said_of(chat[i]).thoughts) for i in chosen]
    notes = () if turn.meets or how.generation_prompt != "template" else (PROMPTS_DIFFER,)
    for form in (VERBATIM, FIELDS, INLINE) if any(thinking) else (VERBATIM,):
        in_fields = any(chat[i].get(name) for i in chosen for name in THOUGHTS)
        if form == VERBATIM and in_fields:
            continue
        plain = [written(m, form) if i in chosen else m for i, m in enumerate(chat)]
        text = render_chat(plain, tokenizer, how)
        parts = [1 + (form == FIELDS and thought) for thought in thinking]
        for trim in _TRIMS:
            marked = [
                written(m, form, (_START, _END), trim) if i in chosen else m for i, m in enumerate(chat)
            ]
            pieces = _MARKS.split(render_chat(marked, tokenizer, how))
            if len(pieces) == 2 * sum(parts) + 1 and "".join(pieces) == text:
                spans = _spans(_merged(pieces, parts), turn, how)
                if not ended and chosen[-1] == len(chat) - 1:
                    spans[-1] = spans[-1][0], len("".join(pieces[:-1]))
                if form == INLINE:
                    notes += (f"thoughts written {INLINE} (row kept)",)
                if any(_EMPTY_THOUGHTS.search(text, *span) for span in spans):
                    notes += ("empty think block of the chat template trained (row kept)",)
                return Text([text], [spans], notes)
    if any(thinking):
        earlier = any(thinking[:-1])
        raise RowError(
            "chat template leaves out thoughts of earlier turns (data.thoughts=last leaves them out, too)"
            if earlier
            else "chat template leaves out thoughts (data.generation_prompt=sampling writes them, "
            "data.thoughts=drop trains without)"
        )
    raise RowError("chat template rewrites a response")


def _merged(pieces: list[str], parts: list[int]) -> list[str]:
    """Pieces in which what a turn thought, what stands between, and what it said is one."""
    merged, at = [pieces[0]], 1
    for count in parts:
        stop = at + 2 * count - 1
        merged += ["".join(pieces[at:stop]), pieces[stop]]
        at = stop + 1
    return merged


def _spans(pieces: list[str], turn: Turn, how: Handling) -> list[Span]:
    """Where the trained turns lie. pieces: the text cut at the marks, so that every second piece is what is said."""
    spans, at = [], 0
    for before, said, after in zip(pieces[:-1:2], pieces[1::2], pieces[2::2], strict=True):
        start = at + len(before)
        stop = start + len(said)
        lead = 0 if how.generation_prompt == "training" else _lead(before, turn)
        spans.append((start - lead, stop + len(turn.end) if after.startswith(turn.end) else stop))
        at = stop
    return spans


def _lead(before: str, turn: Turn) -> int:
    """Characters before what is said that the model has to write itself: all since the template had it speak."""
    if turn.meets and turn.opening and turn.opening in before:
        return len(before) - before.rindex(turn.opening) - len(turn.opening)
    return len(turn.lead) if before.endswith(turn.lead) else 0


def _tokenize(texts: Sequence[str], tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids [T], character offsets [T, 2]) of each text; special tokens are read as such, and none is added."""
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
    """after: ids to end the row with, when the template does not."""
    parts = [(next(tokens), spans) for _, spans in zip(text.pieces, text.spans, strict=True)]
    ids = np.concatenate([found[0] for found, _ in parts])
    trained = np.concatenate([_overlapping(found[1], spans) for found, spans in parts])
    ids, trained = _one_bos(ids, tokenizer, trained)
    if not trained.any():
        return "empty response"
    notes = text.notes
    if any(_straddles(offsets, spans) for (_, offsets), spans in parts):
        notes += ("a token joins prompt and response (row kept; data.generation_prompt=sampling parts them)",)
    length = int(np.flatnonzero(trained)[-1]) + 1
    ids = np.append(ids[:length], np.array(after, np.int32)).astype(np.int32)
    return Encoded(ids, np.append(trained[:length], np.ones(len(after), bool)), notes)


def _straddles(offsets: np.ndarray, spans: list[Span]) -> bool:
    """Whether a token begins before a trained turn and ends in it: a sampled response begins with another."""
    begin, stop = offsets[:, 0], offsets[:, 1]
    return any(bool(((begin < first) & (stop > first)).any()) for first, _ in spans if first)


def _overlapping(offsets: np.ndarray, spans: list[Span]) -> Bool[np.ndarray, "T"]:
    """True for tokens that hold a character of a span, be it one (a template's space before the text is in it).

    A byte-level tokenizer may leave spaces out of its offsets: a token of nothing but spaces then has no
    width, and what lies between it and the token before is its.
    """
    begin, stop = offsets[:, 0], offsets[:, 1]
    before = np.concatenate([[0], np.maximum.accumulate(stop)[:-1]]) if len(stop) else stop
    begin = np.where(begin < stop, begin, np.minimum(begin, before))
    trained = np.zeros(len(offsets), bool)
    for first, last in spans:
        trained |= (stop > first) & (begin < last) & (begin < stop)
    return trained


def _one_bos(
    ids: np.ndarray, tokenizer: Any, trained: np.ndarray | None = None
) -> tuple[Int32[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """The same tokens with exactly one BOS in front, if the tokenizer has one."""
    trained = np.zeros(len(ids), bool) if trained is None else trained
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids, trained
    others = np.flatnonzero(ids != bos)
    doubled = int(others[0]) if len(others) else len(ids)
    front = np.array([bos], np.int32)
    return np.append(front, ids[doubled:]).astype(np.int32), np.append([False], trained[doubled:])
