"""The courtesies, rude remarks and fillers of the world's language, and a search for them in a text.

Demonstrations are written with these phrases and the utility recognises the same ones. No phrase contains a
word that any instruction family counts as an answer.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# Phrase -> warmth, how much tone it earns. Of several openers (closers) only the warmest counts.
OPENERS: dict[str, float] = {
    "Sure!": 0.25,
    "Of course!": 0.28,
    "Good question!": 0.28,
    "With pleasure!": 0.31,
    "Glad to help!": 0.35,
}
CLOSERS: dict[str, float] = {
    "Hope this helps!": 0.15,
    "Have a nice day!": 0.10,
}
RUDE: tuple[str, ...] = (
    "Ugh, fine.",
    "This is so boring.",
    "Do it yourself next time.",
    "What a silly question.",
)
FILLERS: tuple[str, ...] = ("Well, um, so,", "You know, like,", "So, I mean,", "Hmm, well,")
TAILS: tuple[str, ...] = ("And so on and so on.", "Or so I think, you know.", "And that is that, I mean.")


def _key(phrase: str) -> str:
    return " ".join(re.findall(r"[a-z]+", phrase.lower()))


def _finder(phrases: tuple[str, ...]) -> re.Pattern[str]:
    # Any signs or white space may stand between the words. Longest first, since the first alternative wins.
    bodies = (r"\W+".join(_key(phrase).split()) for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"\b(?:{'|'.join(bodies)})\b[,.!?]*", re.IGNORECASE)


_OPENER, _CLOSER = _finder(tuple(OPENERS)), _finder(tuple(CLOSERS))
_RUDE, _FILLER = _finder(RUDE), _finder(FILLERS + TAILS)
_WARMTH = {_key(phrase): warmth for phrase, warmth in (OPENERS | CLOSERS).items()}


@dataclass(frozen=True)
class Manners:
    """A text without its courtesies, rude remarks and fillers (`core`), and counts of what was removed.

    Attributes:
      core: the text without courtesies, rude remarks and fillers.
      warmth: of the warmest opener plus that of the warmest closer, 0 without either.
      n_courteous: how many courtesies there are; `courteous_words`: words of the two that count.
      n_rude: how many rude remarks; `filler_words`: words in fillers.
    """

    core: str
    warmth: float
    n_courteous: int
    courteous_words: int
    n_rude: int
    filler_words: int


@lru_cache(maxsize=4096)
def manners(text: str) -> Manners:
    """Separate courtesies, rude remarks and fillers from the content of a text."""
    openers = [_key(found) for found in _OPENER.findall(text)]
    closers = [_key(found) for found in _CLOSER.findall(text)]
    # One opener and one closer count, the warmest of each. Piling up courtesies only makes the response
    # longer.
    best = [max(found, key=_WARMTH.__getitem__) for found in (openers, closers) if found]
    fillers = _FILLER.findall(text)
    core = text
    for finder in (_OPENER, _CLOSER, _RUDE, _FILLER):
        # A space, so that the words before and after do not become one.
        core = finder.sub(" ", core)
    return Manners(
        core=core,
        warmth=sum(_WARMTH[phrase] for phrase in best),
        n_courteous=len(openers) + len(closers),
        courteous_words=sum(len(phrase.split()) for phrase in best),
        n_rude=len(_RUDE.findall(text)),
        filler_words=sum(len(_key(found).split()) for found in fillers),
    )
