"""The parser of Arena-Hard's five verdicts (Li et al. 2024): [[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]."""

from __future__ import annotations

import re

from rlhf_jax.annotation.answers.answers import OK, Answer
from rlhf_jax.annotation.parsing.contracts import Parsed, ParserSpec, failed, wrong_count
from rlhf_jax.annotation.parsing.said import Said, holding

# Verdict -> (preference, 1 where A is better, and whether it is "significantly" so). Both ways of writing it.
VERDICTS: dict[str, tuple[float, bool]] = {
    "A>>B": (1.0, True),
    "B<<A": (1.0, True),
    "A>B": (1.0, False),
    "B<A": (1.0, False),
    "A=B": (1.5, False),
    "B=A": (1.5, False),
    "A<B": (2.0, False),
    "B>A": (2.0, False),
    "A<<B": (2.0, True),
    "B>>A": (2.0, True),
}
_TWO_BRACKETS = re.compile(r"\[\[\s?([AB<>=]{1,8})\s?\]\]", re.IGNORECASE)
_ONE_BRACKET = re.compile(r"(?<!\[)\[([AB<>=]{3,8})\](?!\])", re.IGNORECASE)


def five_verdicts(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read the verdict in double brackets or, where there is none, in single ones, A being the output shown first.

    Different verdicts in one answer are unreadable, as in the first arena-hard-auto; its second version takes the last.
    """
    text = answer.text
    found = list(_TWO_BRACKETS.finditer(text)) or list(_ONE_BRACKET.finditer(text))
    said = [Said(*match.span(), match[1].upper()) for match in found]
    if wrong := next((one.value for one in said if one.value not in VERDICTS), None):
        return [failed(f"[[{wrong}]] is none of the five verdicts")]
    # Of one example; the parser is in ONE_EXAMPLE.
    kept, problem = holding(text, said, 1, [match.span() for match in found])
    if problem:
        return [failed(problem)]
    verdicts = {VERDICTS[one.value] for one in kept}
    if len(verdicts) != 1:
        return wrong_count(len(verdicts), 1, "verdict such as [[A>B]]")
    preference, strong = verdicts.pop()
    return [Parsed(preference, OK, strong=strong)]
