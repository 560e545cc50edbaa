"""The types that parsers share (`ParserSpec`, `Parsed`), and helpers to search an answer for names and JSON."""

import ast
import functools
import json
import math
import re
import sys
from dataclasses import dataclass

from rlhf_jax.annotation.answers.answers import OK, PARSE_ERROR

PAIRWISE, RATING, RANKING, COMPLETION = KINDS = ("pairwise", "rating", "ranking", "completion")

# How the two orders of a pair are used; configs/judges/README.md says what each does.
ORDERS = SEEDED, BOTH_AVERAGE, BOTH_AGREE, BOTH_TWO_GAMES = (
    *("seeded", "both_average", "both_agree", "both_two_games"),
)

# Longer answers are searched in this many characters from their end, where a verdict stands.
TAIL_CHARS = 20_000


@dataclass(frozen=True)
class ParserSpec:
    """How to read an answer; `parsing.PARSERS` lists the names, configs/judges/README.md what each reads.

    first, second: the names by which an answer may mean the first and the second output shown (for logprob:
        the exact tokens whose probabilities are added).
    min_mass: logprob and decision: below this total probability on the known answers the row is low_mass.
    position: logprob only; index of the generated token that holds the verdict (-1 is the last one).
    key: cot_json and order only; the JSON field with the outputs, best first.
    patterns: regex only; for the first output, the second and, if given, a tie.
    low, high, whole: the ends of a rating scale, both allowed, and whether a rating must be a whole number.
    aspects, reduce: ratings only; the criteria rated, and "sum" or "mean" over them.
    levels: decision of a rating only; the scale's numbers as text.
    allow_cut: text only; whether a completion that hit the token limit is kept.
    """

    name: str
    first: tuple[str, ...] = ("a",)
    second: tuple[str, ...] = ("b",)
    min_mass: float = 0.9
    position: int = 0
    key: str = "ordered"
    patterns: tuple[str, ...] = ()
    low: float = 1.0
    high: float = 7.0
    whole: bool = True
    aspects: tuple[str, ...] = ()
    reduce: str = "sum"
    levels: tuple[str, ...] = ()
    allow_cut: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer says about one example, or why it says nothing.

    preference: in [1, 2] (1: the first output shown is better) or None. mass: probability on known answers.
    strong: whether the judge calls it a clear case, None where its form knows no degrees.
    rating, aspects: on the parser's scale. ranks: of each output in the order shown, 1 is best, equal is a
    tie. text: a completion. explanation: what the judge said before its verdict, where the form has a place
    for it.
    """

    preference: float | None
    status: str
    detail: str = ""
    mass: float | None = None
    rating: float | None = None
    aspects: tuple[tuple[str, float], ...] = ()
    ranks: tuple[int, ...] | None = None
    text: str | None = None
    explanation: str | None = None
    strong: bool | None = None


def failed(detail: str, status: str = PARSE_ERROR, mass: float | None = None) -> Parsed:
    """Make the result of an answer that gives no label, with the reason."""
    return Parsed(None, status, detail, mass)


def verdicts(sides: list[str], spec: ParserSpec, n: int, what: str) -> list[Parsed]:
    """Turn names into one verdict per example. A single verdict may be repeated; several must be exactly as many.

    sides: the names found, in the order of the answer.
    """
    values = [1.0 if side in spec.first else 2.0 for side in sides]
    # A judge often repeats its verdict ("Output (a) ... so Output (a)"). Of several examples a repetition
    # cannot be told from a verdict on the next.
    if n == 1 and len(set(values)) == 1:
        return [Parsed(values[0], OK)]
    if n > 1 and len(values) == n:
        return [Parsed(value, OK) for value in values]
    return wrong_count(len(values), n, what)


def wrong_count(found: int, n: int, what: str) -> list[Parsed]:
    """Mark all examples of a request as unreadable, since its verdicts cannot be told apart."""
    if n == 1:
        return [failed(f"more than one {what} in the answer" if found else f"no {what} in the answer")]
    return [failed(f"found {found} of {what} in the answer to {n} examples")] * n


@functools.lru_cache(maxsize=64)
def _name_pattern(spec: ParserSpec, pattern: str) -> tuple[re.Pattern, dict[str, str]]:
    """`pattern` with NAME replaced by the spec's names. Case counts only where it tells them apart."""
    names = spec.first + spec.second
    folded = {name.casefold(): name for name in names}
    # AlpacaEval's weighted judges call the outputs m and M.
    flags = re.IGNORECASE if len(folded) == len(set(names)) else 0
    # An alternation takes the first name that fits: "a" would match the beginning of "ab".
    longest_first = sorted(names, key=len, reverse=True)
    filled = pattern.replace("NAME", "(" + "|".join(map(re.escape, longest_first)) + ")")
    return re.compile(filled, flags | re.MULTILINE), folded if flags else {name: name for name in names}


def matches(text: str, spec: ParserSpec, pattern: str, *, whole: bool = False) -> list[str]:
    """Find names by `pattern`, in which NAME stands for any of them; `whole`: it must match all of `text`."""
    compiled, canonical = _name_pattern(spec, pattern)
    if whole:
        match = compiled.fullmatch(text)
        found = [match.group(1)] if match else []
    else:
        found = [match.group(1) for match in compiled.finditer(text)]
    return [canonical.get(name) or canonical[name.casefold()] for name in found]


def logsumexp(values: list[float]) -> float:
    """Compute log(sum(exp(values))), -inf for no values."""
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))


def json_spans(text: str) -> list[tuple[int, int, dict]]:
    """Find every outermost JSON object in `text`: its start, end and value.

    Objects with line breaks in their strings, or written as Python dicts, are read too. A key with two different
    values has neither, but TWO_VALUES.
    """
    # strict=False allows line breaks in strings, which models write. Each failed attempt may scan the rest of
    # the text, so that without a bound a text of "{" takes quadratic time.
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_once_each)
    found, place = [], text.find("{")
    for attempt in range(200):
        if place < 0:
            break
        try:
            value, end = decoder.raw_decode(text, place)
            found.append((place, end, value))
        except (ValueError, RecursionError):
            value, end = _python_dict(text, place) if attempt < _MOST_DICTS else (None, place + 1)
            if value is not None:
                found.append((place, end, value))
        place = text.find("{", end)
    return found


class _TwoValues:
    def __repr__(self) -> str:
        return "two values of one key"


# Stands for the value of a key that an object gives twice, differently: no parser can read it.
TWO_VALUES = _TwoValues()


def _once_each(pairs: list[tuple[str, object]]) -> dict:
    made: dict = {}
    for key, value in pairs:
        made[key] = value if key not in made or made[key] == value else TWO_VALUES
    return made


# Judges that are asked for JSON at times answer with a Python dict. Looking for one is dearer than for JSON.
_MOST_DICTS, _DICT_CHARS = 20, 1_000


def _python_dict(text: str, start: int) -> tuple[dict | None, int]:
    """A dict as Python writes it, with single quotes or a comma before its end, and where it ends."""
    end = start
    for _ in range(3):
        end = text.find("}", end, start + _DICT_CHARS) + 1
        if not end:
            break
        value = literal(text[start:end])
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value, end
    return None, start + 1


def json_objects(text: str) -> list[dict]:
    """Find every outermost JSON object in `text`."""
    return [value for _, _, value in json_spans(text)]


def literal(text: str) -> object:
    """Parse a Python literal, None when `text` is none, or has a dict with two values of one key."""
    try:
        # Never eval: the text is written by a model that has read untrusted outputs.
        tree = ast.parse(text.lstrip(" \t"), mode="eval")
        return None if any(map(_has_two_values, ast.walk(tree))) else ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _has_two_values(node: ast.AST) -> bool:
    if not isinstance(node, ast.Dict):
        return False
    keys = [ast.dump(key) for key in node.keys if key is not None]
    if len(set(keys)) == len(keys):
        return False
    pairs = zip(node.keys, node.values, strict=True)
    return len({(ast.dump(key), ast.dump(value)) for key, value in pairs if key is not None}) > len(set(keys))


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number and no bool; a whole number must be within the range of floats."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # False for NaN and infinity, and no OverflowError for whole numbers that no float can hold.
    return abs(value) <= sys.float_info.max
