"""The data of a report. Jobs that evaluate or measure fill it in; page.py makes one HTML file of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_jax.evaluation.claims.verdicts import Measured, Verdict
from rlhf_jax.evaluation.doctor.findings import Finding
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import Agreement, Biases, Calibration
from rlhf_jax.evaluation.measures.bootstrap import Difference
from rlhf_jax.evaluation.measures.bradley_terry import Rating
from rlhf_jax.evaluation.measures.evaluators import Evaluator
from rlhf_jax.evaluation.report.curves import Curve


@dataclass(frozen=True)
class ReportStage:
    """One stage of a study.

    rows: its metrics.jsonl, () for a stage without training. seconds: how long it took, None if not measured.
    summary: one line about it ("3,000 pairs, 2 epochs"). settings: its page, {} where that is not known.
    """

    name: str
    rows: Sequence[Mapping[str, object]] = ()
    seconds: float | None = None
    summary: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeResult:
    """How a judge (or pool, second human, or rule such as "longer wins") agrees with the human's labels."""

    name: str
    agreement: Agreement
    biases: Biases | None = None


@dataclass(frozen=True)
class Response:
    """One method's answer, with its true utility in [0, 1] where that is known."""

    text: str
    utility: float | None = None


@dataclass(frozen=True)
class ReportSample:
    """One instruction (with its input, "" for none) and every method's response to it, in column order."""

    instruction: str
    input: str
    responses: Mapping[str, Response]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. A section without data is left out.

    title, subtitle: the header. facts: short name -> value pairs under it (date, seed, devices, model,
    command ...). curves: stage name -> metric names or globs, overriding `curves.DEFAULT_CURVES` for that
    stage. calibration: the reward model's accuracy by margin. differences: methods two by two, paired;
    against: method -> other method -> length-controlled win rate. evaluators: annotators against a gold
    crowd. ratings: models on one scale. samples: a handful, as each is shown whole, methods side by side.
    verdicts, measured: a study's, on published claims and their rows.
    findings: what the doctor found, the worst first. looked_for: subject, such as a stage -> what was looked for there.
    """

    title: str
    leaderboard: Sequence[LeaderboardRow]
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[ReportStage] = ()
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    judges: Sequence[JudgeResult] = ()
    calibration: Calibration | None = None
    differences: Sequence[Difference] = ()
    against: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluators: Sequence[Evaluator] = ()
    ratings: Sequence[Rating] = ()
    samples: Sequence[ReportSample] = ()
    verdicts: Sequence[Verdict] = ()
    measured: Measured | None = None
    findings: Sequence[Finding] = ()
    looked_for: Mapping[str, Sequence[str]] = field(default_factory=dict)
