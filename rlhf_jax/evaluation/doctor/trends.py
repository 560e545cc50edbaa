"""Says whether a metric of a run has moved, and where it stands, so that noise is no finding.

Training metrics are of other rows at every step, so they count by means over neighbouring steps and against their own
noise. Evaluations are of the same rows each time, so a few are enough; but one alone is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation.doctor.findings import setting_of
from rlhf_jax.evaluation.report.curves import Series, metric_names, read_series, thin

# Means over neighbours stand for a long series: they are less noisy, and what is correlated from step to step counts
# once. With 16 of them an end is the mean of 3, a fifth of the run.
_BLOCKS = 16
# Fewer logged steps than this have no noise that could be estimated: 9 blocks leave 3 at each end and in the middle.
FEWEST_LOGGED = 9
# Two evaluations are one difference, which cannot be told from chance; the third has to agree.
FEWEST_EVALUATIONS = 3
# Standard errors. Ends are looked at on a dozen metrics at every evaluation, so the usual 2 would cry at each run.
_SURE = 4.0


class Change(NamedTuple):
    """A metric at the start and at the end of a run, or of a part of it.

    error: the standard error of the difference; 0 for evaluations, which are of the same rows.
    """

    start: float
    end: float
    first_step: float
    last_step: float
    error: float

    @property
    def difference(self) -> float:
        """The end less the start."""
        return self.end - self.start

    @property
    def sure(self) -> bool:
        """Whether it moved by more than noise does."""
        return abs(self.difference) > _SURE * self.error

    def said(self, digits: int = 3) -> str:
        """ "0.52 (step 0) to 0.11 (step 400)"."""
        a, b = (f"{x:.{digits}g}" for x in (self.start, self.end))
        return f"{a} (step {self.first_step:.0f}) to {b} (step {self.last_step:.0f})"


def change_of(series: Series) -> Change | None:
    """How a metric moved from its start to its end; None where there are too few points to say."""
    evaluated = series.name.startswith("eval/")
    if len(series.steps) < (FEWEST_EVALUATIONS if evaluated else FEWEST_LOGGED):
        return None
    first, last = series.steps[0], series.steps[-1]
    if evaluated:
        start = float(series.values[0])
        # Of the last two the one that is nearer to the start: what has moved for one evaluation only is no drift.
        end = min(series.values[-2:], key=lambda x: abs(x - start))
        return Change(start, float(end), first, last, 0.0)
    blocks = thin(series, _BLOCKS).values
    k = max(2, len(blocks) // 5)
    # From differences of neighbours, so that a trend does not count as noise (von Neumann 1941).
    noise = math.sqrt(float(np.mean(np.diff(blocks) ** 2)) / 2)
    start, end = float(blocks[:k].mean()), float(blocks[-k:].mean())
    return Change(start, end, first, last, noise * math.sqrt(2 / k))


def level_of(series: Series) -> float | None:
    """Where a metric stands at the end: the median over the last third of a run, or of the last two evaluations.

    A median, so that one spike is none; None where there are too few points to say.
    """
    if series.name.startswith("eval/"):
        return float(np.mean(series.values[-2:])) if len(series.steps) >= 2 else None
    if len(series.steps) < FEWEST_LOGGED:
        return None
    return float(np.median(series.values[-max(3, len(series.values) // 3) :]))


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %, in percent, of a share in [0, 1] of n >= 1 cases.

    That of `measures.win_rate` waits for a library of statistics, which a run in training should not load.
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * (middle - half), 100 * (middle + half)


class RunCurves:
    """The metrics of one run and its page's settings, as rules read them.

    rows: of metrics.jsonl. A step that a resumed run logged again counts once, as it was logged last.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]], config: Mapping[str, Any] | None = None) -> None:
        self._rows, self.config = rows, config or {}
        self._read: dict[str, Series] = {}

    @cached_property
    def names(self) -> frozenset[str]:
        """The metrics that the run logged."""
        return frozenset(metric_names(self._rows))

    def series(self, name: str) -> Series:
        """A metric over steps; empty where it is not logged."""
        if name not in self._read:
            self._read[name] = read_series(self._rows, name)
        return self._read[name]

    def change(self, *names: str, since: float = 0.0) -> Change | None:
        """How the first of these metrics that has enough points moved.

        since: from which part of the run on, such as 0.5 for its second half.
        """
        for name in names:
            series = self.series(name)
            if since and len(series.steps):
                late = series.steps >= series.steps[0] + since * (series.steps[-1] - series.steps[0])
                series = Series(name, series.steps[late], series.values[late], series.n_nonfinite)
            if (found := change_of(series)) is not None:
                return found
        return None

    def level(self, *names: str) -> float | None:
        """Where the first of these metrics that has enough points stands at the end."""
        return next((x for name in names if (x := level_of(self.series(name))) is not None), None)

    def last_step(self, name: str) -> float:
        """The last step at which a metric was logged."""
        return float(self.series(name).steps[-1])

    def setting(self, name: str) -> Any:
        """The value of a setting by its dotted name; None where the page has none or is not known."""
        return setting_of(self.config, name)
