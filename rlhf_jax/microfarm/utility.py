"""The known human utility of the embedded world: how good a response truly is, in [0, 1].

    utility = 0.24 correctness + 0.12 completeness + 0.20 format + 0.27 tone + 0.17 length

  correctness   share of the answers a response claims that are right; a right claim repeated is one claim
  completeness  share of the answers asked for that are there
  format        list: items on marked lines; sentence: whole, with a capital and a full stop; no stray words
  tone          0.5 when plain; courtesy counts once at each end, by its warmth; each rude remark costs 0.5
  length        1 at what is needed, 0.97, 0.92 and 0.58 at one, two and eight words more; fillers and
                repetitions count twice; shortness costs in proportion

What is right is read from the instruction itself (`families.parse`). An instruction from outside the world is
scored by generic features of the text instead, so that every function here is defined on all strings.
Trainers never call this module: only the simulated human, the local judges (with biased weights and noise)
and the evaluation do.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rlhf_jax.microfarm.families import parse
from rlhf_jax.microfarm.grammar import Task
from rlhf_jax.microfarm.lexicon import NUMBER_WORDS, NUMBERS
from rlhf_jax.microfarm.style import Manners, manners

# They add up to 1, so that the utility lies in [0, 1].
WEIGHTS: dict[str, float] = {
    "correctness": 0.24,
    "completeness": 0.12,
    "format": 0.20,
    "tone": 0.27,
    "length": 0.17,
}
# Plain is the middle of the scale, so that courtesy can gain and rudeness can lose.
_PLAIN_TONE = 0.5
_RUDE_COST = 0.5
_WORD = re.compile(r"[A-Za-z]+|\d+")
# A list mark counts only with white space and text behind it: "-5" and a lone "4." are no list items.
_MARK = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+(?=\S)", re.MULTILINE)
_NUMBER_MARK = re.compile(r"^[ \t]*\d+[.)][ \t]+", re.MULTILINE)
# A sentence or a line, with the signs that end it, so that the kept ones can be joined again.
_UNIT = re.compile(r"[^.!?\n]+[.!?\n]*")
# Words that fit in an answer to anything.
_GLUE = frozenset(
    (
        "the",
        "a",
        "an",
        "is",
        "are",
        "it",
        "in",
        "of",
        "and",
        "to",
        "here",
        "there",
        "these",
        "this",
        "that",
        "i",
        "you",
        "answer",
        "yes",
        "no",
        "not",
        "be",
    )
)


@dataclass(frozen=True)
class Features:
    """The features of a response. The five named in `WEIGHTS` lie in [0, 1]; the rest are counts and flags.

    Attributes:
      n_words: all words. n_needed: words a good answer needs (0 for an instruction from outside the world).
      n_claims: answers the response claims. n_courteous, n_rude: courtesies and rude remarks.
      n_filler: words in fillers. n_repeated: words in repeated sentences or lines.
      has_list: at least two marked lines. family: instruction family, "" for one from outside the world.
    """

    correctness: float
    completeness: float
    format: float
    tone: float
    length: float
    n_words: int
    n_needed: int = 0
    n_claims: int = 0
    n_courteous: int = 0
    n_rude: int = 0
    n_filler: int = 0
    n_repeated: int = 0
    has_list: bool = False
    family: str = ""

    def score(self, weights: dict[str, float] = WEIGHTS) -> float:
        """Weighted mean of the five graded features, in [0, 1]; by default the utility."""
        total = sum(weight * getattr(self, name) for name, weight in weights.items())
        return total / sum(weights.values())


def utility(instruction: str, input: str, response: str) -> float:
    """Return how good `response` is, in [0, 1]. See the module docstring for the formula.

    `input` may be empty, also when it stands in `instruction` after an empty line. Never raises on text.
    """
    return features(instruction, input or "", response).score()


# Humans, judges and the evaluation all ask about the same responses.
@lru_cache(maxsize=16384)
def features(instruction: str, input: str, response: str) -> Features:
    """Compute the graded features and counts of `response` as an answer to `instruction` with `input`."""
    # Courtesies, fillers and repetitions go first, so that what is left can be compared with the answer.
    seen = manners(response)
    text, n_repeated = _without_repetitions(seen.core)
    counts = {
        "n_words": len(_WORD.findall(response)),
        "n_courteous": seen.n_courteous,
        "n_rude": seen.n_rude,
        "n_filler": seen.filler_words,
        "n_repeated": n_repeated,
        "has_list": len(_MARK.findall(response)) >= 2,
    }
    tone = min(1.0, max(0.0, _PLAIN_TONE + seen.warmth - _RUDE_COST * seen.n_rude))
    task = parse(instruction, input)
    if task is None:
        return _generic(instruction, input, response, tone, counts)
    claims = _claims(task, text)
    correctness, completeness = _content(task, claims)
    words = _WORD.findall(text)
    shortest, longest = _needed(task)
    return Features(
        correctness=correctness,
        completeness=completeness,
        format=_format(task, response, text, words, claims, shortest),
        # Courtesy without an answer earns no tone; otherwise "Sure!" alone would score.
        tone=tone if words else 0.0,
        length=_length(task, seen, n_repeated, len(words), counts["n_words"]),
        n_needed=longest,
        n_claims=len(claims),
        family=task.family,
        **counts,
    )


def _without_repetitions(text: str) -> tuple[str, int]:
    """`text` with each sentence or line once, and the number of words that went."""
    kept, seen, dropped = [], set(), 0
    for unit in _UNIT.findall(text):
        words = _WORD.findall(unit)
        key = " ".join(words).lower()
        # A word may rightly recur on its own: two lines of a list may both be "4".
        if len(words) > 1 and key in seen:
            dropped += len(words)
            continue
        seen.add(key)
        kept.append(unit)
    return "".join(kept), dropped


def _claims(task: Task, text: str) -> list[str]:
    """List the words of `text` that claim to be answers, in order, without words of the question."""
    # The numbers of a numbered list would count as claims where the answers are numbers. A single mark may be
    # the answer itself.
    if len(_NUMBER_MARK.findall(text)) >= 2:
        text = _NUMBER_MARK.sub("", text)
    words = _WORD.findall(text)
    if not task.cased:
        words = [word.lower() for word in words]
    universe = _universe(task)
    # Where the answers are numbers, "four" claims the same as "4". The first test only saves time.
    if "0" in universe and set(NUMBERS) <= universe:
        words = [NUMBER_WORDS.get(word, word) for word in words]
    claims = [word for word in words if word in universe]
    if task.cased and not claims and words and words[-1].upper() in universe:
        # The response is all in lower case, where "a" may be the article; a letter at the end is the answer.
        claims = [words[-1].upper()]
    return _without_echo(task, claims)


@lru_cache(maxsize=4096)
def _universe(task: Task) -> frozenset[str]:
    return task.universe if task.cased else frozenset(word.lower() for word in task.universe)


def _without_echo(task: Task, claims: list[str]) -> list[str]:
    """Drop each word of the question once, but never the claim itself, which stands at the anchor's end.

    "8 minus 4 is 8." repeats 8 and 4 from the question and then claims 8; the last word is the claim. "A
    horse is bigger than a plum." claims the first.
    """
    kept = list(claims)
    for word in task.echo:
        free = kept[: -task.count] if task.anchor == "last" else kept[task.count :]
        if word in free:
            at = free.index(word) + (0 if task.anchor == "last" else task.count)
            del kept[at]
    return kept


def _content(task: Task, claims: list[str]) -> tuple[float, float]:
    """Return (correctness, completeness) of the claims, each in [0, 1]."""
    if not claims:
        return 0.0, 0.0
    answers = task.answers if task.cased else tuple(answer.lower() for answer in task.answers)
    if task.ordered:
        # One answer missing or too many must not make all those after it wrong, so positions are not
        # compared.
        hits = _common_subsequence(claims, answers)
    else:
        # More right answers than asked for earn nothing; they only lower the correctness.
        hits = min(task.count, len(set(claims) & set(answers)))
    return hits / len(claims), hits / task.count


def _common_subsequence(one: list[str], two: tuple[str, ...]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(two) + 1)
    for a in one:
        previous = 0
        for j, b in enumerate(two, 1):
            previous, row[j] = row[j], previous + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]


@lru_cache(maxsize=4096)
def _needed(task: Task) -> tuple[int, int]:
    """Words of a good answer without courtesies: (shortest, longest). A list may have a lead-in line."""
    # "{0}" counts as one word, the one that it stands for.
    sizes = [len(_WORD.findall(pattern)) for pattern in task.patterns]
    if task.shape == "list":
        return task.count, task.count + max(sizes)
    return min(sizes), max(sizes)


@lru_cache(maxsize=4096)
def _frame(task: Task) -> frozenset[str]:
    """All words that fit in an answer to `task`, in lower case, right or wrong."""
    words = _WORD.findall(" ".join((*task.patterns, *(w for w, _ in task.wrong_wordings), *task.universe)))
    return frozenset(word.lower() for word in (*words, *task.echo)) | _GLUE


def _format(
    task: Task, response: str, text: str, words: list[str], claims: list[str], shortest: int
) -> float:
    if not words:
        return 0.0
    end = response.rstrip()
    # Beginning and end are those of the whole response: a courtesy may open or close it well.
    begins_well = end.lstrip()[:1].isupper() or bool(_MARK.match(response))
    if task.shape == "list":
        marked = sum(bool(_MARK.match(line)) for line in text.split("\n"))
        on_lines = min(1.0, marked / max(1, len(claims))) if claims else 0.0
        score = 0.7 * on_lines + 0.15 * begins_well + 0.15 * (end[-1] not in ",:;-")
    else:
        whole = min(1.0, len(words) / shortest)
        score = 0.4 * whole + 0.25 * begins_well + 0.35 * (end[-1] in ".!?")
        # Nobody asked for a list.
        score -= 0.3 * bool(_MARK.search(text))
    # Words from outside the task scale the score down, or a well-set text about something else would pass.
    fitting = sum(word.lower() in _frame(task) for word in words) / len(words)
    return max(0.0, score * fitting)


def _length(task: Task, seen: Manners, n_repeated: int, n_core: int, n_words: int) -> float:
    if not n_core:
        return 0.0
    shortest, longest = _needed(task)
    # A list's lead-in line is allowed but not required. Of a sentence's wordings the shortest is the measure,
    # so that every further word costs.
    needed = longest if task.shape == "list" else shortest
    excess = max(0, n_words - seen.courteous_words - needed) + seen.filler_words + n_repeated
    # The power 1.5 forgives one extra word (0.97) and still punishes eight (0.58).
    return min(1.0, n_core / shortest) / (1 + (excess / 10) ** 1.5)


def _generic(instruction: str, input: str, response: str, tone: float, counts: dict[str, int]) -> Features:
    """Features of an answer to an instruction from outside the world: on topic, long enough, well formed."""
    # Any alphabet here, unlike `_WORD`: the instruction may be in any language.
    words = re.findall(r"\w+", response.lower())
    if not words:
        return Features(0.0, 0.0, 0.0, 0.0, 0.0, **counts)
    # Longer words stand for the subject, since they are rarely articles and pronouns. Half of them suffice.
    subject = {word for word in re.findall(r"\w+", f"{instruction} {input}".lower()) if len(word) > 3}
    touched = len(subject & set(words)) / len(subject) if subject else 0.5
    end = response.rstrip()
    excess = max(0, len(words) - 150) + counts["n_repeated"] + counts["n_filler"]
    return Features(
        correctness=0.4 + 0.6 * min(1.0, 2 * touched),
        completeness=len(words) / (len(words) + 15),
        format=0.4 * (not end.lstrip()[:1].islower()) + 0.6 * (end[-1] in '.!?"`)}]' or counts["has_list"]),
        tone=tone,
        length=1 / (1 + (excess / 100) ** 1.5),
        **counts,
    )
