"""Conversations -> token ids by the tokenizer's own chat template, with a mask of what the assistant said.

A conversation is rendered to one string and that string is tokenised once, as a server of the model would do it;
which tokens are trained follows from their character offsets. Trained is all that the model has to say itself: from
the end of the generation prompt (Mistral's template writes a space after it) over the assistant's text to the end
token that the template writes after it.

Where the assistant's texts lie in the string is found by rendering a second time with invisible marks around
them; that string without its marks must be the first one. So any template works, also one that trims its texts, and
one that rewrites a response costs the row, which is counted.

A row begins with exactly one BOS when the tokenizer has one, whether the template writes none, one, or the tokenizer
would add another. BOS tokens that a template writes between turns (Llama 2) stay where they are.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Int32

from rlhf_jax.data.messages import ChatMessage, RowError
from rlhf_jax.data.tokenizer_calls import tokenized
from rlhf_jax.errors import UserError

CHAT = "chat"  # The name that says so among the templates.

_START, _END = (
    "\ufdd0",
    "\ufdd1",
)  # Unicode keeps these for uses like ours; text has no business holding them.
_MARKS = re.compile(f"[{_START}{_END}]")
_TRIMS = (str, str.strip, str.rstrip, str.lstrip)

Chat = Sequence[ChatMessage]
Span = tuple[int, int]


class Encoded(NamedTuple):
    """Tokens of a conversation, up to the last trained one, and which are trained."""

    ids: Int32[np.ndarray, "T"]
    trained: Bool[np.ndarray, "T"]


class Turn(NamedTuple):
    """What a template writes around an assistant's text, after the generation prompt: " " and "</s>", for example.

    end is "" when the template writes none; end_id is the token that it ends with, or else EOS.
    """

    lead: str
    end: str
    end_id: int


def encode_chats(
    chats: Sequence[Chat], tokenizer: Any, *, all_turns: bool = True, ended: Sequence[bool] | None = None
) -> list[Encoded | str]:
    """Conversations that end with the assistant -> their tokens, or the reason why a row cannot be used.

    all_turns: train every turn of the assistant; otherwise the last one alone.
    ended: whether each conversation's last turn ended by itself; one that did not has no end. None: all did.
    Raises UserError when the tokenizer has no chat template, or one that cannot be trained with.
    """
    turn = _turn(tokenizer)
    specials = _special_tokens(tokenizer)
    rendered: list[tuple[str, list[Span]] | str] = []
    ended = [True] * len(chats) if ended is None else ended
    for chat, whole in zip(chats, ended, strict=True):
        try:
            _check_text(chat, specials)
            rendered.append(_render_with_spans(chat, tokenizer, turn, all_turns, whole))
        except RowError as reason:
            rendered.append(str(reason))
    texts = [found[0] for found in rendered if not isinstance(found, str)]
    tokens = iter(_tokenize(texts, tokenizer))
    after = () if turn.end else (turn.end_id,)
    return [
        x if isinstance(x, str) else _encoded(*next(tokens), x[1], tokenizer, after if whole else ())
        for x, whole in zip(rendered, ended, strict=True)
    ]


def encode_chat_prompts(chats: Sequence[Chat], tokenizer: Any) -> list[Int32[np.ndarray, "P"] | str]:
    """Conversations that end with the user -> tokens up to where the assistant begins, or the reason why not."""
    _turn(tokenizer)
    specials = _special_tokens(tokenizer)
    rendered: list[str | RowError] = []
    for chat in chats:
        try:
            _check_text(chat, specials)
            rendered.append(_render(chat, tokenizer, add_generation_prompt=True))
        except RowError as reason:
            rendered.append(reason)
    tokens = iter(_tokenize([text for text in rendered if isinstance(text, str)], tokenizer))
    return [
        str(text) if isinstance(text, RowError) else _one_bos(next(tokens)[0], tokenizer)[0]
        for text in rendered
    ]


def end_of_turn(tokenizer: Any) -> int:
    """The token that the chat template writes behind what the assistant says. Raises UserError as `encode_chats`."""
    return _turn(tokenizer).end_id


def _turn(tokenizer: Any) -> Turn:
    """How the template writes a turn of the assistant.

    Its end must be one token, or several of which the last stands for nothing else, as sampling stops there.
    UserError otherwise, and when the tokenizer cannot be used for chats at all.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"template: chat is the tokenizer's own chat template, and {name} has none; use a chat model's "
            "tokenizer, or set tokenizer.chat_template to a Jinja text and save it to a new folder with "
            "save_pretrained, or use another template (alpaca, brief)"
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"template: chat needs character offsets, which {name} does not give; save a fast tokenizer (one "
            "with tokenizer.json) with save_pretrained"
        )
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": f"{_START}x{_END}"}]
    try:
        pieces = _MARKS.split(_render(probe, tokenizer))
        prompt = _render(probe[:1], tokenizer, add_generation_prompt=True)
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
    lead = pieces[0].removeprefix(prompt) if pieces[0].startswith(prompt) else ""
    return Turn(lead, end, int(ids[-1]))


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    found = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return re.compile("|".join(map(re.escape, sorted(found | {_START, _END}))))


def _check_text(chat: Chat, specials: re.Pattern[str]) -> None:
    # In one string they could not be told from those of the template.
    if any(specials.search(message["content"]) for message in chat):
        raise RowError("text holds a special token")


def _render(chat: Chat, tokenizer: Any, **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(list(chat), tokenize=False, **options)
    except (jinja2.TemplateError, TypeError) as e:  # templates refuse with raise_exception
        raise RowError(f"chat template: {' '.join(str(e).split())[:80]}") from e


def _render_with_spans(
    chat: Chat, tokenizer: Any, turn: Turn, all_turns: bool, ended: bool
) -> tuple[str, list[Span]]:
    """The text of a conversation, and where in it the trained turns lie, their ends included.

    ended: whether the last turn has an end; one that its sampler cut has none.
    """
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    chosen = {i for i in (turns if all_turns else turns[-1:]) if chat[i].get("train", True)}
    if not chosen:
        raise RowError("every turn has weight 0")
    text = _render(chat, tokenizer)
    for trim in _TRIMS:
        marked = [
            {**message, "content": f"{_START}{trim(message['content'])}{_END}"} if i in chosen else message
            for i, message in enumerate(chat)
        ]
        pieces = _MARKS.split(_render(marked, tokenizer))
        if len(pieces) == 2 * len(chosen) + 1 and "".join(pieces) == text:
            spans = _spans(pieces, turn)
            if not ended:
                spans[-1] = spans[-1][0], len("".join(pieces[:-1]))
            return text, spans
    raise RowError("chat template rewrites a response")


def _spans(pieces: list[str], turn: Turn) -> list[Span]:
    """Where the trained turns lie. pieces: the text cut at the marks, so that every second piece is what is said."""
    spans, at = [], 0
    for before, said, after in zip(pieces[:-1:2], pieces[1::2], pieces[2::2], strict=True):
        start = at + len(before)
        stop = start + len(said)
        lead = len(turn.lead) if before.endswith(turn.lead) else 0
        spans.append((start - lead, stop + len(turn.end) if after.startswith(turn.end) else stop))
        at = stop
    return spans


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
    ids: np.ndarray, offsets: np.ndarray, spans: list[Span], tokenizer: Any, after: tuple[int, ...]
) -> Encoded | str:
    """after: ids to end the row with, when the template does not."""
    trained = _overlapping(offsets, spans)
    ids, trained = _one_bos(ids, tokenizer, trained)
    if not trained.any():
        return "empty response"
    length = int(np.flatnonzero(trained)[-1]) + 1
    ids = np.append(ids[:length], np.array(after, np.int32)).astype(np.int32)
    return Encoded(ids, np.append(trained[:length], np.ones(len(after), bool)))


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
