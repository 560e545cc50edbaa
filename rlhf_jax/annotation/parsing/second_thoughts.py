"""Words around a verdict that deny it, take it back, or say that it is not about the case at hand.

A verdict that is denied before any other one was only mentioned. Behind an accepted verdict, a denied one or words
that turn it around leave two readings, and so none. Every pattern reads a bounded part of the text, or each character
a bounded number of times.
"""

import re
from collections.abc import Sequence

# Takes the place of what is no running text. No pattern of a verdict matches it, so the parts around it cannot join.
HOLLOW = "\ufffc"

_CLAUSES = re.compile(r"[.!?;,\n{}]|\bbut\b")
_DENIES = re.compile(
    r"\b(?:not|never|cannot|without|no|hardly|far from|(?:reverse|opposite|inverse) of)\b|n[’']t\b",
    re.IGNORECASE,
)
_RETRACTS = r"(?:scratch|scrap|strike|forget) (?:that|it)"
# "No, ...", "No wait", "No - ...", but neither "No output is perfect" nor "No. 1".
_NO = r"no(?:\s?[,:;!]|\s[-–—]|\.?[ \t]{0,3}$|\.\s[a-z]|,?\s(?:wait|sorry|i mean))"
# At the beginning of a sentence or of a remark, and anywhere.
_TURNED_BACK = re.compile(
    rf"(?:^|[.!?:;,(]|\s[-–—])[\s*_(]{{0,6}}(?:{_NO}|wait\b|hmm|oops|{_RETRACTS}|i meant?\b|sorry,? (?:no|wait|i)\b)"
    r"|(?:^|[.!?;(]|\s[-–—])[\s*_(]{0,6}(?:actually\b|edit(?:ed)?\s?:|(?:correction|update)\s?[:,–—]|revis(?:ed|ion)\b"
    r"|on (?:second thought|reflection|reconsideration)|after reconsider|let me (?:revise|correct|reconsider)"
    r"|(?:swap|switch|reverse) (?:the|them|that|it)\b)"
    rf"|\b(?:no,? wait|wait,? no|{_RETRACTS}|takes? (?:it|that) back|other way (?:a)?round"
    r"|chang(?:e|ed|ing) my (?:mind|verdict|rat|rank|answer|choice|vote|pref|order)"
    r"|i (?:hereby )?(?:revise|retract|withdraw)|the (?:reverse|opposite|inverse)(?=\s?(?:[.!,;\n]|$|is\b|order\b)))",
    re.IGNORECASE | re.MULTILINE,
)

_SENTENCES = re.compile(r"[.!?;\n]|\bbut\b")
# How far before and behind a number its sentence is looked at.
_BEFORE, _BEHIND = 120, 40
_NOT_THIS_CASE = re.compile(
    # "If it had sources, I would ...", but "if I had to choose, I would ..." chooses.
    r"(?<!even )\b(?:if|unless|had it)\b(?! (?:I|we) (?:had|have|must|were|need|can|may)\b)"
    r".*(?:\b(?:would|could|might)\b|[’']d\b)"
    r"|\bfor (?:example|instance)\b"
    r"|\b(?:other|another|reference|ideal|perfect|flawless|typical) (?:response|output|answer|text|one|model|candidate)"
    r"s?[\s:]{1,3}(?:would |should |also ){0,2}(?:deserve|earn|merit|get|receive|is|be)s?\b"
    r"|\b(?:deduct|subtract|minus|los(?:e|es|ing)|almost|nearly|not quite|close to|short of)\b[^,]{0,20}\Z",
    re.IGNORECASE,
)
# "A rating of 7 would be too generous", but one that "would be fair" is given.
_SPEAKS_OF_IT = re.compile(
    r"[ \t*_`\"')\]}]{0,6}(?:(?:stars?|points?)\s)?(?:would|could|might|requires?|needs|means?|stands for|indicates"
    r"|is (?:for|reserved|given|meant|too)|denotes|represents)\b"
    r"(?! be (?:appropriate|fair|fitting|right|suitable|reasonable|accurate|justified|correct|adequate|my)\b)",
    re.IGNORECASE,
)


def denied(text: str, start: int, reach: int = 14) -> bool:
    """Return whether the words before `start`, or the `reach` characters after it, deny the verdict there."""
    # Only the clause that the verdict stands in: "this is not perfect. Rating: 6" denies nothing.
    before = _CLAUSES.split(text[max(0, start - 40) : start + reach])[-1]
    return _DENIES.search(before) is not None


def turned_back(text: str, after: int) -> bool:
    """Return whether something in `text` behind `after` takes a verdict back, or turns it around."""
    return _TURNED_BACK.search(text, after) is not None


def hypothetical(text: str, start: int, end: int) -> bool:
    """Return whether the sentence around a number at `start` to `end` speaks of another case, or of the number."""
    before = _SENTENCES.split(text[max(0, start - _BEFORE) : start])[-1]
    return (
        _NOT_THIS_CASE.search(before) is not None
        or _SPEAKS_OF_IT.match(text[end : end + _BEHIND]) is not None
    )


def hollowed(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` with everything in `spans`, which are in order, replaced; all places stay where they are."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [text[done:start], HOLLOW * (end - max(start, done))]
        done = max(done, end)
    return "".join([*pieces, text[done:]])
