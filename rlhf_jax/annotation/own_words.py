"""What a judge says itself, apart from what it thinks, quotes or repeats of the texts it was shown.

A verdict that stands in a quotation is somebody else's: of the outputs, which may ask for it, or of the prompt.
It is masked before any parser looks. Every pattern here reads each character a bounded number of times.
"""

import re
import unicodedata

from rlhf_jax.annotation.contracts import TAIL_CHARS, json_spans
from rlhf_jax.annotation.reported_speech import after_refusals, apologises, mask, reported

# Thoughts of reasoning models that their server left in the text. Only what follows them is the answer.
_OPEN = re.compile(
    r"\s{0,200}(?:<(?:think|thinking|thoughts?|reasoning|seed:think)\s?>|\[THINK\]|◁think▷|<\|channel\|>analysis"
    r"|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel>thought\b)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    r"</(?:think|thinking|thoughts?|reasoning|seed:think)\s?>|\[/THINK\]|◁/think▷|<\|channel\|>final(?:<\|message\|>)?"
    r"|<\|end_of_thought\|>|<\|END_THINKING\|>|<channel\|>",
    re.IGNORECASE,
)
_END_TOKENS = re.compile(
    r"(?:\s{0,9}(?:<\|[a-z][a-z_]{1,30}\|>|</s>|<end_of_turn>|<eos>|<[|｜]end▁of▁sentence[|｜]>)){1,4}\s{0,9}\Z",
    re.I,
)
_DICTS = re.compile(r"\[[^\[\]]{0,500}\]")
_PLACE = 0xE000  # Private characters stand for what is kept as it is while quotations are looked for.
_PLACES = 6400
_PRIVATE = re.compile("[\ue000-\uf8ff]")

_BLOCK_QUOTE = re.compile(r"^[ \t]{0,3}>.*$", re.MULTILINE)
_QUOTED = re.compile(
    r"\"[^\"\n]{1,2000}\"|“[^“”\n]{1,2000}”|„[^„“”\n]{1,2000}[“”]|«[^«»\n]{1,2000}»|``[^`\n]{1,2000}``"
    r"|`[^`\n]{1,2000}`|(?<!\w)'[^'\n]{1,2000}'(?!\w)|(?<!\w)‘[^‘\n]{1,2000}’(?!\w)"
)
# A quotation that is all its line says, or that follows the judge's own "my verdict is", is its verdict dressed.
_OWN_BEFORE = re.compile(
    r"(?:[\w ,*_]{0,60}\b(?:rating|score|grade|verdict|answer|choice|preference|preferred|winner|best|better|decision"
    r"|ranking|order|result)\b[\w ]{0,20})?[\s*_#:=([{-]{0,20}",
    re.IGNORECASE,
)
_OWN_AFTER = re.compile(r"[\s*_.!)\]}]{0,20}")


def split_thoughts(text: str) -> tuple[str, str]:
    """The thoughts that a reasoning model wrote before its answer, and the answer.

    Thoughts begin the text; some templates open them in the prompt, so that only their end is seen, at the end of a
    line. Thoughts that never end have no answer behind them.
    """
    opened = _OPEN.match(text)
    closed = [match for match in _CLOSE.finditer(text) if opened or _ends_line(text, match)]
    if closed:
        start = opened.end() if opened else 0
        return text[start : closed[-1].start()].strip(), text[closed[-1].end() :]
    return (text[opened.end() :].strip(), "") if opened else ("", text)


def _ends_line(text: str, match: re.Match) -> bool:
    return text[match.end() : match.end() + 20].split("\n", 1)[0].strip() == ""


def own_words(text: str, *, reports: bool = False) -> str:
    """`text` with what it quotes or reports masked by characters no verdict has; digits are ASCII.

    Of a long text only the last part is kept, from the beginning of a line. JSON objects and lists stay as they
    are, unless they are themselves quoted. reports: whether reported speech stays.
    """
    if len(text) > TAIL_CHARS:
        text = text[-TAIL_CHARS:]
        text = text[text.find("\n") + 1 :] if "\n" in text else mask(text[:200]) + text[200:]
    text = _plain(text)
    text, kept = _hold(_PRIVATE.sub("\ufffd", text))
    text = _BLOCK_QUOTE.sub("", text)
    text = _QUOTED.sub(_masked_quotation, text)
    text = text if reports else reported(text)
    return _PRIVATE.sub(lambda match: kept[ord(match.group()) - _PLACE], text)


def refusal_in(own: str) -> str | None:
    """What stands behind the last sentence of the judge's own words that declines to judge; None without one.

    JSON objects and lists are verdicts or parts of them: what their texts say declines nothing.
    """
    text, kept = _hold(own)
    rest = after_refusals(text)
    return None if rest is None else _PRIVATE.sub(lambda match: kept[ord(match.group()) - _PLACE], rest)


def declined(text: str, own: str) -> bool:
    """Whether an answer in which no verdict could be read declines to judge; `own`: its own words."""
    return apologises(own) or refusal_in(own_words(text, reports=True)) is not None


def without_end_token(text: str) -> str:
    """`text` without the token that ended it, which some servers leave; behind "<s>", "</s>" is HTML."""
    end = _END_TOKENS.search(text)
    return text if end is None or "<s>" in text else text[: end.start()]


def _plain(text: str) -> str:
    """Full-width letters and any script's digits as ASCII, so that "５" and "＞" are read as 5 and >; without
    what nobody sees."""
    text = without_end_token(text)
    if text.isascii():
        return text
    return "".join(_plain_character(c) for c in text)


def _plain_character(c: str) -> str:
    if c.isascii():
        return c
    if "\uff01" <= c <= "\uff5e":
        return chr(ord(c) - 0xFEE0)
    if unicodedata.category(c) == "Cf":  # Marks of direction, joiners, a file's first mark: nobody sees them.
        return ""
    digit = unicodedata.decimal(c, None)
    return c if digit is None else str(digit)


def _hold(text: str) -> tuple[str, list[str]]:
    """The text with a private character for each JSON object and list of its own, and what these stand for."""
    spans = [(start, end) for start, end, _ in json_spans(text)]
    pieces, kept, done = [], [], 0
    for start, end in _disjoint(spans + [match.span() for match in _DICTS.finditer(text)]):
        if len(kept) == _PLACES:
            break
        pieces += [text[done:start], chr(_PLACE + len(kept))]
        kept.append(text[start:end])
        done = end
    return "".join([*pieces, text[done:]]), kept


def _disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans that begin outside the ones before them, in order."""
    made: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not made or start >= made[-1][1]:
            made.append((start, end))
    return made


def _masked_quotation(match: re.Match) -> str:
    text, (start, end) = match.string, match.span()
    before = text[max(0, start - 200) : start].rpartition("\n")[2]
    after = text[end : end + 200].partition("\n")[0]
    if _OWN_BEFORE.fullmatch(before) and _OWN_AFTER.fullmatch(after):
        return match.group()
    return mask(match.group())
