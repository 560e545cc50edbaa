"""How many arrays a process holds, once other threads have let go of theirs."""

import gc
import math
import time

import jax


def live_arrays(at_most: int, seconds: float = 1.0) -> int:
    """The fewest arrays seen; looked for until there are no more than `at_most`, or for so many seconds.

    The clock's thread and those that write checkpoints hold some a while longer than the run does.
    """
    fewest, until = math.inf, time.monotonic() + seconds
    while fewest > at_most and time.monotonic() < until:
        gc.collect()
        fewest = min(fewest, len(jax.live_arrays()))
        time.sleep(0.02)
    return fewest
