"""Says of every published claim whether it shows in what was measured: with the numbers, and with how sure they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import Claim, Publication
from rlhf_jax.evaluation.claims.rank_agreement import rank_agreement
from rlhf_jax.evaluation.claims.rise_and_fall import rise_and_fall
from rlhf_jax.evaluation.claims.seeded_tables import SeededTable
from rlhf_jax.evaluation.claims.seeded_values import Estimate, difference, estimate

VERDICTS = ("shows", "does not show", "cannot be told", "not measured")
SHOWS, NOT, OPEN, MISSING = VERDICTS


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it shows (one of the four above), and the numbers that say so."""

    claim: Claim
    verdict: str
    evidence: str


class Measured:
    """The tables of a study, read by the columns of its publication."""

    def __init__(self, publication: Publication, tables: Mapping[str, SeededTable]) -> None:
        self.publication, self.tables = publication, tables

    def curve(self, row: str, column: str) -> np.ndarray:
        """A row's values [S, X, N] in the column's unit."""
        spec = self.publication.columns[column]
        return self.tables[spec.table].of(row, spec.column) * spec.scale

    def last(self, row: str, column: str) -> np.ndarray:
        """A row's values [S, N]; of a curve, those at its end."""
        return self.curve(row, column)[:, -1]

    def at(self, column: str) -> np.ndarray:
        """The places of a column's curves [X]."""
        return self.tables[self.publication.columns[column].table].at_X

    def rows(self) -> list[str]:
        """The publication's rows in their order, then those that only the study has."""
        found = [row for table in self.tables.values() for row in table.rows]
        return list(dict.fromkeys((*self.publication.rows, *found)))

    def label(self, row: str) -> str:
        return self.publication.rows[row].label if row in self.publication.rows else row

    def estimate(self, row: str, column: str) -> Estimate:
        return estimate(self.last(row, column))


def verdicts(measured: Measured) -> list[Verdict]:
    """One for each claim, in the file's order."""
    return [_verdict(claim, measured) for claim in measured.publication.claims]


def text_of(found: Estimate, digits: int = 1, *, signed: bool = False) -> str:
    """An estimate for people: 60.9 [58.8, 63.0]; without brackets where there is no interval."""
    if math.isnan(found.mean):
        return "–"
    sign = "+" if signed else ""
    mean = f"{found.mean:{sign}.{digits}f}"
    low, high = found.interval
    return mean if math.isnan(low) else f"{mean} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _verdict(claim: Claim, measured: Measured) -> Verdict:
    if claim.kind == "spearman":
        return _ranks(claim, measured)
    lacking = [row for row in claim.of if math.isnan(measured.estimate(row, claim.column).mean)]
    if lacking:
        return Verdict(claim, MISSING, f"no value of {', '.join(map(measured.label, lacking))}")
    digits = measured.publication.columns[claim.column].digits
    if claim.kind == "greater":
        a, b = claim.of
        ahead = difference(measured.last(a, claim.column), measured.last(b, claim.column))
        told = f"{measured.label(a)} - {measured.label(b)} {text_of(ahead, digits, signed=True)}"
        return Verdict(claim, {1: SHOWS, -1: NOT, 0: OPEN}[ahead.sign], told)
    if claim.kind == "close":
        return _close(claim, measured, digits)
    if claim.kind == "near":
        return _near(claim, measured, digits)
    return _curve(claim, measured, digits)


def _close(claim: Claim, measured: Measured, digits: int) -> Verdict:
    """Rows are close where no two of them are surely apart by more than `within`."""
    found = []
    for a, b in itertools.combinations(claim.of, 2):
        ahead = difference(measured.last(a, claim.column), measured.last(b, claim.column))
        low, high = ahead.interval
        surely = max(low, -high)  # By how much they are apart at least.
        found.append(
            (
                not surely > claim.within,
                f"{measured.label(a)} - {measured.label(b)} {text_of(ahead, digits, signed=True)}",
            )
        )
    return Verdict(
        claim, SHOWS if all(near for near, _ in found) else NOT, "; ".join(text for _, text in found)
    )


def _near(claim: Claim, measured: Measured, digits: int) -> Verdict:
    found = measured.estimate(claim.of[0], claim.column)
    low, high = found.interval if not math.isnan(found.error) else (found.mean, found.mean)
    near = low <= claim.value + claim.within and high >= claim.value - claim.within
    return Verdict(claim, SHOWS if near else NOT, f"{text_of(found, digits)} against {claim.value:g}")


def _curve(claim: Claim, measured: Measured, digits: int) -> Verdict:
    """rises: its peak is above its start. falls: its end is below its peak. stays: it does not fall by more than
    `within`, which needs an interval that is narrow enough to say so."""
    row, at_X = claim.of[0], measured.at(claim.column)
    try:
        found = rise_and_fall(measured.curve(row, claim.column), at_X)
    except UserError as error:
        return Verdict(claim, MISSING, str(error))
    places = "–".join(f"{x:g}" for x in sorted({min(found.peak_at), max(found.peak_at)}))
    told = f"{text_of(found.start, digits)} at {at_X[0]:g}, peak {text_of(found.peak, digits)} at {places}, "
    told += f"end {text_of(found.end, digits)} at {at_X[-1]:g}; "
    change = found.rise if claim.kind == "rises" else found.fall
    told += f"{'rise' if claim.kind == 'rises' else 'fall'} {text_of(change, digits, signed=True)}"
    if claim.kind == "stays":
        low, high = change.interval
        verdict = NOT if low > claim.within else SHOWS if high <= claim.within else OPEN
    else:
        verdict = {1: SHOWS, -1: NOT, 0: OPEN}[change.sign]
    return Verdict(claim, verdict, told)


def _ranks(claim: Claim, measured: Measured) -> Verdict:
    sides = []
    for column in claim.of:
        values = {row: measured.last(row, column) for row in measured.rows()}
        sides.append({row: v for row, v in values.items() if not np.isnan(v).all()})
    try:
        found = rank_agreement(*sides)
    except UserError as error:
        return Verdict(claim, MISSING, str(error))
    low, high = found.spearman_interval
    verdict = SHOWS if low > 0 else NOT if high < 0 else OPEN
    ends = f"[{found.r2_interval[0]:.2f}, {found.r2_interval[1]:.2f}]"
    return Verdict(
        claim,
        verdict,
        f"Spearman {found.spearman:.2f} [{low:.2f}, {high:.2f}], R² {found.r2:.2f} {ends}, {found.methods} methods",
    )
