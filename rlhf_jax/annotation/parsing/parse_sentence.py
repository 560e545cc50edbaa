"""The parser of verdicts in sentences, such as "I prefer Output (a)."."""

import re

from rlhf_jax.annotation.answers.answers import CUT_OFF, OK, Answer
from rlhf_jax.annotation.parsing.contracts import Parsed, ParserSpec, failed, matches, verdicts
from rlhf_jax.annotation.parsing.numbers import in_order, split_number
from rlhf_jax.annotation.parsing.parse_pairs import choice

_LINE_CHARS = 200
_OUTPUT = r"outputs?\s{0,5}[*_]{0,2}\("
_NAMED = r"\b(?i:outputs?)\s{0,5}[*_]{0,2}\(NAME\)"
# All that a line says: the name, perhaps after "My final verdict is".
_CALLED = r"(?:verdict|answer|choice|preference|preferred|winner|best|better|decision|result)"
_LABEL = (
    rf"(?i:[\w ,*_]{{0,60}}\b{_CALLED}\b(?:\s(?:output|one))?(?:\s(?:is|would be))?[\s*_:=\"'`-]{{0,8}})?"
)
_VERDICT_LINE = rf"[\s\"'`*_(\[#-]{{0,12}}{_LABEL}{_NAMED[2:]}[\s\"'`*_)\].!]{{0,12}}"

_ANY_OUTPUT = re.compile(rf"\b{_OUTPUT}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
# Words with which a sentence about an output may speak for the other one: anywhere in it, or before its name.
_AGAINST = re.compile(
    r"\b(?:not|never|neither|nor|cannot|worse|worst|weaker|inferior|poorer|loses|lost|fails?|failed|reject(?:s|ed)?"
    r"|avoid|rather than|instead of|prefer(?:red|able)? to|superior to)\b|n[’']t\b"
    r"|\b(?:is|was) (?:bad|wrong|incorrect|false|harmful|unhelpful|useless|poor|beaten|less)\b"
    r"|\b(?:than|over|beats?|beaten by|outperforms?|unlike|except|without|but|although|though|if|unless|both|either"
    rf"|less|least)\b.{{0,40}}\b{_OUTPUT}",
    re.IGNORECASE,
)
# A sentence decides for an output when it says so, or when it says only its name and perhaps why.
_FOR = re.compile(
    r"\b(?:better|best|prefer(?:s|red|able)?|superior|winner|wins?|won|choose|chosen|chose|choice|pick(?:ed)?|select(?:ed)?"
    r"|stronger|strongest|favou?r(?:ed|s)?|beats|outperforms|surpasses|verdict|more \w{1,20}|go with|vote)\b",
    re.IGNORECASE,
)
_ONLY_NAMED = re.compile(
    rf"[\s\"'`*_(\[#:-]{{0,12}}(?:(?:so|thus|therefore|hence|overall|I think|I say|answer:|my answer:?),?\s)?"
    rf"{_OUTPUT}[^()]{{1,60}}\)[\s\"'`*_)\].!:,-]{{0,8}}(?:$|(?:because|since|as|due to|for|given)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
# What leaves it open, and what makes both alike.
_OPEN = re.compile(
    r"\?|\b(?:maybe|perhaps|possibly|might|could|would|should|equal(?:ly)?|ties?|tied|same|as \w{1,20} as|on par"
    r"|comparable|similar|second[- ]best|runner[- ]up|outperformed|surpassed)\b",
    re.IGNORECASE,
)
# A second thought, or a word for the one that has no name.
_TURNED = re.compile(
    r"\b(?:no,? wait|wait,? no|wait,|scratch that|on (?:second thought|reflection)|correction|changed? my mind"
    r"|actually,? no)\b"
    r"|\bthe other (?:one |output |response )?(?:is|was|wins|seems|comes|looks)\b",
    re.IGNORECASE,
)


def sentence(answer: Answer, spec: ParserSpec, n: int, k: int) -> list[Parsed]:
    """Read "Output (a)" in a sentence that decides for it, or as all that the last line says.

    It counts only if the other output is not named as well and nothing says that it is not the better one. Of several
    examples exactly one each. An answer that was cut off might yet have named the other: only the bare verdict counts.
    """
    if n == 1 and answer.finish_reason in CUT_OFF:
        return choice(answer, spec, n, k)
    lines = [split_number(line) for line in answer.text.splitlines() if line.strip()]
    named = [(i, matches(rest, spec, _NAMED)) for i, rest in lines]
    named = [(i, names) for i, names in named if names]
    what = '"Output (...)"'
    if n > 1:
        # A line that names two outputs is prose; its number then says nothing about whose verdicts they are.
        once = all(len(names) == 1 for _, names in named)
        numbered = [(i if once else None, name) for i, names in named for name in names]
        return verdicts(in_order(numbered, n), spec, n, what)
    said = [matches(rest, spec, _VERDICT_LINE, whole=True) for _, rest in lines if len(rest) <= _LINE_CHARS]
    bare = [names[0] for names in said if names]
    # When the last line is nothing but the verdict it decides, whatever sentences above say.
    if bare and len(lines[-1][1]) <= _LINE_CHARS and said[-1]:
        return verdicts(bare, spec, n, what)
    parsed = verdicts([name for _, names in named for name in names], spec, n, what)
    if parsed[0].status == OK and _doubted(answer.text):
        return [failed('"Output (...)" stands in no sentence that decides for it')]
    return parsed


def _doubted(text: str) -> bool:
    """Whether the sentences that name an output may mean that the other is better, or that none is."""
    if _TURNED.search(text):
        return True
    sentences = [one for one in _SENTENCE_END.split(text) if _ANY_OUTPUT.search(one)]
    if any(_AGAINST.search(one) for one in sentences):
        return True
    # One that decides is enough: others may describe the same output.
    return not any(
        _ONLY_NAMED.fullmatch(one) or (_FOR.search(one) and not _OPEN.search(one)) for one in sentences
    )
