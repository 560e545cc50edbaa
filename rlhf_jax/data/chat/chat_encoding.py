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

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from rlhf_jax.data.chat.chat_templates import MARK, kept, opened, said_of, unopened_note
from rlhf_jax.data.chat.turns import (
    END,
    START,
    Chat,
    ChatTurn,
    Span,
    Text,
    prompts_of,
    texts_of,
    turn_of,
)
from rlhf_jax.data.records.left_out import RowError
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.known_words import Pieces
from rlhf_jax.data.tokens.text_batches import (
    ByWords,
    Tokens,
    ahead,
    encodings_of,
    end_to_end_ids,
    in_batches,
    pieces_in,
    tokens_of,
)
from rlhf_jax.data.tokens.tokenizer_files import heads

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
    every = [True] * len(chats) if ended is None else ended
    return list(encoded_chats(chats, tokenizer, all_turns=all_turns, ended=every, how=how))


def encoded_chats(
    chats: Iterable[Chat],
    tokenizer: Any,
    *,
    all_turns: bool,
    ended: Iterable[bool],
    how: Handling = _DEFAULTS,
) -> Iterator[Encoded | str]:
    """Yields what `encode_chats` returns; holds a few batches at a time, however many conversations there are."""
    turn = turn_of(tokenizer, how)
    write = partial(texts_of, tokenizer=tokenizer, turn=turn, all_turns=all_turns, how=how)
    # A template that writes no end would leave the model without a sign to stop, so EOS is added.
    after = () if turn.end else (turn.end_id,)

    def rendered() -> Iterator[list[tuple[Text | str, tuple[int, ...]]]]:
        for batch in in_batches(zip(_checked(chats, tokenizer, turn, how), ended, strict=True)):
            good = [(*x, whole) for x, whole in batch if not isinstance(x, str)]
            texts = iter(write(good))
            yield [(x if isinstance(x, str) else next(texts), after if whole else ()) for x, whole in batch]

    front = _Front.of(tokenizer)
    with _pieces_of(tokenizer) as by_words:
        for batch, pieces in ahead(partial(_tokenized, pieces=by_words), rendered()):
            yield from _encoded(batch, pieces, front)


def encode_chat_prompts(
    chats: Iterable[Chat], tokenizer: Any, how: Handling = _DEFAULTS
) -> Iterator[Encoded | str]:
    """Yields conversations up to where the assistant is to speak; in place of an unusable one stands the reason."""
    # A tokenizer that cannot be trained with is refused here in the same words.
    turn = turn_of(tokenizer, how)

    def rendered() -> Iterator[list[tuple[Text | str, tuple[int, ...]]]]:
        for batch in in_batches(_checked(chats, tokenizer, turn, how, prompt=True)):
            texts = iter(prompts_of([x for x in batch if not isinstance(x, str)], tokenizer, how))
            yield [(x if isinstance(x, str) else next(texts), ()) for x in batch]

    front = _Front.of(tokenizer)
    with _pieces_of(tokenizer) as by_words:
        for batch, pieces in ahead(partial(_tokenized, pieces=by_words), rendered()):
            found = iter(pieces)
            for text, _ in batch:
                if isinstance(text, str):
                    yield text
                    continue
                yield _arrays(*front.put(*next(found)[:2]), text.notes)


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


def _checked(
    chats: Iterable[Chat], tokenizer: Any, turn: ChatTurn, how: Handling, *, prompt: bool = False
) -> Iterator[tuple[Chat, tuple[str, ...]] | str]:
    """Each conversation as the template is given it, with remarks on it; or the reason why it cannot be used."""
    specials = _special_tokens(tokenizer)
    for chat in chats:
        try:
            chat = opened(chat) if turn.opens else chat
            _check_text(chat, specials)
            yield kept(chat, how.thoughts, prompt=prompt), unopened_note(chat, how)
        except RowError as reason:
            yield str(reason)


def _check_text(chat: Chat, specials: re.Pattern[str]) -> None:
    # The conversation becomes one string, in which a user's "<|im_end|>" would end the turn like the
    # template's own. The tags around thoughts may be special tokens: `said_of` has taken them off.
    for message in chat:
        texts = said_of(message) if message["role"] == "assistant" else (message["content"],)
        calls = (text for call in message.get("tool_calls", ()) for text in call["function"].values())
        if any(specials.search(text) for text in (*texts, *calls, message.get("tools", ""))):
            raise RowError("text holds a special token")


# Which tokens of some texts are trained [N]; and in which of the P texts one joins prompt and response [P].
Marks = tuple[np.ndarray, np.ndarray]
B = TypeVar("B", bound=Sequence[tuple[Text | str, tuple[int, ...]]])


def _tokenized(batch: B, pieces: ByWords) -> tuple[B, list[Pieces]]:
    """The same batch, and the tokens of all its texts; special tokens are read as such, none is added."""
    # In `tokenization` a special token within a text is only characters; here the template has written it.
    texts = [piece for text, _ in batch if isinstance(text, Text) for piece in text.pieces]
    return batch, pieces(texts, [x for text, _ in batch if isinstance(text, Text) for x in text.spans])


def _pieces_of(tokenizer: Any) -> ByWords:
    """What makes tokens of one batch of texts after another, with those that are trained."""
    whole = partial(_whole, tokenizer=tokenizer)
    return ByWords(tokenizer, whole, read_specials=True, marked=_gives_offsets(tokenizer))


def _whole(texts: Sequence[str], spans: Sequence[Sequence[Span]], tokenizer: Any) -> list[Pieces]:
    if any(spans) and _covers(tokenizer):
        found = encodings_of(texts, tokenizer, read_specials=True, spans=True)
        tokens = end_to_end_ids(one.ids for one in found)
        if marks := _looked_up(found, tokens, spans):
            return pieces_in(tokens, *marks)
    tokens = tokens_of(texts, tokenizer, read_specials=True, spans=any(spans))
    return pieces_in(tokens, *(_marked(tokens, spans) if any(spans) else ()))


def _covers(tokenizer: Any) -> bool:
    """Whether the tokens of a text hold all its characters, in their order, each at least a part of one.

    So it is for byte-level BPE without a normalizer that gives all offsets as they are. Where a turn begins and ends
    can then be looked up; offsets of all tokens as Python objects take as long as a quarter of the tokenising.
    """
    return _gives_offsets(tokenizer) and tokenizer.backend_tokenizer.normalizer is None


@lru_cache(maxsize=16)
def _gives_offsets(tokenizer: Any) -> bool:
    """Whether that holds for texts that its normalizer, if there is one, leaves as they are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or encodings_of([""], tokenizer, read_specials=True, spans=True) is None:
        return False
    from tokenizers.pre_tokenizers import ByteLevel

    # A part of a tokenizer that was written in Python has no such text, and raises what it likes.
    with suppress(Exception):
        split = json.loads(backend.pre_tokenizer.__getstate__())
        after = backend.post_processor and json.loads(backend.post_processor.__getstate__())
        steps = split.get("pretokenizers", [split])
        levels = [x for x in steps if x["type"] == "ByteLevel"]
        others = [x for x in steps if x["type"] not in ("ByteLevel", "Digits")]
        return (
            type(backend.model).__name__ == "BPE"
            and [x["add_prefix_space"] for x in levels] == [False]
            and all(x["behavior"] == "Isolated" for x in others)
            and "true" not in re.findall(r'"trim_offsets": (\w+)', json.dumps(after))
            and all(backend.token_to_id(x) is not None for x in ByteLevel.alphabet())
        )
    return False


def _looked_up(found: Sequence[Any], tokens: Tokens, spans: Sequence[list[Span]]) -> Marks | None:
    """As `_marked`, of a tokenizer that covers its texts; None where a place is not as it should be."""
    trained, joined = np.zeros(len(tokens.ids), bool), np.zeros(len(found), bool)
    for i, (one, of_text) in enumerate(zip(found, spans, strict=True)):
        for first, last in of_text:
            begin, stop = one.char_to_token(first), one.char_to_token(last)
            if begin is None or first >= last:
                return None
            # No token holds the character behind the end of the text.
            stop = len(one) if stop is None else stop + (one.token_to_chars(stop)[0] < last)
            trained[tokens.at[i] + begin : tokens.at[i] + stop] = True
            joined[i] |= one.token_to_chars(begin)[0] < first
    return trained, joined


def _encoded(
    batch: Sequence[tuple[Text | str, tuple[int, ...]]], pieces: Sequence[Pieces], front: "_Front"
) -> Iterator[Encoded | str]:
    """Joins the tokens of rendered conversations, or says why one is left out.

    batch: texts, or reasons why there is none, and the ids to end each row with, when the template does not.
    """
    # All in bytes: a slice of an array takes ten times as long as one of these.
    found = iter(pieces)
    for text, after in batch:
        if isinstance(text, str):
            yield text
            continue
        of_text = [next(found) for _ in text.pieces]
        ids, trained = front.put(
            b"".join([one.ids for one in of_text]), b"".join([one.trained for one in of_text])
        )
        # What the template writes behind the last trained token, such as a line break, is never sampled.
        length = trained.rfind(1) + 1
        if not length:
            yield "empty response"
            continue
        notes = text.notes
        if any(one.joined for one in of_text):
            notes += (
                "a token joins prompt and response (row kept; data.generation_prompt=sampling parts them)",
            )
        ids, trained = ids[: 4 * length], trained[:length]
        if after:
            ids, trained = ids + np.array(after, np.int32).tobytes(), trained + bytes([1]) * len(after)
        yield _arrays(ids, trained, notes)


def _arrays(ids: bytes, trained: bytes, notes: tuple[str, ...]) -> Encoded:
    return Encoded(np.frombuffer(ids, np.int32), np.frombuffer(trained, np.bool_), notes)


def _marked(
    tokens: Tokens, spans: Sequence[list[Span]]
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " P"]]:
    """Which tokens of P texts hold a character of a text's spans; and in which text one joins prompt and response.

    One character is enough: a template's space before the text may be in the token. A byte-level tokenizer may leave
    spaces out of its offsets: a token of nothing but spaces then has no width, and what lies between it and the token
    before is its. No token of a sampled response could begin before it.
    """
    begin, stop = tokens.spans.T
    lengths = np.diff(tokens.at)
    text = np.repeat(np.arange(len(lengths)), lengths)
    # Where the token before each ends: a running maximum, as one without width may lie anywhere. Texts are kept apart
    # by numbers that no end within a text reaches.
    apart = text * (int(stop.max(initial=0)) + 1)
    before = np.concatenate([[0], np.maximum.accumulate(stop + apart)])[:-1] - apart
    wide = np.where(begin < stop, begin, np.minimum(begin, np.maximum(before, 0)))
    trained, joined = np.zeros((2, len(text)), bool)
    for which in zip_longest(*spans, fillvalue=(0, 0)):
        # Spans of one number, such as the second of each text; (0, 0), where a text has fewer, holds no character.
        first, last = np.array(which, np.int64)[text].T
        trained |= (stop > first) & (wide < last) & (wide < stop)
        joined |= (begin < first) & (stop > first)
    return trained, np.bincount(text[joined], minlength=len(lengths)) > 0


class _Front(NamedTuple):
    """What every row begins with: exactly one BOS, and beside it the prefix, if the tokenizer has them."""

    ids: bytes
    bos: bytes

    @classmethod
    def of(cls, tokenizer: Any) -> "_Front":
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return cls(*(np.array(ids, np.int32).tobytes() for ids in (heads(tokenizer), bos)))

    def put(self, ids: bytes, trained: bytes) -> tuple[bytes, bytes]:
        """The same tokens with that in front; both as `Pieces` has them."""
        if not self.ids:
            return ids, trained
        # Template and tokenizer may each write a BOS, so a row begins with none, one or two.
        at = 0
        while self.bos and ids.startswith(self.bos, at):
            at += len(self.bos)
        return self.ids + ids[at:], bytes(len(self.ids) // 4) + trained[at // 4 :]
