"""A second process that puts tokens of texts together from those of words, beside the one that renders the texts.

It is a Python that imports neither jax nor transformers, gets the Rust tokenizer as text, and ends when its input does.
Where it cannot be started, or ends, or takes anything amiss, the caller goes on without it, and says what is wrong
himself if there is anything: so errors, like tokens, are those of one process.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokens.known_words import KnownWords, Pieces, Span


class WordsProcess:
    """That process, seen from the caller's."""

    def __init__(self, words: KnownWords, backend: Any, *, read_specials: bool) -> None:
        """words: what is known so far. backend: the Rust tokenizer. OSError where no process can be started."""
        root = str(Path(__file__).parents[3])
        # The settings of malloc for training would take more memory than all words.
        kept = {name: x for name, x in os.environ.items() if name != "GLIBC_TUNABLES"}
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Its own complaints, at Ctrl-C say, would stand beside those of the caller.
            stderr=subprocess.DEVNULL,
            # One core is the caller's.
            env=kept | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            self._send((backend.to_str(), read_specials, words.state()))
        except BaseException:
            self.close()
            raise

    def pieces(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Pieces | None]:
        """As `KnownWords.pieces`. OSError or EOFError where the process has ended."""
        self._send((list(texts), list(spans)))
        found = pickle.load(self._process.stdout)
        return [None if x is None else Pieces(*x) for x in found]

    def close(self) -> None:
        """Ends the process, and waits until it has."""
        for file in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                file.close()
        self._process.kill()
        self._process.wait()

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()


def _main() -> None:
    from tokenizers import Tokenizer

    text, read_specials, state = pickle.load(sys.stdin.buffer)
    backend = Tokenizer.from_str(text)
    backend.encode_special_tokens = not read_specials
    backend.no_truncation()
    backend.no_padding()
    words = KnownWords.from_state(lambda texts, spans: encoded(backend, texts, spans=spans), state)
    with contextlib.suppress(EOFError):
        while True:
            found = words.pieces(*pickle.load(sys.stdin.buffer))
            # Plain tuples are written faster than those with names.
            plain = [None if x is None else tuple(x) for x in found]
            pickle.dump(plain, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


def encoded(backend: Any, texts: Sequence[str], *, spans: bool) -> list:
    """What a Rust tokenizer says of texts; offsets are right only where they are asked for."""
    encode = backend.encode_batch if spans else backend.encode_batch_fast
    return encode(list(texts), add_special_tokens=False)


if __name__ == "__main__":
    _main()
