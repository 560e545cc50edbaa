"""Being told to stop: a scheduler's SIGTERM, noticed between two iterations, on all processes alike."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from rlhf_jax.parallel import startup


class Preemption:
    """Within the context SIGTERM does not kill: `requested` tells of it."""

    def __init__(self) -> None:
        self._asked = False
        self._before: object = None
        # With several processes jax has a handler of its own, which makes them agree on a step.
        self._ours = startup.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Preemption:
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, step: int) -> bool:
        """True when the run should save and stop after `step`. Every process asks at every step."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(sys.orig_argv)
