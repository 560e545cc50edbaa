"""The one clock of a run: when the devices were done with something, noted without making the host wait.

Work is handed to the devices long before it is done, so the moment at which a function returns says nothing. A
thread of its own waits for each result in turn and notes the time; a duration is the time between two such moments.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_waiting: queue.SimpleQueue[tuple[Any, Future]] = queue.SimpleQueue()
_thread: threading.Thread | None = None


def done_at(x: Any) -> Future[float]:
    """The moment (`time.perf_counter`) at which a tree of arrays is there, to be asked for later.

    Results must be handed over in the order in which they are computed, and must not be donated before they are there.
    What is no array is there at once.
    """
    global _thread
    if _thread is None:
        # A daemon: a process that leaves does not wait for a device that hangs.
        _thread = threading.Thread(target=_note_moments, name="clock", daemon=True)
        _thread.start()
    moment: Future[float] = Future()
    _waiting.put((x, moment))
    return moment


def _note_moments() -> None:
    while True:
        x, moment = _waiting.get()
        try:
            jax.block_until_ready(x)
        except Exception as error:  # an error of the device belongs to whoever asks for the moment
            moment.set_exception(error)
        else:
            moment.set_result(time.perf_counter())
        # A result must not be kept alive until the next one comes.
        del x, moment


class CompileWatch:
    """When programs were compiled (or read from the compilation cache), since the watch was entered.

    While the host compiles, the devices may still work on what they were given before. So what is left out of a
    duration is the part of it in which a compilation ran, and not the length of the compilation.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> CompileWatch:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def within(self, begin: float, end: float) -> float:
        """Seconds between two moments in which a compilation ran."""
        return math.fsum(max(0.0, min(end, b) - max(begin, a)) for a, b in self._spans)

    def count(self, begin: float, end: float) -> int:
        """Compilations that ended between two moments."""
        return sum(begin < b <= end for _, b in self._spans)

    def _on_duration(self, event: str, duration: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            now = time.perf_counter()
            self._spans.append((now - duration, now))
