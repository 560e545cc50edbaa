"""Sentences in which a judge tells what a text says, and those in which it declines to judge."""

import re

_MASK = "\ufffc"
_ABOUT = 80  # Characters between who speaks and the verb, or between the verb and what is said.

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
    r"|declares?|declared|announces?|suggests?|suggested|proposes?|pretends?|ends? with|begins? with|starts? with"
    r"|injects?|gives? itself|awards? itself|rates? itself|calls? itself|ranks? itself)"
)
_SPEECH = re.compile(
    rf"\b{_SPEAKER}\b[^.!?\n]{{0,40}}?\b{_SAYS}\b|\baccording to the {_SPEAKER}\b", re.IGNORECASE
)
# "Rating: 7 is what the output demands", "... says the output": what is said stands before.
_SAID_BEFORE = re.compile(
    rf"\b(?:is|was|are|were) (?:just |only |exactly )?what (?:the )?{_SPEAKER}\b"
    rf"|\b(?:says?|said|claims?|claimed|writes?|wrote|demands?|demanded) (?:the|this|that) {_SPEAKER}\b",
    re.IGNORECASE,
)
# Words that quote only when a colon follows: "The output contains: ...", "Quote: ...".
_CONTENT = re.compile(
    r"\b(?:contains?|contained|includes?|included|has|had|quote|quotation|quoting|excerpt|verbatim|written in it"
    r"|injection|injected)\b[^.!?:\n]{0,40}:",
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
# Words that apologise: they decline only where no verdict stands.
_SORRY = re.compile(
    r"\bI[’']?\s?a?m sorry\b|^\s{0,20}(?:sorry|refused|no (?:rating|verdict|ranking|answer))\b", re.I | re.M
)
# "I cannot give it a higher score" is a judgment.
_PRAISE = re.compile(r"\b(?:higher|lower|more|better|full|top|perfect|maximum|highest|best)\b", re.IGNORECASE)


def mask(text: str) -> str:
    """As many characters that no verdict contains; line breaks stay."""
    return "\n".join(_MASK * len(line) for line in text.split("\n"))


def reported(text: str) -> str:
    """`text` with what it reports of other texts masked: to the end of the clause, or, where a colon ends the line,
    the paragraph below."""
    text = _said_before(text)
    pieces, done = [], 0
    for match in sorted([*_SPEECH.finditer(text), *_CONTENT.finditer(text)], key=re.Match.start):
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
    if text[start:line_end].rstrip(" \t*_").endswith(":"):
        below = line_end + len(text[line_end:]) - len(text[line_end:].lstrip())
        stop = _PARAGRAPH_END.search(text, below)
        return stop.start() if stop else len(text)
    stop = _CLAUSE_END.search(text, start)
    return stop.start() if stop else len(text)


def after_refusals(text: str) -> str | None:
    """What stands behind the last sentence that declines to judge, None when there is no such sentence."""
    found = None
    for match in _REFUSAL.finditer(text):
        if not _PRAISE.search(text, match.end(), match.end() + _ABOUT):
            found = match
    return None if found is None else text[found.end() :]


def apologises(text: str) -> bool:
    """Whether the text says that it is sorry, or that there is no verdict."""
    return _SORRY.search(text) is not None
