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
from rlhf_jax.evaluation.claims.seeded_values import Estimate, as_percentage, difference, estimate

VERDICTS = ("shows", "does not show", "cannot be told", "not measured")
SHOWS, NOT, OPEN, MISSING = VERDICTS
BY_SIGN = {1: SHOWS, -1: NOT, 0: OPEN}


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
        """A row's values [S, X, N] in the column's unit. UserError for per cent of what is no share."""
        spec = self.publication.columns[column]
        curve_SXN = self.tables[spec.table].of(row, spec.column)
        if not spec.percent:
            return curve_SXN
        if ((curve_SXN < 0) | (curve_SXN > 1)).any():
            low, high = np.nanmin(curve_SXN), np.nanmax(curve_SXN)
            raise UserError(
                f"results: {spec.table}: {spec.column} of {row} goes from {low:g} to {high:g}, which are "
                f"no shares of 1; leave percent out of the claims' columns.{column}"
            )
        return 100 * curve_SXN

    def last(self, row: str, column: str) -> np.ndarray:
        """A row's values [S, N]; of a curve, those at its end, which is not the table's where others go on."""
        curve_SXN = self.curve(row, column)
        known = np.flatnonzero(~np.isnan(curve_SXN).all((0, 2)))
        return curve_SXN[:, known[-1] if len(known) else -1]

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
        return self.estimate_of(self.last(row, column), column)

    def estimate_of(self, values_SN: np.ndarray, column: str) -> Estimate:
        found = estimate(values_SN)
        return as_percentage(found) if self.publication.columns[column].percent else found


def verdicts(measured: Measured) -> list[Verdict]:
    """One for each claim, in the file's order."""
    return [_verdict(claim, measured) for claim in measured.publication.claims]


def estimate_text(found: Estimate, digits: int = 1, *, signed: bool = False) -> str:
    """An estimate for people: 60.9 [58.8, 63.0]; without brackets where there is no interval."""
    if math.isnan(found.mean):
        return "–"
    sign = "+z" if signed else "z"  # Of z: -0.04 is 0.0 and not -0.0.
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
        ahead, told = _ahead(*claim.of, claim, measured, digits)
        return Verdict(claim, MISSING if math.isnan(ahead.mean) else BY_SIGN[ahead.sign], told)
    if claim.kind == "close":
        return _close(claim, measured, digits)
    if claim.kind == "near":
        return _near(claim, measured, digits)
    return _curve(claim, measured, digits)


def _ahead(a: str, b: str, claim: Claim, measured: Measured, digits: int) -> tuple[Estimate, str]:
    """How far row a is above row b, and the same in words."""
    found = difference(measured.last(a, claim.column), measured.last(b, claim.column))
    text = "nothing that both have" if math.isnan(found.mean) else estimate_text(found, digits, signed=True)
    return found, f"{measured.label(a)} - {measured.label(b)} {text}"


def _close(claim: Claim, measured: Measured, digits: int) -> Verdict:
    """Every two rows are near each other, as `_nearness` says; a difference without an interval tells nothing."""
    found = [_ahead(a, b, claim, measured, digits) for a, b in itertools.combinations(claim.of, 2)]
    pairs = [MISSING if math.isnan(d.mean) else _nearness(d.interval, claim.within) for d, _ in found]
    # The verdict of the pair that speaks most against the claim.
    verdict = min(pairs, key=(NOT, MISSING, OPEN, SHOWS).index)
    return Verdict(claim, verdict, "; ".join(text for _, text in found))


def _near(claim: Claim, measured: Measured, digits: int) -> Verdict:
    """As `_nearness` says of what is left between the two; a number without an interval is taken as exact."""
    found = measured.estimate(claim.of[0], claim.column)
    low, high = (found.mean, found.mean) if math.isnan(found.interval[0]) else found.interval
    verdict = _nearness((low - claim.value, high - claim.value), claim.within)
    return Verdict(claim, verdict, f"{estimate_text(found, digits)} against {claim.value:g}")


def _nearness(interval: tuple[float, float], within: float) -> str:
    """Whether a difference is at most `within`: surely (the whole interval), surely not, or not to be told.

    With within = 0, whether it is within error: no interval is narrow enough for more.
    """
    low, high = interval
    if max(low, -high) > within:
        return NOT
    sure = low <= 0 <= high if within == 0 else max(-low, high) <= within
    return SHOWS if sure else OPEN


def _curve(claim: Claim, measured: Measured, digits: int) -> Verdict:
    """rises: a later point is above its start. falls: its end is below an earlier point. stays: it does not fall by
    more than `within`, which needs an interval that is narrow enough to say so."""
    try:
        found = rise_and_fall(measured.curve(claim.of[0], claim.column), measured.at(claim.column))
    except UserError as error:
        return Verdict(claim, MISSING, str(error))
    places = "–".join(f"{x:g}" for x in sorted({min(found.peak_at), max(found.peak_at)}))
    start, peak, end = (estimate_text(one, digits) for one in (found.start, found.peak, found.end))
    what, change = ("rise", found.rise) if claim.kind == "rises" else ("fall", found.fall)
    told = f"{start} at {found.at_X[0]:g}, peak {peak} at {places}, end {end} at {found.at_X[-1]:g}; "
    told += f"{what} {estimate_text(change, digits, signed=True)}"
    if claim.kind == "stays":
        low, high = change.interval
        verdict = NOT if low > claim.within else SHOWS if high <= claim.within else OPEN
    else:
        verdict = BY_SIGN[change.sign]
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
    spearman = Estimate(found.spearman, math.nan, found.spearman_interval, 0, 0)
    r2 = Estimate(found.r2, math.nan, found.r2_interval, 0, 0)
    told = f"Spearman {estimate_text(spearman, 2)}, R² {estimate_text(r2, 2)}, {found.methods} methods"
    return Verdict(claim, verdict, told)
