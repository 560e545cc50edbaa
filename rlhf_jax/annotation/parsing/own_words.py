"""The judge's own words: an answer without its thoughts, quotations and reports of the texts it was shown.

A verdict inside a quotation may come from the outputs, which can ask for it (prompt injection), or from the prompt.
It is masked before any parser looks. Every pattern here reads each character a bounded number of times.
"""

import re
import unicodedata

from rlhf_jax.annotation.parsing.contracts import TAIL_CHARS, json_spans

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
# End tokens of chat models that some servers leave in the text.
_END_TOKENS = re.compile(
    r"(?:\s{0,9}(?:<\|[a-z][a-z_]{1,30}\|>|</s>|<end_of_turn>|<eos>|<[|｜]end▁of▁sentence[|｜]>)){1,4}\s{0,9}\Z",
    re.I,
)
_DICTS = re.compile(r"\[[^\[\]]{0,500}\]")
# JSON is replaced by characters of Unicode's private use area (6,400) while quotations are looked for.
_PLACE = 0xE000
_PLACES = 6400
_PRIVATE = re.compile("[\ue000-\uf8ff]")

# Markdown's quoted lines.
_BLOCK_QUOTE = re.compile(r"^[ \t]{0,3}>.*$", re.MULTILINE)
# What is struck out.
_STRUCK = re.compile(r"~~[^~\n]{1,2000}~~")
_QUOTED = re.compile(
    r"\"[^\"\n]{1,2000}\"|“[^“”\n]{1,2000}”|„[^„“”\n]{1,2000}[“”]|«[^«»\n]{1,2000}»|``[^`\n]{1,2000}``"
    r"|`[^`\n]{1,2000}`|(?<!\w)'[^'\n]{1,2000}'(?!\w)|(?<!\w)‘[^‘\n]{1,2000}’(?!\w)"
)
# A quotation that is all its line says, or follows "my verdict is", is the judge's own verdict.
_OWN_BEFORE = re.compile(
    r"(?:[\w ,*_]{0,60}\b(?:rating|score|grade|verdict|answer|choice|preference|preferred|winner|best|better|decision"
    r"|ranking|order|result)\b[\w ]{0,20})?[\s*_#:=([{-]{0,20}",
    re.IGNORECASE,
)
_OWN_AFTER = re.compile(r"[\s*_.!)\]}]{0,20}")


def split_thoughts(text: str) -> tuple[str, str]:
    """Split a text into the thoughts that a reasoning model wrote before its answer, and the answer.

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
    """Mask what `text` quotes or reports by characters that no verdict contains; make its digits ASCII.

    Of a long text only the last part is kept, from the beginning of a line. JSON objects and lists stay as they
    are, unless they are themselves quoted. reports: whether reported speech stays.
    """
    if len(text) > TAIL_CHARS:
        text = text[-TAIL_CHARS:]
        # The cut may have lost an opening quotation mark: drop the rest of that line, or mask its beginning.
        text = text[text.find("\n") + 1 :] if "\n" in text else mask(text[:200]) + text[200:]
    text = _plain(text)
    # JSON is held back before quotations are masked, since its strings stand in quotation marks. Private
    # characters of the answer itself would be taken for placeholders, so they go first.
    text, kept = _hold(_PRIVATE.sub("\ufffd", text))
    text = _BLOCK_QUOTE.sub("", text)
    text = _STRUCK.sub(lambda match: mask(match.group()), text)
    text = _QUOTED.sub(_masked_quotation, text)
    text = text if reports else reported(text)
    return _PRIVATE.sub(lambda match: kept[ord(match.group()) - _PLACE], text)


def refusal_in(own: str) -> str | None:
    """Return what follows the last sentence of the judge's own words that declines to judge; None without one.

    JSON objects and lists are verdicts or parts of them: what their texts say declines nothing.
    """
    text, kept = _hold(own)
    rest = after_refusals(text)
    return None if rest is None else _PRIVATE.sub(lambda match: kept[ord(match.group()) - _PLACE], rest)


def declined(text: str, own: str) -> bool:
    """Return whether an answer without a readable verdict declines to judge; `own`: its own words."""
    return apologises(own) or refusal_in(own_words(text, reports=True)) is not None


def without_end_token(text: str) -> str:
    """Strip an end token that a server left in the text; after "<s>", "</s>" is HTML and stays."""
    end = _END_TOKENS.search(text)
    return text if end is None or "<s>" in text else text[: end.start()]


def _plain(text: str) -> str:
    """Full-width letters and the digits of any script as ASCII ("５" is read as 5), without invisible characters."""
    text = without_end_token(text)
    if text.isascii():
        return text
    return "".join(_plain_character(c) for c in text)


def _plain_character(c: str) -> str:
    if c.isascii():
        return c
    # The full-width forms of ! to ~ lie at a fixed distance.
    if "\uff01" <= c <= "\uff5e":
        return chr(ord(c) - 0xFEE0)
    # Marks of direction, joiners, byte order marks: invisible, but they would split a verdict.
    if unicodedata.category(c) == "Cf":
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
    """The spans that do not overlap, in order: the first of two that do, or the longer of two with one beginning."""
    made: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not made or start >= made[-1][1]:
            made.append((start, end))
    return made


def _masked_quotation(match: re.Match) -> str:
    text, (start, end) = match.string, match.span()
    # Within the line, and 200 characters at most, so that each quotation costs a bounded time.
    before = text[max(0, start - 200) : start].rpartition("\n")[2]
    after = text[end : end + 200].partition("\n")[0]
    if _OWN_BEFORE.fullmatch(before) and _OWN_AFTER.fullmatch(after):
        return match.group()
    return mask(match.group())


# Reported speech, in which a judge tells what a text says, and sentences in which it declines to judge.

_MASK = "\ufffc"
# How far behind a refusal to look for words that make it a judgment (`_PRAISE`).
_ABOUT = 80

# Who is quoted: the texts under judgment, their writers, or the prompt.
_SPEAKER = (
    r"(?:outputs?|responses?|answers?|texts?|completions?|instructions?|prompts?|authors?|writers?|models?|assistants?"
    r"|candidates?|examples?|messages?|passages?|snippets?|users?|materials?|contents?|systems?|others?|it|they|which"
    r"|who)"
)
_SAYS = (
    r"(?:says?|said|saying|demands?|demanded|demanding|ask(?:s|ed|ing)? (?:me|us|you|for)"
    r"|(?:tells?|told|telling) (?:me|us|you)|claims?|claimed|claiming"
    r"|instructs?|instructed|instructing|commands?|commanded|insists?|insisted|requests?|requested|orders? me"
    r"|ordered me|wants? me|wanted me|begs?|urges?|urged|states?|stated|stating|reads?|quotes?|quoted|writes?|wrote"
    r"|tr(?:y|ies|ied|ying) to (?:trick|make|get|persuade|force|fool|manipulate|coax)|tricks? me"
    r"|declares?|declared|announces?|suggests?|suggested|proposes?|pretends?|ends? with|begins? with|starts? with"
    r"|injects?|gives? itself|awards? itself|rates? itself|calls? itself|ranks? itself)"
)
_SPEECH = re.compile(
    rf"\b{_SPEAKER}\b[^.!?\n]{{0,40}}?\b{_SAYS}\b|\baccording to the {_SPEAKER}\b", re.IGNORECASE
)
# "Rating: 7 is what the output demands", "... says the output": what is said stands before.
_SAID_BEFORE = re.compile(
    rf"\b(?:is|was|are|were) (?:just |only |exactly )?what (?:the )?{_SPEAKER}\b"
    rf"|\b(?:says?|said|claims?|claimed|writes?|wrote|demands?|demanded) (?:the|this|that) {_SPEAKER}\b"
    # "I can't say that Output (a) is better" names it.
    r"(?!\s?[*_]{0,2}\()",
    re.IGNORECASE,
)
_OBJECT = (
    r"(?:the|an?|its|this|that|own|hidden|fake|injected|string|text|phrase|words?|line|verdict|instruction|sentence"
    r"|object|json|list|to|of)"
)
# Words that quote when a colon follows ("The output contains: ..."), or JSON or a list, or whatever they ask for.
_CONTENT = re.compile(
    r"\b(?:contains?|contained|includes?|included|has|had|quote|quotation|quoting|excerpt|verbatim|written in it"
    r"|injection|injected)\b[^.!?:\n]{0,40}:"
    rf"|\b(?:contains?|contained|includes?|included)(?: {_OBJECT}){{0,6}}[\s*_`\"'(\[]{{1,6}}(?=[\ue000-\uf8ff])"
    r"|\b(?:ignor|disregard|resist|reject|follow|obey)(?:e|s|es|ed|ing)? (?:the|its|this|that|an?|any)"
    r"(?: (?:hidden|embedded|injected))? (?:instructions?|requests?|demands?|commands?|attempts?|orders?|prompts?)\b",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[.!?](?=[\s)\]\"'*_]|$)|[;\n)]|,\s?(?:so|but|yet|therefore|thus|hence|and I|I)\b")
_PARAGRAPH_END = re.compile(r"\n[ \t]{0,80}\n")

_JUDGE = (
    r"(?:rate|rank|judge|choose|compare|evaluate|score|comply|obey|follow|pick|answer|help|assist|provide|do|continue"
    r"|give|decide|say|assess|fulfil|fulfill|engage|select|prefer|make|participate|grade|respond|determine|proceed|offer)"
)
_REFUSAL = re.compile(
    r"\b(?:I|we)(?:\s(?:must|have to|am going to|respectfully|therefore|also|simply|politely|will|would|do)){0,4}\s?"
    rf"(?:\s(?:cannot|can not|can[’']t|will not|won[’']t|refuse|decline|am unable|am not able|am not willing"
    rf"|do not wish|am not going|abstain)|[’']m (?:unable|not able|not going|not willing)|[’']ll not)"
    rf"(?:\s?[.!,;]|\s?$|\s(?:to\s)?(?:\w{{1,20}}\s)?{_JUDGE}\b)"
    r"|\b(?:unable|refuse|decline|refusing|declining|declined|refused) to (?:\w{1,20} )?"
    rf"{_JUDGE}\b",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL_END = re.compile(r"[.!?](?=[\s)\]\"'*_]|$)|[;:,\n)]|\bbut\b")
# Words that apologise: they decline only where no verdict stands.
_SORRY = re.compile(
    r"\bI[’']?\s?a?m sorry\b|^\s{0,20}(?:sorry|refused|no (?:rating|verdict|ranking|answer))\b", re.I | re.M
)
# "I cannot give it a higher score" is a judgment.
_PRAISE = re.compile(r"\b(?:higher|lower|more|better|full|top|perfect|maximum|highest|best)\b", re.IGNORECASE)


def mask(text: str) -> str:
    """Replace every character by one that no verdict contains; line breaks stay."""
    return "\n".join(_MASK * len(line) for line in text.split("\n"))


def reported(text: str) -> str:
    """Mask what `text` reports of other texts.

    That is up to the end of the clause or, where a colon ends the line, the paragraph below.
    """
    text = _said_before(text)
    pieces, done = [], 0
    for match in sorted([*_SPEECH.finditer(text), *_CONTENT.finditer(text)], key=re.Match.start):
        # Inside what is masked already: a report within a report.
        if match.end() < done:
            continue
        end = _said_until(text, match.end() - match.group().endswith(":"))
        pieces += [text[done : match.end()], mask(text[match.end() : end])]
        done = end
    return "".join([*pieces, text[done:]])


def _said_before(text: str) -> str:
    """`text` with the beginning of each sentence masked that ends by saying whose words it was."""
    pieces, done = [], 0
    for match in _SAID_BEFORE.finditer(text):
        start = max(text.rfind(end, done, match.start()) for end in (". ", "! ", "? ", "\n"))
        start = max(start + 1, done)
        pieces += [text[done:start], mask(text[start : match.start()])]
        done = match.start()
    return "".join([*pieces, text[done:]])


def _said_until(text: str, start: int) -> int:
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    # "The output says:" at the end of a line: the paragraph below is the quotation.
    if text[start:line_end].rstrip(" \t*_").endswith(":"):
        below = line_end + len(text[line_end:]) - len(text[line_end:].lstrip())
        stop = _PARAGRAPH_END.search(text, below)
        return stop.start() if stop else len(text)
    stop = _CLAUSE_END.search(text, start)
    return stop.start() if stop else len(text)


def after_refusals(text: str) -> str | None:
    """Return what follows the last sentence that declines to judge, None when there is no such sentence."""
    found = None
    for match in _REFUSAL.finditer(text):
        if not _PRAISE.search(text, match.end(), match.end() + _ABOUT):
            found = match
    if found is None:
        return None
    # The rest of the sentence belongs to the refusal: "I can't say that Output (a) is better".
    if found.group().endswith((".", "!", ",", ";")):
        return text[found.end() :]
    stop = _REFUSAL_END.search(text, found.end())
    return text[stop.end() :] if stop else ""


def apologises(text: str) -> bool:
    """Return whether the text says that it is sorry, or that there is no verdict."""
    return _SORRY.search(text) is not None
