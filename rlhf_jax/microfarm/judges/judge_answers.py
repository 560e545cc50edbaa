"""Writes a judge's answer: the verdict of `judge_eyes` in words, in the form that the request asked for.

`answer_question` is a pure function of (judge, text, key, temperature, seed). It keeps the distribution
behind every verdict token, so that a protocol which reports log-probabilities can show it; other tokens are
near certain.
"""

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlhf_jax.microfarm import human
from rlhf_jax.microfarm.families import parse
from rlhf_jax.microfarm.judges import judge_eyes, judge_text
from rlhf_jax.microfarm.judges.judge_eyes import WorldJudge
from rlhf_jax.microfarm.writer import demonstration, write_response

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


# The one that is no judge but one of the world's humans: it goes by the true utility, with a human's noise.
HUMAN = WorldJudge("micro-human", *10 * (0.0,), stray=0.0)
_HUMAN_SEED = 1_000_003
_ONLY_COMPARES = "I can say which of two outputs I like better, and no more."


@dataclass(frozen=True)
class JudgeAnswer:
    """An answer's text and, for each verdict in it, the token's offset and the distribution over tokens."""

    text: str
    verdicts: tuple[tuple[int, Distribution], ...] = ()
    refusal: str | None = None
    is_cut: bool = False

    @property
    def n_tokens(self) -> int:
        return count_tokens(self.refusal or self.text)

    def tokens(self) -> Iterator[tuple[str, Distribution]]:
        """Yield each token of the text with its distribution, which always includes the token itself."""
        verdicts = dict(self.verdicts)
        for match in _TOKEN.finditer(self.text):
            token = match.group()
            distribution = next((verdicts[at] for at in range(*match.span()) if at in verdicts), None)
            if distribution is None:
                yield token, ((token, 0.9998), ("\n" if token != "\n" else " ", 1e-4))
            else:
                # A verdict after a space is a token with that space, and so are the alternatives to it.
                space = " " if token.startswith(" ") else ""
                yield token, tuple((space + name, probability) for name, probability in distribution)

    def cut(self, max_tokens: int) -> "JudgeAnswer":
        """Return the answer's first `max_tokens` tokens, marked as cut when there were more."""
        ends = [match.end() for match in _TOKEN.finditer(self.text)]
        if len(ends) <= max_tokens:
            return self
        end = ends[max_tokens - 1]
        kept = tuple(verdict for verdict in self.verdicts if verdict[0] < end)
        return replace(self, text=self.text[:end], verdicts=kept, is_cut=True)


def count_tokens(text: str) -> int:
    """Count the tokens of `text` by the judges' own tokenizer, a regular expression."""
    return len(_TOKEN.findall(text))


def answer_question(
    judge: WorldJudge, text: str, *, key: str | None = None, temperature: float = 0.0, seed: int | None = None
) -> JudgeAnswer:
    """Answer, as `judge`, a request whose text is `text`. The same arguments always give the same answer.

    key: all of the request's text, with the judge's own earlier turns; defaults to `text`.
    temperature: 0 answers with the likeliest token, above it draws from the tempered distribution with a
        uniform number made from (judge, key, seed); `seed` counts only then.
    """
    stamp = (judge.name, text if key is None else key)
    # Two streams: the misreading depends on the request alone; what is drawn above temperature 0 also depends
    # on the seed.
    draw = stamp if temperature == 0 else (*stamp, f"seed {seed}")
    if judge_eyes.uniform(*draw, "nonsense") < judge.nonsense:
        return nonsense(*draw)
    task = judge_text.read_question(text)
    if isinstance(task, str):
        return JudgeAnswer(_CONFUSED.format(missing=task))
    if judge is HUMAN and task.form in ("rating", "order"):
        return JudgeAnswer(_ONLY_COMPARES)
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
        token = _pick(distribution, temperature, judge_eyes.uniform(*part_draw, "pick"))
        parts.append(_SAY[task.form](judge, example, token, distribution))
    return _join(parts, task.form, judge.is_verbose)


def write_answer(text: str, *stamp: str, excellent: bool = False) -> JudgeAnswer:
    """Answer an instruction of the embedded world with a demonstration: of random quality, unless `excellent`."""
    task = parse(text)
    if task is None:
        return JudgeAnswer(_OUTSIDE)
    rng = random.Random("\x1d".join((text, *stamp)))
    return JudgeAnswer(write_response(task, rng) if excellent else demonstration(task, rng))


def nonsense(*stamp: str) -> JudgeAnswer:
    """An answer without a verdict, the same one for the same stamp."""
    return JudgeAnswer(_NONSENSE[int(judge_eyes.uniform(*stamp, "which") * len(_NONSENSE))])


def refuse() -> JudgeAnswer:
    """A refusal: no text, and the reason in the field the protocol has for it."""
    return JudgeAnswer("", refusal=_REFUSAL)


def _choice(judge: WorldJudge, example: judge_text.Example, stamp: tuple[str, ...]) -> Distribution:
    if judge is HUMAN:
        # Another seed than that of the reports' human, whose labels these would otherwise be to the last one.
        p_b = float(human.prefer(example.instruction, "", *example.outputs, seed=_HUMAN_SEED) == 2)
    else:
        p_b = judge_eyes.perceived_probability_b(
            judge, example.instruction, *example.outputs, judge_eyes.uniform(*stamp, "read")
        )
    rest = judge.stray
    # A real model puts some mass on tokens that name no output. Clients have to renormalise over a and b.
    mass = {"a": (1 - p_b) * (1 - rest), "b": p_b * (1 - rest), "Both": 0.5 * rest, "Output": 0.3 * rest}
    mass |= {"Neither": 0.2 * rest}
    return tuple(sorted(mass.items(), key=lambda item: -item[1]))


def _rating(
    judge: WorldJudge, example: judge_text.Example, scale: tuple[int, int], stamp: tuple[str, ...]
) -> Distribution:
    share = judge_eyes.perceived_share(
        judge, example.instruction, example.outputs[0], judge_eyes.uniform(*stamp, "read")
    )
    low, high = scale
    centre, width = low + share * (high - low), judge_eyes.RATING_WIDTH * (high - low)
    mass = {str(k): math.exp(-0.5 * ((k - centre) / width) ** 2) + 1e-9 for k in range(low, high + 1)}
    total = sum(mass.values())
    return tuple(sorted(((k, m / total) for k, m in mass.items()), key=lambda item: -item[1]))


def _order(judge: WorldJudge, example: judge_text.Example, stamp: tuple[str, ...]) -> JudgeAnswer:
    """All outputs by their numbers, best first; each is read by itself, as for a rating."""

    def share(place: int) -> float:
        u = judge_eyes.uniform(*stamp, "read", str(place))
        return judge_eyes.perceived_share(judge, example.instruction, example.outputs[place], u)

    places = sorted(range(len(example.outputs)), key=share, reverse=True)
    return JudgeAnswer(" > ".join(str(place + 1) for place in places))


def _pick(distribution: Distribution, temperature: float, u: float) -> str:
    """Pick the likeliest verdict, or draw from p^(1/T). Stray tokens are reported but never drawn."""
    options = [(token, p) for token, p in distribution if token in ("a", "b") or token.isdigit()]
    if temperature == 0:
        return options[0][0]
    top = options[0][1]
    # Divided by the largest, the weights cannot all underflow to zero at a low temperature.
    weights = [(p / top) ** (1 / temperature) for _, p in options]
    edge = u * sum(weights)
    for (token, _), weight in zip(options, weights, strict=True):
        edge -= weight
        if edge < 0:
            return token
    # Only rounding errors lead here.
    return options[-1][0]


def _say_plain(
    judge: WorldJudge, example: judge_text.Example, token: str, distribution: Distribution
) -> JudgeAnswer:
    return JudgeAnswer(token, ((0, distribution),))


def _say_sentence(
    judge: WorldJudge, example: judge_text.Example, token: str, distribution: Distribution
) -> JudgeAnswer:
    return JudgeAnswer(f"Output ({token})", ((len("Output ("), distribution),))


def _say_json(
    judge: WorldJudge, example: judge_text.Example, token: str, distribution: Distribution
) -> JudgeAnswer:
    reason = _REASONS[judge_eyes.main_reason(judge, example.instruction, *example.outputs, winner=token)]
    ordered = [token, "a" if token == "b" else "b"]
    text = json.dumps({"concise_explanation": f"Output ({token}) {reason}.", "ordered": ordered})
    # The verdict is the first letter of the list, after its bracket and quotation mark.
    return JudgeAnswer(text, ((text.rindex("[") + 2, distribution),))


def _say_ranking(
    judge: WorldJudge, example: judge_text.Example, token: str, distribution: Distribution
) -> JudgeAnswer:
    other = "a" if token == "b" else "b"
    text = str([{"model": token, "rank": 1}, {"model": other, "rank": 2}])
    return JudgeAnswer(text, ((text.index(f"'{token}'") + 1, distribution),))


_SAY = {
    "choice": _say_plain,
    "sentence": _say_sentence,
    "cot_json": _say_json,
    "ranking": _say_ranking,
    "rating": _say_plain,
}


def _join(parts: list[JudgeAnswer], form: str, is_verbose: bool) -> JudgeAnswer:
    """Join the answers to all examples: a line each, numbered in the short forms; JSON becomes an array.

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
    return JudgeAnswer(text + after, tuple(verdicts))
