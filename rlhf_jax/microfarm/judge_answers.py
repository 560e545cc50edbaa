"""What a judge says: the verdict of `judges` put into words, in the form the request asked for.

`answer` is a pure function of (judge, text, key, temperature, seed). It keeps the distribution behind every
verdict token, so that a protocol which reports log-probabilities can show it; other tokens are near certain.
"""

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlhf_jax.microfarm import judge_text, judges
from rlhf_jax.microfarm.families import parse
from rlhf_jax.microfarm.judges import Judge
from rlhf_jax.microfarm.writer import demonstration

Distribution = tuple[tuple[str, float], ...]  # (token, probability), most likely first

# Short letter runs, single signs, single white space: a verdict letter or digit is always a token of its own,
# with at most one leading space, as in the tokenizers of real chat models.
_TOKEN = re.compile(r" ?[^\W_]{1,8}| ?[^\w\s]|_|\s")

_NONSENSE = (
    "Both outputs are fine.",
    "Output (c)",
    "As a language model I have no preference.",
    "Neither.",
    "Could you clarify the question?",
    "{'winner': ???}",
    "",
)
_REFUSAL = "I'm sorry, but I can't help with comparing these outputs."
# May not hold a verdict by itself: no lone letter a or b, no "Output (x)", no digit.
_PREAMBLE = (
    "I read both outputs closely. They differ in how well they do what was asked and in how they say it."
)
_CONFUSED = "I could not find {missing} in your message. Could you paste the text I should judge?"

_OUTSIDE = "I do not know."

_REASONS = {
    "correctness": "answers more correctly",
    "completeness": "covers more of what was asked",
    "format": "keeps to the requested format",
    "tone": "has the better tone",
    "length": "has the better length",
    "longer": "goes into more detail",
    "lists": "is laid out more clearly",
    "polite": "is more polite",
    "other": "reads better",
}


@dataclass(frozen=True)
class Answer:
    """An answer's text; for each verdict in it, the offset of its token and the distribution behind it."""

    text: str
    verdicts: tuple[tuple[int, Distribution], ...] = ()
    refusal: str | None = None
    is_cut: bool = False

    @property
    def n_tokens(self) -> int:
        return count_tokens(self.refusal or self.text)

    def tokens(self) -> Iterator[tuple[str, Distribution]]:
        """Each token of the text with its distribution, which always holds the token itself."""
        verdicts = dict(self.verdicts)
        for match in _TOKEN.finditer(self.text):
            token = match.group()
            distribution = next((verdicts[at] for at in range(*match.span()) if at in verdicts), None)
            if distribution is None:
                yield token, ((token, 0.9998), ("\n" if token != "\n" else " ", 1e-4))
            else:
                space = " " if token.startswith(" ") else ""
                yield token, tuple((space + name, probability) for name, probability in distribution)

    def cut(self, max_tokens: int) -> "Answer":
        """The answer's first `max_tokens` tokens, marked as cut when that is not all of it."""
        ends = [match.end() for match in _TOKEN.finditer(self.text)]
        if len(ends) <= max_tokens:
            return self
        end = ends[max_tokens - 1]
        kept = tuple(verdict for verdict in self.verdicts if verdict[0] < end)
        return replace(self, text=self.text[:end], verdicts=kept, is_cut=True)


def count_tokens(text: str) -> int:
    """How many tokens the judges' tokenizer makes of `text`."""
    return len(_TOKEN.findall(text))


def answer(
    judge: Judge, text: str, *, key: str | None = None, temperature: float = 0.0, seed: int | None = None
) -> Answer:
    """What `judge` answers to a request whose text is `text`. The same arguments always give the same answer.

    key: all of the request's text, with the judge's own earlier turns; defaults to `text`.
    temperature: 0 answers with the likeliest token, above it draws from the tempered distribution with a
        uniform number made from (judge, key, seed); `seed` counts only then.
    """
    stamp = (judge.name, text if key is None else key)
    draw = stamp if temperature == 0 else (*stamp, f"seed {seed}")
    if judges.uniform(*draw, "nonsense") < judge.nonsense:
        return nonsense(*draw)
    task = judge_text.read(text)
    if isinstance(task, str):
        return Answer(_CONFUSED.format(missing=task))
    parts = []
    for k, example in enumerate(task.examples):
        if task.form == "order":
            parts.append(_order(judge, example, (*stamp, f"example {k}")))
            continue
        part_stamp, part_draw = (*stamp, f"example {k}"), (*draw, f"example {k}")
        if task.form == "rating":
            distribution = _rating(judge, example, task.scale, part_stamp)
        else:
            distribution = _choice(judge, example, part_stamp)
        token = _pick(distribution, temperature, judges.uniform(*part_draw, "pick"))
        parts.append(_SAY[task.form](judge, example, token, distribution))
    return _join(parts, task.form, judge.is_verbose)


def write(text: str, *stamp: str) -> Answer:
    """What the embedded world's writer answers to an instruction, a demonstration of random quality."""
    task = parse(text)
    if task is None:
        return Answer(_OUTSIDE)
    return Answer(demonstration(task, random.Random("\x1d".join((text, *stamp)))))


def nonsense(*stamp: str) -> Answer:
    """An answer without a verdict, the same one for the same stamp."""
    return Answer(_NONSENSE[int(judges.uniform(*stamp, "which") * len(_NONSENSE))])


def refuse() -> Answer:
    """A refusal: no text, and the reason in the field the protocol has for it."""
    return Answer("", refusal=_REFUSAL)


def _choice(judge: Judge, example: judge_text.Example, stamp: tuple[str, ...]) -> Distribution:
    p_b = judges.perceived_probability_b(
        judge, example.instruction, *example.outputs, judges.uniform(*stamp, "read")
    )
    rest = judge.stray
    mass = {"a": (1 - p_b) * (1 - rest), "b": p_b * (1 - rest), "Both": 0.5 * rest, "Output": 0.3 * rest}
    mass |= {"Neither": 0.2 * rest}
    return tuple(sorted(mass.items(), key=lambda item: -item[1]))


def _rating(
    judge: Judge, example: judge_text.Example, scale: tuple[int, int], stamp: tuple[str, ...]
) -> Distribution:
    share = judges.perceived_share(
        judge, example.instruction, example.outputs[0], judges.uniform(*stamp, "read")
    )
    low, high = scale
    centre, width = low + share * (high - low), judges.RATING_WIDTH * (high - low)
    mass = {str(k): math.exp(-0.5 * ((k - centre) / width) ** 2) + 1e-9 for k in range(low, high + 1)}
    total = sum(mass.values())
    return tuple(sorted(((k, m / total) for k, m in mass.items()), key=lambda item: -item[1]))


def _order(judge: Judge, example: judge_text.Example, stamp: tuple[str, ...]) -> Answer:
    """All outputs by their numbers, best first; each is read by itself, as for a rating."""

    def share(place: int) -> float:
        u = judges.uniform(*stamp, "read", str(place))
        return judges.perceived_share(judge, example.instruction, example.outputs[place], u)

    places = sorted(range(len(example.outputs)), key=share, reverse=True)
    return Answer(" > ".join(str(place + 1) for place in places))


def _pick(distribution: Distribution, temperature: float, u: float) -> str:
    """The likeliest verdict, or a draw from p^(1/T). Stray tokens show in log-probabilities, never drawn."""
    options = [(token, p) for token, p in distribution if token in ("a", "b") or token.isdigit()]
    if temperature == 0:
        return options[0][0]
    top = options[0][1]
    weights = [(p / top) ** (1 / temperature) for _, p in options]
    edge = u * sum(weights)
    for (token, _), weight in zip(options, weights, strict=True):
        edge -= weight
        if edge < 0:
            return token
    return options[-1][0]


def _say_plain(judge: Judge, example: judge_text.Example, token: str, distribution: Distribution) -> Answer:
    return Answer(token, ((0, distribution),))


def _say_sentence(
    judge: Judge, example: judge_text.Example, token: str, distribution: Distribution
) -> Answer:
    return Answer(f"Output ({token})", ((len("Output ("), distribution),))


def _say_json(judge: Judge, example: judge_text.Example, token: str, distribution: Distribution) -> Answer:
    reason = _REASONS[judges.main_reason(judge, example.instruction, *example.outputs, winner=token)]
    ordered = [token, "a" if token == "b" else "b"]
    text = json.dumps({"concise_explanation": f"Output ({token}) {reason}.", "ordered": ordered})
    return Answer(text, ((text.rindex("[") + 2, distribution),))


def _say_ranking(judge: Judge, example: judge_text.Example, token: str, distribution: Distribution) -> Answer:
    other = "a" if token == "b" else "b"
    text = str([{"model": token, "rank": 1}, {"model": other, "rank": 2}])
    return Answer(text, ((text.index(f"'{token}'") + 1, distribution),))


_SAY = {
    "choice": _say_plain,
    "sentence": _say_sentence,
    "cot_json": _say_json,
    "ranking": _say_ranking,
    "rating": _say_plain,
}


def _join(parts: list[Answer], form: str, is_verbose: bool) -> Answer:
    """One answer of all examples: a line each, numbered in the short forms, a JSON array of JSON objects.

    A verbose judge talks before its verdict, except where a single token was asked for.
    """
    before, after = "", ""
    if form == "cot_json":
        if is_verbose:
            before, after = "Here is my judgement:\n```json\n", "\n```"
        if len(parts) > 1:
            before, after = before + "[", "]" + after
    elif is_verbose and form in ("sentence", "ranking"):
        before = _PREAMBLE + "\n\n"
    text, verdicts = before, []
    for k, part in enumerate(parts):
        if k:
            text += ", " if form == "cot_json" else "\n"
        if len(parts) > 1 and form in ("choice", "sentence", "rating"):
            text += f"Example {k + 1}: "
        verdicts += [(len(text) + at, distribution) for at, distribution in part.verdicts]
        text += part.text
    return Answer(text + after, tuple(verdicts))
