"""How many arrays a process holds, once other threads have let go of theirs."""

import gc
import math
import time

import jax


def live_arrays(at_most: int) -> int:
    """The fewest arrays seen within a second; looked for longer while there are more than `at_most`, which is not 0.

    The clock's thread and those that write checkpoints hold some a while longer than the run does, on a busy machine
    much longer.
    """
    fewest, until = math.inf, time.monotonic() + (30.0 if at_most else 1.0)
    while fewest > at_most and time.monotonic() < until:
        gc.collect()
        fewest = min(fewest, len(jax.live_arrays()))
        time.sleep(0.02)
    return fewest
