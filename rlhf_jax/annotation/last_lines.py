"""Ratings that nothing calls a rating, and ratings that are taken back: what stands at the end of an answer."""

import re

from rlhf_jax.annotation.contracts import json_objects
from rlhf_jax.annotation.numbers import NUMBER, STARTS

# "Answer: 5", "I'd say 5", "\boxed{5}", where no word says rating. "The answer is 5" may be about the task that was
# given, so it counts only where it is all that was said.
_LABEL = re.compile(
    r"(?:(?:so|thus|therefore|hence|overall),?\s)?(?:(?:the|my|final|overall)\s){0,2}"
    r"(?:answer|result|evaluation|assessment|judge?ment|conclusion|overall|quality|helpfulness)[*_]{0,2}\s?[:=]"
    r"[*_]{0,2}\s?"
    r"|(?:overall,\s)?(?:I(?:[’']d|[’']ll|\swould|\swill)?\s(?:say|go with|give|assign)|(?:it|this|that)(?:[’']s|\sis))"
    r"(?:\s(?:it|an?|with)){0,2}\s",
    re.IGNORECASE,
)
_IS_ALL = re.compile(r"(?:(?:the|my|final)\s){0,2}(?:answer|result)\sis[:\s]\s?", re.IGNORECASE)
_FRAMES = tuple(
    re.compile(frame, re.IGNORECASE)
    for frame in (
        r"\$?\\{1,2}boxed\{([^{}\n]{1,40})\}\$?\.?",
        r"\$([^$\n]{1,40})\$\.?",
        r"<(?:answer|final|result)>([^<>\n]{1,40})</(?:answer|final|result)>",
    )
)
_KEYS = ("answer", "result")
_AROUND = " \t\n*_#"
# "Rating: 5. Actually, 6."
_CORRECTED = re.compile(
    r"\b(?:wait|actually|on (?:second thought|reflection)|scratch that|correction|make (?:it|that))\b"
    rf"[^.!?\n\d]{{0,40}}?{STARTS}",
    re.IGNORECASE,
)
_CLAUSE_ENDS = re.compile(r"[\s*_`\"'\])}]{0,10}(?:[.!,;\n(/]|$)")


def answered(text: str) -> list[object]:
    """What the last line says is the answer: the text or the JSON values that should be a number; none otherwise."""
    line = text.strip().rpartition("\n")[2].strip(_AROUND)
    if line.startswith("{"):
        values = [one for one in json_objects(line) if line.endswith("}")]
        return [one[key] for one in values for key in one if key.casefold() in _KEYS]
    label = _LABEL.match(line) or (_IS_ALL.match(line) if line == text.strip(_AROUND) else None)
    rest = line[label.end() :] if label else line
    framed = next((match[1] for frame in _FRAMES if (match := frame.fullmatch(rest))), None)
    return [framed or rest] if framed or label else []


def taken_back(text: str) -> list[tuple[str, re.Match]]:
    """Words by which the judge corrects itself to another number, each with the match of NUMBER in `text`."""
    found = []
    for words in _CORRECTED.finditer(text):
        match = NUMBER.match(text, words.end())
        if match and _CLAUSE_ENDS.match(text, match.end()):
            found.append((" ".join(words.group().split()) + f" {match.group()}", match))
    return found
