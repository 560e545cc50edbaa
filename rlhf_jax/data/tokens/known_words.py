"""Tokens of texts, put together from those of their words, each of which is tokenised once.

A tokenizer of the byte-level kind cuts a text into pieces before it makes tokens of each. All patterns in `_CUTTING`
cut in front of a space behind anything that is none: no match of theirs holds such a space but as its first
character, and none looks at what is before it, or at what is behind it where it ends with a character that is no
space. A special token is cut out before that. So the tokens of a text are those of its words, each with the space
before it, one after the other; and most words of a file have been there before. Any other tokenizer is asked for
whole texts, and so is this one for texts that may not be cut.
"""

import json
import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple

# What stands at a beginning or an end that is no space: of a text or of a special token. Noncharacters, which Unicode
# reserves for internal use; a text that holds one is not cut.
_BEGIN, _END = "\ufdd3", "\ufdd4"
# Words that are remembered, in about 15 MiB; of more the half that came first stays, which has the frequent ones.
_MOST = 1 << 16
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTTING = {
    # GPT-2, and all that have no pattern of their own.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3, then Qwen 2 and later.
    rf"{_WORD}\p{{N}}{{1,3}}{_REST}",
    rf"{_WORD}\p{{N}}{_REST}",
    # Our own, see `tokenizer_files`.
    r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|\s",
}
# What a text's spans are: those of its characters that are trained, in their order.
Span = tuple[int, int]


class Pieces(NamedTuple):
    """A text's tokens, as the bytes of int32 ids; a byte a token, 1 where it is trained; and whether a token lies on
    the border of what is not trained and what is."""

    ids: bytes
    trained: bytes
    joined: bool


class _Cut(NamedTuple):
    """The words of a text, in runs; between two of these lies a word of which a span begins or ends within."""

    runs: list[list[str]]
    borders: list[tuple[str, str]]


class KnownWords:
    """The words that have been tokenised so far, of one tokenizer that must not change meanwhile."""

    def __init__(self, encode: Callable[..., list], specials: Sequence[str], *, normal: bool) -> None:
        """encode: (texts, spans=whether offsets are wanted) -> encodings of the Rust tokenizer.

        specials: tokens that are cut out of texts.
        normal: whether texts have to be in Unicode's normal form C for the tokenizer to take them as they are.
        """
        self._encode, self._normal, self._tokens = encode, normal, specials
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        # A word without its space -> the bytes of its ids; None where the next word belongs to it.
        self._words: dict[str, bytes | None] = {}
        # The two halves of a word on a border -> its ids, tokens before the border, whether one lies on it.
        self._borders: dict[tuple[str, str], tuple[bytes, int, bool] | None] = {}

    @classmethod
    def of(cls, tokenizer: Any, encode: Callable[..., list], *, read_specials: bool) -> "KnownWords | None":
        """None for a tokenizer whose texts must not be cut. encode: as above, with special tokens read if said so."""
        added = list(tokenizer.backend_tokenizer.get_added_tokens_decoder().values())
        # Some take the spaces beside them along, or hold one.
        if any(x.lstrip or x.rstrip or x.single_word or " " in x.content for x in added):
            return None
        if not _cuts_at_spaces(tokenizer.backend_tokenizer):
            return None
        texts = [x.content for x in added]
        cut = [x.content for x in added if x.special and not any(_overlap(x.content, y) for y in texts)]
        normal = tokenizer.backend_tokenizer.normalizer is not None
        return cls(encode, cut if read_specials else (), normal=normal)

    def state(self) -> tuple[list[str], bool, dict, dict]:
        """All but the tokenizer, for another process."""
        return [*self._tokens], self._normal, self._words, self._borders

    def forget(self) -> None:
        """Starts anew, with no word known."""
        self._words, self._borders = {}, {}

    @classmethod
    def from_state(
        cls, encode: Callable[..., list], state: tuple[list[str], bool, dict, dict]
    ) -> "KnownWords":
        """What has that state, with a tokenizer of this process."""
        made = cls(encode, state[0], normal=state[1])
        made._words, made._borders = state[2:]
        return made

    def agrees(self, texts: Sequence[str], spans: Sequence[Sequence[Span]], wanted: Sequence[Pieces]) -> bool:
        """Whether texts come out as the tokenizer itself has said, those that may not be cut apart."""
        found = self.pieces(texts, spans)
        return all(x in (None, y) for x, y in zip(found, wanted, strict=True))

    def pieces(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Pieces | None]:
        """The tokens of each text, and which of them hold a character of its spans; None where it may not be cut."""
        if len(self._words) > _MOST:
            self._words = dict(islice(self._words.items(), _MOST // 2))
        if len(self._borders) > _MOST:
            self._borders = {}
        # Any choice of tokens is right; those that a template writes stand in every text of it.
        written = (self._specials.findall(text) for text in texts[:4]) if self._specials else ()
        cuts = list(dict.fromkeys(chain.from_iterable(written)))[:8]
        cut = [self._cut(text, of_text, cuts) for text, of_text in zip(texts, spans, strict=True)]
        found = [None if x is None else self._joined(x) for x in cut]
        # Those with words that are new come again when these are known, and then those of which some words do not
        # stand alone, as in code: these are put together with those behind them.
        for changed in (None, self._merged):
            again = [i for i, x in enumerate(found) if x is None and cut[i] is not None]
            for i in again if changed else ():
                cut[i] = changed(cut[i])
            self._learn([cut[i] for i in again])
            for i in again:
                found[i] = self._joined(cut[i])
        return found

    def _cut(self, text: str, spans: Sequence[Span], cuts: Sequence[str]) -> _Cut | None:
        if _BEGIN in text or _END in text:
            return None
        if self._normal and not unicodedata.is_normalized("NFC", text):
            return None
        runs, at = [], 0
        ends = [*chain.from_iterable(spans), len(text)]
        for stop in ends:
            part = text[at:stop]
            for token in cuts:
                part = part.replace(token, f"{_END} {_BEGIN}{token}")
            runs.append(part)
            at = stop
        runs[0] = _BEGIN + runs[0]
        runs[-1] += _END
        words = [part.split(" ") for part in runs]
        borders = []
        for before, after in pairwise(words):
            # A run of one word would lie on two borders.
            if not before or not after:
                return None
            borders.append((before.pop(), after.pop(0)))
        return _Cut(words, borders)

    def _learn(self, cut: Sequence[_Cut]) -> None:
        new = list(set().union(*(run for x in cut for run in x.runs)).difference(self._words))
        alone = [word for word in new if _stands_alone(word)]
        self._words |= dict.fromkeys(new)
        found = self._encode([_text(word) for word in alone], spans=False)
        self._words |= {word: _bytes(one.ids) for word, one in zip(alone, found, strict=True)}
        halves = {key for x in cut for key in x.borders if key not in self._borders}
        self._borders |= dict.fromkeys(halves)
        keys = [key for key in halves if _stands_alone("".join(key))]
        found = self._encode([_text("".join(key)) for key in keys], spans=True)
        for key, one in zip(keys, found, strict=True):
            place = len(_text(key[0]))
            first = one.char_to_token(place)
            # Nothing of the word lies behind the border.
            if first is None:
                self._borders[key] = _bytes(one.ids), len(one), False
            else:
                self._borders[key] = _bytes(one.ids), first, one.token_to_chars(first)[0] < place

    def _joined(self, cut: _Cut) -> Pieces | None:
        words = self._words
        # A word that is not known has no bytes, nor has one that does not stand alone.
        with suppress(KeyError, TypeError):
            ids = b"".join(map(words.__getitem__, cut.runs[0]))
            if not cut.borders:
                return Pieces(ids, bytes(len(ids) // 4), False)
            parts, trained, joined, before = [ids], [], False, len(ids) // 4
            for i, (key, run) in enumerate(zip(cut.borders, cut.runs[1:], strict=True)):
                of_border, first, inside = self._borders[key]
                ids = b"".join(map(words.__getitem__, run))
                begins = i % 2 == 0
                joined |= begins and inside
                # A token of which one character is trained is trained.
                first += inside and not begins
                trained.append((b"\0" if begins else b"\1") * (before + first))
                before = len(of_border) // 4 - first + len(ids) // 4
                parts += (of_border, ids)
            trained.append(bytes(before))
            return Pieces(b"".join(parts), b"".join(trained), joined)
        return None

    def _merged(self, cut: _Cut) -> _Cut:
        runs, borders = [], []
        for i, run in enumerate(cut.runs):
            words, waiting = [], ""
            for word in run:
                waiting += word
                if self._words.get(word) is None and not _stands_alone(waiting):
                    waiting += " "
                else:
                    words.append(waiting)
                    waiting = ""
            runs.append(words)
            if i < len(cut.borders):
                borders.append((waiting + cut.borders[i][0], cut.borders[i][1]))
        return _Cut(runs, borders)


def _stands_alone(word: str) -> bool:
    """Whether what follows a word, which is a space, is cut off it: behind a space it need not be."""
    core = word.removeprefix(_BEGIN)
    return core.endswith(_END) or (not core[-1].isspace() if core else core != word)


def _text(word: str) -> str:
    return word[1:].removesuffix(_END) if word.startswith(_BEGIN) else f" {word.removesuffix(_END)}"


def _bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _cuts_at_spaces(backend: Any) -> bool:
    """Whether a Rust tokenizer is one of those that this module is for, its added tokens apart."""
    # A part of a tokenizer that was written in Python has no such text, and raises what it likes.
    with suppress(Exception):
        split = json.loads(backend.pre_tokenizer.__getstate__())
        steps = split.get("pretokenizers", [split])
        level = steps[-1]
        patterns = [x["pattern"].get("Regex") for x in steps if x["type"] == "Split"]
        kinds = [x["type"] for x in steps[:-1]]
        normal = backend.normalizer is None or type(backend.normalizer).__name__ == "NFC"
        return (
            type(backend.model).__name__ == "BPE"
            and not backend.model.dropout
            and normal
            and level["type"] == "ByteLevel"
            and not level["add_prefix_space"]
            and set(kinds) <= {"Split", "Digits"}
            and all(x["behavior"] == "Isolated" and not x["invert"] for x in steps if x["type"] == "Split")
            and set(patterns) <= _CUTTING
            and (bool(patterns) or level["use_regex"])
        )
    return False


def _overlap(one: str, other: str) -> bool:
    """Whether two tokens could take characters from each other, wherever they stand in a text."""
    if one == other:
        return False
    ends = range(1, min(len(one), len(other)))
    return one in other or other in one or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in ends)
