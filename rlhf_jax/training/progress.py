"""One line that says how far a run is, how fast it goes and how long it will still take: tqdm, in our words."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from io import TextIOBase

from tqdm import tqdm

from rlhf_jax.parallel import startup

_QUIET_S, _REWRITE_S = 10.0, 0.1  # Between two lines: of a file or a CI log, and of a terminal.
_LINE = "{desc} {n_fmt}/{total_fmt}  {rate_noinv:.4g}/s  left {remaining}{postfix}"


class Progress:
    """A progress line on process 0; on the others every method does nothing but count.

    On a terminal the line is rewritten. Elsewhere a new one comes at most every 10 s, and at the end.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = "step",
        done: int = 0,
        began: float | None = None,
        stream: TextIOBase | None = None,
    ) -> None:
        """began: when the work did (`time.time`), if that was before now, so that the first rate is a true one."""
        self.total, self.done = total, done
        self._stream = sys.stdout if stream is None else stream
        terminal = self._stream.isatty()
        file, every_s = (self._stream, _REWRITE_S) if terminal else (_WholeLines(self._stream), _QUIET_S)
        how = {"file": file, "mininterval": every_s, "miniters": 1, "bar_format": _LINE}
        how["disable"] = not startup.is_main()
        # A delay keeps tqdm from drawing zeros at once; without `leave` nothing stays of a line that was never updated.
        self._bar = _Bar(total=total, initial=done, desc=unit, delay=1.0, leave=False, **how)
        self._bar.delay = 0.0
        # Of no time at all there is no rate.
        self._bar.start_t = self._bar.last_print_t = (began or time.time()) - 1e-6

    def update(self, done: int, values: Mapping[str, float | int] | None = None) -> None:
        """`done` of `total` are done; `values` are shown behind the rate and the time left."""
        shown = [
            f"{name} {x:,.0f}" if abs(x) >= 1000 else f"{name} {x:.4g}" for name, x in (values or {}).items()
        ]
        self._bar.set_postfix_str("  ".join(shown), refresh=False)
        self._bar.leave = True
        self._bar.update(done - self.done)
        self.done = done

    def note(self, text: str) -> None:
        """Prints a line of its own; the progress line, if still open, goes on below it."""
        if startup.is_main():
            print_between(text, self._stream)

    def close(self) -> None:
        """Shows the last state and ends the line; a second call does nothing."""
        self._bar.close()


def print_between(text: str, stream: TextIOBase | None = None) -> None:
    """Prints a line of its own on this process; a progress line that is open there goes on below it."""
    stream = sys.stdout if stream is None else stream
    with _Bar.external_write_mode(stream):
        print(text, file=stream, flush=True)


class _Bar(tqdm):
    monitor_interval = 0  # No thread that draws bars anew.


class _WholeLines:
    """A stream for tqdm that is no terminal: every state is printed as a line of its own, once."""

    def __init__(self, stream: TextIOBase) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        state = text.strip().split("  ")[0]  # The rate of a state may be told anew.
        if text.startswith("\r") and state not in ("", self._last):
            self._last = state
            print(text.strip(), file=self._stream, flush=True)
