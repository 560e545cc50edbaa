"""Looks at a run: all rules of curves over its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation.doctor import policy_rules, preference_rules, signal_rules
from rlhf_jax.evaluation.doctor.findings import Finding, Rule, worst_first
from rlhf_jax.evaluation.doctor.trends import RunCurves

RUN_RULES: tuple[Rule, ...] = (*preference_rules.RULES, *policy_rules.RULES, *signal_rules.RULES)
# What is read beside the metrics that say whether a rule can look.
_BESIDE = (
    *(f"{prefix}{name}" for prefix in ("", "eval/") for name in ("logps/rejected", "rewards/rejected")),
    *("val/clipfrac", "completions/ended"),
)
WATCHED = frozenset(_BESIDE) | {name for rule in RUN_RULES for names in rule.metrics for name in names}


def examine_run(
    rows: Sequence[Mapping[str, object]], config: Mapping[str, Any] | None = None
) -> list[Finding]:
    """The findings about a run, the worst first.

    rows: of its metrics.jsonl; also those of a run that is still going on. config: its config.json; without it fewer
    rules can look, and settings are named without their values.
    """
    run = RunCurves(rows, config)
    found = (rule.finding(run, config) for rule in RUN_RULES)
    return worst_first([one for one in found if one is not None])


def looked_for(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of the rules for which the run logs what they need."""
    names = RunCurves(rows).names
    return [rule.name for rule in RUN_RULES if any(names.issuperset(some) for some in rule.metrics)]
