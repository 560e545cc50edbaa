"""A bound on the time of a user's regular expression: patterns that could take more than seconds are refused.

Python's engine backtracks, and the ways in which the parts of a pattern can match at one place multiply. A bounded
repetition has as many as its bounds allow, an endless one (`*`, `+`) as many as the text has characters. At most one
endless repetition is allowed, beside few enough bounded ones, so that a search takes a bounded number of steps.
"""

# The parser of the re module itself: a pattern is read exactly as it will run. It has no public name.
from re import _constants as ops
from re import _parser as parser

_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
# Ways to match at one place, without and with an endless repetition beside them.
_MOST_WAYS = 1_000
_MOST_WAYS_ENDLESS = 20
# Characters, from the end, that a pattern with an endless repetition is searched in.
ENDLESS_CHARS = 4_000


def ways(pattern: str) -> tuple[int, int]:
    """Count a pattern's endless repetitions, and the ways in which the rest can match at one place.

    Errors: ValueError that says what cannot be bounded; re.error for what is no pattern.
    """
    return _sequence(parser.parse(pattern))


def cost_problem(pattern: str) -> str:
    """Say what makes a pattern too slow in the worst case, and the way out; "" when nothing does."""
    try:
        endless, finite = ways(pattern)
    except ValueError as error:
        return str(error)
    if endless > 1:
        return f"{endless} endless repetitions; give all but one an end, as in \\s{{0,20}}"
    if finite > (_MOST_WAYS_ENDLESS if endless else _MOST_WAYS):
        return f"its repetitions can match in {finite:,} ways; give them smaller bounds"
    return ""


def is_endless(pattern: str) -> bool:
    """Return whether a pattern has a repetition without an end."""
    return ways(pattern)[0] > 0


def _sequence(items: object) -> tuple[int, int]:
    endless, finite = 0, 1
    for op, value in items:
        more, factor = _one(op, value)
        # Capped: products of nested bounds become integers of thousands of digits.
        endless, finite = endless + more, min(finite * factor, 10**9)
    return endless, finite


def _one(op: object, value: object) -> tuple[int, int]:
    # What a group matched is known at run time only, so its length has no bound here.
    if op in (ops.GROUPREF, ops.GROUPREF_EXISTS, ops.GROUPREF_IGNORE):
        raise ValueError("a reference to a group; write out what it may be")
    if op in _REPEATS:
        return _repeat(*value)
    if op is ops.BRANCH:
        branches = [_sequence(branch) for branch in value[1]]
        return max(endless for endless, _ in branches), sum(finite for _, finite in branches)
    if op is ops.SUBPATTERN:
        return _sequence(value[-1])
    if op is ops.ATOMIC_GROUP:
        return _sequence(value)
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return _sequence(value[1])
    return 0, 1


def _repeat(least: int, most: int, items: object) -> tuple[int, int]:
    endless, finite = _sequence(items)
    if most == 1:
        return endless, finite + 1
    # (a+)+ and the like: exponential, the classical trap.
    if endless:
        raise ValueError("a repetition inside an endless one or around one; repeat single characters only")
    if most is ops.MAXREPEAT or most > _MOST_WAYS:
        if len(items) != 1 or finite != 1 or items[0][0] is ops.BRANCH:
            raise ValueError("an endless repetition of a group; give it an end, as in (...){0,5}")
        return 1, 1
    return 0, min((most - least + 1) * finite**most, 10**9)
