"""Keys and passwords stay out of messages, files and labels, whole or abridged as servers quote them."""

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote

from rlhf_jax.data.valid_text import valid_text

MASK = "***"
_LONGEST = 300
_SHORT = 4  # Shorter secrets are placeholders, or part of any word.
_PIECE = 8  # So many characters in a row of a secret give part of it away.
_IN_URL = re.compile(r"(?<=://)[^\s/@]+@")
_ABRIDGED = re.compile(r"\bsk-[\w*.-]{4,}|\b[\w-]{2,}\*{3,}[\w*-]*|\*{3,}[\w-]+")


class Mask:
    """Hides the secrets of one address. `secrets`: the key, the password, and whatever else must not be told."""

    def __init__(self, secrets: Iterable[str]) -> None:
        plain = {secret for secret in secrets if len(secret) > _SHORT}
        coded = {form for secret in plain for form in (quote(secret, safe=""), _base64(secret))}
        self._whole = sorted(plain | coded, key=len, reverse=True)
        # A short secret has no pieces: eight characters of twelve may be a word.
        self._pieces = {
            secret[i : i + _PIECE] for secret in plain if len(secret) >= 2 * _PIECE for i in _starts(secret)
        }

    def text(self, text: str) -> str:
        """`text` of any length with every secret, and what gives part of one away, as "***"."""
        for secret in self._whole:
            text = text.replace(secret, MASK)
        return self._without_pieces(text) if any(piece in text for piece in self._pieces) else text

    def line(self, text: str) -> str:
        """`text` as one short line for a message: no secret, no part of one, no password of any address."""
        text = _IN_URL.sub(f"{MASK}@", self.text(" ".join(valid_text(text).split())))
        return _ABRIDGED.sub(MASK, text)[:_LONGEST]

    def _without_pieces(self, text: str) -> str:
        hidden = [i for i in range(len(text) - _PIECE + 1) if text[i : i + _PIECE] in self._pieces]
        for start, end in reversed(_joined(hidden)):
            text = text[:start] + MASK + text[end:]
        return text


def _starts(secret: str) -> range:
    return range(len(secret) - _PIECE + 1)


def _joined(starts: list[int]) -> list[tuple[int, int]]:
    """Where the pieces that begin at `starts` cover the text, as (start, end)."""
    spans: list[tuple[int, int]] = []
    for start in starts:
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], start + _PIECE
        else:
            spans.append((start, start + _PIECE))
    return spans


def _base64(secret: str) -> str:
    return base64.b64encode(valid_text(secret).encode()).decode()
