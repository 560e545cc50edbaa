"""One line that says how far a run is, how fast it goes and how long it will still take."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from io import TextIOBase

from rlhf_jax.parallel import startup

_QUIET_S = 10.0  # Between two lines where nothing can be rewritten: a file, a CI log.
_REWRITE_S = 0.1
_WINDOW_S = 30.0  # The rate is that of the last half minute: after a compilation it recovers quickly.


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
        """began: when the work did (`time.monotonic`), if that was before now, so that the first rate is a true one."""
        self.total, self.done = total, done
        self._unit = unit
        self._stream = sys.stdout if stream is None else stream
        self._on = startup.is_main()
        self._terminal = self._stream.isatty()
        self._ticks = deque([(time.monotonic() if began is None else began, done)])
        self._shown_at = 0.0
        self._line = self._last_shown = ""
        self._closed = False

    def update(self, done: int, values: Mapping[str, float | int] | None = None) -> None:
        """`done` of `total` are done; `values` are shown behind the rate and the time left."""
        now = time.monotonic()
        self.done = done
        self._ticks.append((now, done))
        while len(self._ticks) > 2 and now - self._ticks[0][0] > _WINDOW_S:
            self._ticks.popleft()
        self._line = self._render(values or {})
        if now - self._shown_at >= (_REWRITE_S if self._terminal else _QUIET_S):
            self._show(now)

    def note(self, text: str) -> None:
        """Prints a line of its own; the progress line, if still open, goes on below it."""
        if self._on:
            clear = "\r\x1b[K" if self._terminal and not self._closed else ""
            print(clear + text, file=self._stream, flush=True)
            self._last_shown = ""

    def close(self) -> None:
        """Shows the last state and ends the line; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._show(time.monotonic())
        if self._on and self._terminal and self._last_shown:
            print(file=self._stream, flush=True)

    def _show(self, now: float) -> None:
        if not self._on or self._line == self._last_shown:
            return
        text = f"\r\x1b[K{self._line}" if self._terminal else f"{self._line}\n"
        self._stream.write(text)
        self._stream.flush()
        self._shown_at, self._last_shown = now, self._line

    def _render(self, values: Mapping[str, float | int]) -> str:
        (start, first), (now, last) = self._ticks[0], self._ticks[-1]
        rate = (last - first) / max(now - start, 1e-9)
        parts = [f"{self._unit} {self.done}/{self.total}", f"{_short(rate)}/s"]
        if rate > 0:
            parts.append(f"left {_clock((self.total - self.done) / rate)}")
        return "  ".join(parts + [f"{name} {_short(value)}" for name, value in values.items()])


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
