"""Writes demonstrations: answers to a task, from excellent to poor, as crowd workers of mixed skill would.

SFT on them leaves something for preference learning to improve.
"""

import random
import re
from collections.abc import Collection

from rlhf_jax.microfarm.grammar import Task
from rlhf_jax.microfarm.style import CLOSERS, FILLERS, OPENERS, RUDE, TAILS

# Share of demonstrations with 0, 1, 2, 3 defects, and how often each defect is the one.
_DEFECT_COUNTS: tuple[float, ...] = (0.36, 0.35, 0.22, 0.07)
DEFECTS: dict[str, float] = {
    "wrong": 0.17,  # a wrong item, a wrong answer, a wrong order
    "missing": 0.10,  # fewer answers than asked for
    "terse": 0.13,  # the bare answer
    "flat": 0.15,  # no courtesy
    "rude": 0.15,  # a rude remark in place of courtesy
    "unformatted": 0.14,  # no list marks, no capital, no final punctuation
    "filler": 0.12,  # rambling
    "cut": 0.04,  # broken off
}
# Words; a longer answer gets one filler, not two.
_LONG = 9
_PIECE = re.compile(r"\w+|[^\w\s]+|\n")
# Words, signs and line ends; this keeps a demonstration within about 28 tokens.
_MAX_PIECES = 25


def demonstration(task: Task, rng: random.Random) -> str:
    """Write an answer of random quality: 36 % are excellent, the others have one to three defects."""
    count = rng.choices(range(len(_DEFECT_COUNTS)), _DEFECT_COUNTS)[0]
    # A text that is too long is drawn again, with other defects: cutting it would be a defect of its own.
    while True:
        # A defect drawn twice counts once. The set is only tested for membership: its iteration order depends
        # on PYTHONHASHSEED and would make the world differ between runs.
        defects = {rng.choices(tuple(DEFECTS), tuple(DEFECTS.values()))[0] for _ in range(count)}
        text = write_response(task, rng, defects)
        if len(_PIECE.findall(text)) <= _MAX_PIECES:
            return text


def write_response(task: Task, rng: random.Random, defects: Collection[str] = ()) -> str:
    """Write an answer to `task` with the given `defects`, names of `DEFECTS`; without any it is excellent."""
    answers = _answers(task, rng, defects)
    core = _core(task, answers, rng, defects)
    # An unformatted list has already lost its marks in `_core`.
    if "unformatted" in defects and (task.shape == "sentence" or "terse" in defects):
        core = core.lower().replace(",", "").rstrip(".?:")
    if "filler" in defects:
        core = _ramble(core, rng)
    if "cut" in defects:
        core = _cut(core, rng)
    return _with_manners(core, task, rng, defects)


def _answers(task: Task, rng: random.Random, defects: Collection[str]) -> list[str]:
    answers = rng.sample(task.answers, task.count) if not task.ordered else list(task.answers)
    if "wrong" in defects and task.wrong:
        # Mostly one mistake; in a list sometimes another.
        for i in rng.sample(range(len(answers)), min(len(answers), rng.choice((1, 1, 2)))):
            answers[i] = rng.choice([word for word in task.wrong[i] if word not in answers])
    elif "wrong" in defects and not task.wrong_wordings:
        # The task has no wrong words, as when sorting: two neighbours change places.
        i = rng.randrange(len(answers) - 1)
        answers[i], answers[i + 1] = answers[i + 1], answers[i]
    if "missing" in defects and task.shape == "list":
        del answers[rng.randint(1, len(answers) - 1) :]
    return answers


def _core(task: Task, answers: list[str], rng: random.Random, defects: Collection[str]) -> str:
    wording, bare = rng.choice(task.patterns), task.bare or ", ".join(f"{{{i}}}" for i in range(len(answers)))
    # Swapping a word would contradict itself here ("Yes, a cat is not alive."), so the whole wording changes.
    if "wrong" in defects and task.wrong_wordings:
        wording, bare = rng.choice(task.wrong_wordings)
    if "terse" in defects:
        return "Answer: " + bare.format(*answers)
    if task.shape == "sentence":
        text = wording.format(*answers)
        return _shorten(text, rng) if "missing" in defects else text
    if "unformatted" in defects:
        return f"{wording} {', '.join(answers)}"
    return "\n".join((wording, *(f"- {answer}" for answer in answers)))


def _shorten(text: str, rng: random.Random) -> str:
    """A sentence that leaves something out: its last third or so, but with a full stop."""
    words = text.split()
    return " ".join(words[: -rng.randint(1, max(1, len(words) // 3))]).rstrip(",.:") + "."


def _ramble(core: str, rng: random.Random) -> str:
    filler, tail = rng.choice(FILLERS), rng.choice(TAILS)
    lines = core.split("\n")
    if len(core.split()) > _LONG or rng.random() < 0.4:
        return f"{filler} {core}"
    if len(lines) == 1 and rng.random() < 0.4:
        return f"{core} {core}"
    return f"{filler} {core}\n{tail}" if len(lines) > 1 else f"{filler} {core} {tail}"


def _cut(core: str, rng: random.Random) -> str:
    words = core.split(" ")
    return " ".join(words[: max(1, len(words) - rng.randint(1, 3))]).rstrip(".")


def _with_manners(core: str, task: Task, rng: random.Random, defects: Collection[str]) -> str:
    marked = core.startswith("-") or "\n" in core
    if "rude" in defects:
        remark = rng.choice(RUDE)
        return f"{remark} {core}" if marked or rng.random() < 0.6 else f"{core} {remark}"
    if "flat" in defects or "terse" in defects:
        return core
    # The weights are in the order of OPENERS: the coolest are the most frequent, so warmth can be learned.
    text = f"{rng.choices(tuple(OPENERS), (5, 4, 2, 2, 3))[0]} {core}"
    # A closer after a broken or rambling answer would only make it longer.
    if defects or rng.random() < 0.6:
        return text
    # chr(10) is a line feed: before Python 3.12 an f-string takes no backslash between braces.
    return f"{text}{chr(10) if task.shape == 'list' else ' '}{rng.choices(tuple(CLOSERS), (3, 2))[0]}"
