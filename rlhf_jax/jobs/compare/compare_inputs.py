"""Sorts what a study names by seed: "ranked@0=A,ranked@1=B" are one table of two seeds. And what its runs have cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.report.report_data import ReportStage
from rlhf_jax.settings.pages import closest
from rlhf_jax.training.run.missing_inputs import named_paths


def by_seed(text: str, field: str, known: Iterable[str]) -> dict[str, dict[str, str]]:
    """NAME -> seed -> path, of "NAME@SEED=PATH,..."; the seed is "" where there is none.

    Raises UserError for a name that is not known, for a known one without a path, and for one whose seeds are not
    all named.
    """
    found: dict[str, dict[str, str]] = {}
    for entry, path in named_paths(text, field).items():
        name, _, seed = entry.partition("@")
        if name not in known:
            raise UserError(
                f"{field}: {name!r} is no table of the claims{closest(name, known)}; there are "
                f"{', '.join(known)}"
            )
        found.setdefault(name, {})[seed] = path
    for name in known:
        if name not in found:
            raise UserError(f"{field}: {name} is missing, of which the claims speak; write {name}=FILE")
        if "" in found[name] and len(found[name]) > 1:
            raise UserError(
                f"{field}: {name} is there with a seed and without one; write {name}@SEED=FILE for each"
            )
    return found


def run_costs(stages: Sequence[ReportStage]) -> dict[str, list[dict[str, object]]]:
    """Seed -> a row for every run, the table `runs` that claims may name: run, seconds, memory_gib (its peak)."""
    found: dict[str, list[dict[str, object]]] = {}
    for stage in stages:
        name, _, seed = stage.name.partition("@")
        memory = [x for row in stage.rows if isinstance(x := row.get("perf/peak_memory_gib"), int | float)]
        costs = {"run": name, "seconds": stage.seconds, "memory_gib": max(memory, default=None)}
        found.setdefault(seed, []).append(costs)
    return found


def mean_over_seeds(stages: Sequence[ReportStage]) -> list[ReportStage]:
    """One stage for each run, whichever seeds it had: the curves of the first, and the mean of the seconds."""
    groups: dict[str, list[ReportStage]] = {}
    for stage in stages:
        groups.setdefault(stage.name.partition("@")[0], []).append(stage)
    out = []
    for name, some in groups.items():
        seconds = [stage.seconds for stage in some if stage.seconds is not None]
        summary = some[0].summary + (f", mean of {len(some)} seeds" if len(some) > 1 else "")
        out.append(
            replace(
                some[0], name=name, seconds=sum(seconds) / len(seconds) if seconds else None, summary=summary
            )
        )
    return out
