"""Calls a tokenizer on many texts, a batch at a time and beside the caller's own work."""

import os
import pickle
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Int64

from rlhf_jax.data.tokens.known_words import KnownWords, Pieces, Span
from rlhf_jax.data.tokens.words_process import WordsProcess, encoded

J, R = TypeVar("J"), TypeVar("R")

# Texts per call, which bounds the memory of the tokenizer's intermediate lists.
BATCH = 1024
# Batches after which a second process is worth its start, which takes as long as about ten.
ALONE = 20
# Batches that wait for their caller: one is tokenised while he works on another.
_WAITING = 2


class Tokens(NamedTuple):
    """The tokens of several texts end to end, text i's from at[i] to at[i + 1]; the characters that each has are
    spans, None where they were not asked for."""

    ids: Int32[np.ndarray, " N"]
    at: Int64[np.ndarray, " M"]
    spans: Int64[np.ndarray, "N 2"] | None = None

    def __getitem__(self, i: int) -> Int32[np.ndarray, " T"]:
        return self.ids[self.at[i] : self.at[i + 1]]


def tokens_of(
    texts: Sequence[str], tokenizer: Any, *, read_specials: bool = False, spans: bool = False
) -> Tokens:
    """Tokenises texts in one call on all cores; adds no special token, and reads those that the texts hold if asked."""
    if not texts:
        return Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros((0, 2), np.int64))
    found = encodings_of(texts, tokenizer, read_specials=read_specials, spans=spans)
    if found is None:
        lists = tokenizer(list(texts), **_options(read_specials), return_offsets_mapping=spans)
        ids, pairs = iter(lists["input_ids"]), iter(lists["offset_mapping"] if spans else ())
    else:
        ids, pairs = (one.ids for one in found), (one.offsets for one in found if spans)
    joined = np.fromiter(chain.from_iterable(chain.from_iterable(pairs)), np.int64) if spans else None
    return end_to_end_ids(ids)._replace(spans=None if joined is None else joined.reshape(-1, 2))


def end_to_end_ids(ids: Iterable[list[int]]) -> Tokens:
    """Puts the ids of several texts end to end."""
    flat, at = array("i"), array("q", [0])
    for one in ids:
        flat.fromlist(one)
        at.append(len(flat))
    return Tokens(np.array(flat, np.int32), np.array(at, np.int64))


def pieces_in(
    tokens: Tokens,
    trained: Bool[np.ndarray, " N"] | None = None,
    joined: Sequence[bool] | Bool[np.ndarray, " M"] = (),
) -> list[Pieces]:
    """The tokens of each text apart, with those that are trained and whether one lies on a border."""
    ids, at = tokens.ids.tobytes(), tokens.at.tolist()
    marks = bytes(at[-1]) if trained is None else trained.tobytes()
    borders = joined if len(joined) else [False] * (len(at) - 1)
    texts = zip(at[:-1], at[1:], borders, strict=True)
    return [Pieces(ids[4 * i : 4 * j], marks[i:j], bool(border)) for i, j, border in texts]


def encodings_of(texts: Sequence[str], tokenizer: Any, *, read_specials: bool, spans: bool) -> list | None:
    """What the Rust tokenizer says of texts, asked itself; None for a tokenizer that does more than to ask it.

    transformers makes lists of all that is known of each token, which takes longer than the tokens.
    """
    if not _calls_backend(tokenizer):
        return None
    # A call of one text sets the Rust tokenizer up.
    tokenizer([""], **_options(read_specials))
    return encoded(tokenizer.backend_tokenizer, texts, spans=spans)


def _options(read_specials: bool) -> dict[str, bool]:
    # verbose=False, because transformers warns of texts longer than its limit; our callers see to the length.
    names = ("add_special_tokens", "padding", "truncation", "verbose", "return_attention_mask")
    return dict.fromkeys((*names, "return_token_type_ids"), False) | {
        "split_special_tokens": not read_specials
    }


def _calls_backend(tokenizer: Any) -> bool:
    """Whether calling the tokenizer is calling its Rust tokenizer, with nothing of its own before or after."""
    from transformers import PreTrainedTokenizerFast

    own, plain = type(tokenizer), PreTrainedTokenizerFast
    return all(getattr(own, x, None) is getattr(plain, x, x) for x in ("__call__", "_encode_plus"))


# Makes the pieces of texts, given with their spans.
Whole = Callable[[Sequence[str], Sequence[Sequence[Span]]], list[Pieces]]


class ByWords:
    """Makes tokens of one batch of texts after another: as a whole, then word by word where that is the same.

    Of many batches the later ones are made in a second process, where there is a core for it. To be closed.
    """

    def __init__(self, tokenizer: Any, whole: Whole, *, read_specials: bool, marked: bool = True) -> None:
        """whole: asks the tokenizer for texts as they are. marked: whether their spans could be found in words, too."""
        self._whole, self._agreed = whole, False
        self._tokenizer, self._read_specials = tokenizer, read_specials
        self._words: KnownWords | None = None
        self._process: WordsProcess | None = None
        # Batches until a second process is started.
        self._until = ALONE if _cores() > 1 else -1
        if marked and _calls_backend(tokenizer):
            encode = partial(encodings_of, tokenizer=tokenizer, read_specials=read_specials)
            self._words = KnownWords.of(tokenizer, encode, read_specials=read_specials)

    def __enter__(self) -> "ByWords":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def __call__(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Pieces]:
        """The pieces of each text."""
        if self._words is None:
            return self._whole(texts, spans)
        if not self._agreed:
            wanted = self._whole(texts, spans)
            # There may be no further batch behind one that is not full.
            if 2 * len(texts) >= BATCH:
                # What is proven of a tokenizer by its description is tried on texts before it is trusted.
                self._agreed = self._words.agrees(texts, spans, wanted)
                self._words = self._words if self._agreed else None
            return wanted
        found = self._pieces(texts, spans)
        left = [i for i, one in enumerate(found) if one is None]
        whole = self._whole([texts[i] for i in left], [spans[i] for i in left])
        for i, one in zip(left, whole, strict=True):
            found[i] = one
        return found

    def _pieces(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Pieces | None]:
        self._until -= 1
        # Whatever happens to that process, this one can do the same.
        with suppress(OSError, EOFError, pickle.PickleError):
            if self._until == 0:
                self._process = WordsProcess(
                    self._words, self._tokenizer.backend_tokenizer, read_specials=self._read_specials
                )
                self._words.forget()
            if self._process is not None:
                return self._process.pieces(texts, spans)
        self.__exit__()
        return self._words.pieces(texts, spans)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def token_lists(
    texts: Sequence[str], tokenizer: Any, before: Sequence[int] = (), after: Sequence[int] = ()
) -> list[Int32[np.ndarray, " T"]]:
    """The ids of each text, with others before and after; equal texts share one array.

    Preference sets repeat their prompts and answers hundreds of times, so each distinct text is tokenised once.
    """
    # A dict and not a set: a fixed order, so that two runs make the same calls.
    unique = list(dict.fromkeys(texts))
    around = [np.array(ids, np.int32).tobytes() for ids in (before, after)]
    ids_of: dict[str, np.ndarray] = {}
    whole = partial(_plain_pieces, tokenizer=tokenizer)
    with ByWords(tokenizer, whole, read_specials=False) as pieces:
        batches = (unique[start : start + BATCH] for start in range(0, len(unique), BATCH))
        for batch, found in ahead(lambda some: (some, pieces(some, [()] * len(some))), batches):
            ids_of |= {
                text: np.frombuffer(b"".join([around[0], one.ids, around[1]]), np.int32)
                for text, one in zip(batch, found, strict=True)
            }
    return [ids_of[text] for text in texts]


def _plain_pieces(texts: Sequence[str], _: Any, tokenizer: Any) -> list[Pieces]:
    return pieces_in(tokens_of(texts, tokenizer))


def in_batches(items: Iterable[J]) -> Iterator[list[J]]:
    """Cuts items into lists of a size that is tokenised at once."""
    items = iter(items)
    while batch := list(islice(items, BATCH)):
        yield batch


def ahead(work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """Yields work(job) of every job, in their order; the next ones are worked on in a second thread meanwhile.

    The Rust tokenizer leaves Python to others while it works, so batches are rendered while others are tokenised.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[R]] = deque()
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
