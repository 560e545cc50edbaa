"""What the doctor says: a finding has a name, the numbers that show it, its usual cause, and the settings that decide.

A rule looks at one kind of evidence, such as the curves of a run, and says what it sees or nothing. It is silent where
it cannot tell: a metric that is not logged or too few points are no finding.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FINDINGS = "findings.json"  # Its name in a workdir.
# Worst first. A problem spoils what comes out, a warning may, and a note is what users ask about and often is right.
PROBLEM, WARNING, NOTE = SEVERITIES = ("problem", "warning", "note")


@dataclass(frozen=True)
class Seen:
    """What a rule saw: how bad, the sentence with numbers, and the metrics whose curves show it."""

    severity: str
    evidence: str
    curves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
      name: as people call it.
      means: one sentence on what it is.
      cause: the usual ones.
      settings: fields of pages that decide, the first one first; those that a page lacks are not named.
      look: from the evidence to what is seen; None where there is nothing, or it cannot be told.
      metrics: of a run, sets of metrics any one of which is enough to look; () where `look` takes other evidence.
    """

    name: str
    means: str
    cause: str
    settings: tuple[str, ...]
    look: Callable[[Any], Seen | None]
    metrics: tuple[tuple[str, ...], ...] = ()

    def finding(self, evidence: Any, config: Mapping[str, Any] | None = None) -> Finding | None:
        """What the rule finds in the evidence; config: the page's settings, to say their values."""
        seen = self.look(evidence)
        if seen is None:
            return None
        said = settings_text(self.settings, config)
        return Finding(self.name, seen.severity, seen.evidence, seen.curves, self.cause, said)


@dataclass(frozen=True)
class Finding:
    """One named finding.

    Attributes:
      severity: one of SEVERITIES.
      evidence: the numbers that show it, with the steps they are of.
      curves: names of the metrics to look at.
      setting: the settings that decide, with the values they had where those are known.
      subject: what it is about, such as a run's name; "" where that is plain.
    """

    name: str
    severity: str
    evidence: str
    curves: tuple[str, ...]
    cause: str
    setting: str
    subject: str = ""

    def line(self) -> str:
        """One line for a terminal."""
        decides = f" (decided by {self.setting})" if self.setting else ""
        whose = f"{self.subject}: " if self.subject else ""
        return f"finding ({self.severity}): {whose}{self.name}: {self.evidence}{decides}"

    def as_dict(self) -> dict[str, Any]:
        """The finding as it stands in findings.json."""
        return dataclasses.asdict(self) | {"curves": list(self.curves)}


def from_dict(row: Mapping[str, Any]) -> Finding:
    """Reads what `as_dict` wrote; further keys are left aside."""
    known = {field.name: row[field.name] for field in dataclasses.fields(Finding)}
    return Finding(**known | {"curves": tuple(known["curves"])})


def findings_json(found: Sequence[Finding], looked_for: Mapping[str, Sequence[str]], **beside: Any) -> str:
    """The text of findings.json: findings, what was looked for by subject, and what else the writer notes."""
    rows = {
        "findings": [one.as_dict() for one in found],
        "looked_for": {k: list(v) for k, v in looked_for.items()},
    }
    return json.dumps(rows | beside, indent=2, ensure_ascii=False) + "\n"


def worst_first(found: Sequence[Finding]) -> list[Finding]:
    """Sorts findings by severity; among equals the order stays."""
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


def settings_text(names: Sequence[str], config: Mapping[str, Any] | None) -> str:
    """Writes settings with their values, "kl_coef=0.03, epochs=2"; only names where no page is known."""
    if not config:
        return ", ".join(names)
    known = [(name, setting_of(config, name)) for name in names]
    # Nothing behind the sign would read as a value that was left out.
    return ", ".join(
        f"{name}={value if value != '' else '(none)'}" for name, value in known if value is not None
    )


def setting_of(config: Mapping[str, Any], name: str) -> Any:
    """The value of a field by its dotted name; None where the page has none."""
    value: Any = config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
