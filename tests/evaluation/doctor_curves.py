"""Curves of runs for the tests of the doctor: rows of metrics, made of values and their noise."""

import numpy as np


def rows(curves):
    """Metric rows of {name: (steps, values)}, in the order of steps."""
    found = {}
    for name, (steps, values) in curves.items():
        for step, value in zip(steps, values, strict=True):
            found.setdefault((float(step), name.startswith("eval/")), {"step": float(step)})[name] = float(
                value
            )
    return [found[key] for key in sorted(found)]


def logged(values, *, noise=0.0, seed=0, every=1):
    """A training metric: one value a step and its noise."""
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).normal(size=len(values))
    return every * np.arange(1, len(values) + 1), values + noise * drawn


def responses(length, ended=1.0, **more):
    n = 80
    return {
        "completions/mean_length": logged(np.broadcast_to(length, n), noise=0.5),
        "completions/ended": logged(np.clip(np.broadcast_to(ended, n), 0, 1)),
        **more,
    }
