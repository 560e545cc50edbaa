"""The command --plan: what a page's run would need on a slice, or on several, and a report of that."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.planning import plan_report, plan_text
from rlhf_jax.planning.page_programs import check_trains, scaled
from rlhf_jax.planning.slice_costs import SliceCost, slice_cost
from rlhf_jax.planning.slices import larger, slices_of
from rlhf_jax.planning.stand_ins import check_asked, shapes_asked
from rlhf_jax.programs import load_program


def run_plan(page: ConfigDict, plan: str, scale: str, model: str, workdir: str, title: str) -> None:
    """Plans a page and prints the result; with a workdir it writes report.html there, too.

    plan: a slice, or with a scale a family. scale: chip counts. model: see `stand_ins.shapes_asked`. title: the page's
    name. Raises UserError for what cannot be planned; a page that does not fit is a result, not an error.
    """
    check_trains(page)
    wanted, asked = slices_of(plan, scale), shapes_asked(model)
    check_asked(asked, load_program(page).NEEDS, page.to_dict())
    found: list[SliceCost] = []
    for one in wanted:
        here = scaled(page, Fraction(one.count, wanted[0].count))
        cost = slice_cost(here, one, asked, _tell, advise=not scale)
        print(f"\n{title} on {plan_text.slice_text(cost)}\n", flush=True)
        found.append(cost)
    if scale:
        print(plan_text.scale_text(found), flush=True)
    elif not found[0].fits:
        _tell_smallest(page, found[0], asked)
    if workdir:
        path = plan_report.write_plan_report(Path(workdir) / "report.html", title, found)
        print(f"report: {path}", flush=True)


def _tell_smallest(page: ConfigDict, refused: SliceCost, asked: dict[str, str]) -> None:
    """Says which is the smallest larger slice of the family on which the page fits as it is."""
    family = refused.slice.chip.name
    for one in larger(refused.slice):
        try:
            cost = slice_cost(page, one, asked, _tell, advise=False)
        # A batch may have too few rows for so many chips.
        except UserError as error:
            print(f"{one.name}: {error}", flush=True)
            continue
        if cost.fits:
            print(f"the smallest slice of {family} on which it fits as it is: {one.name}", flush=True)
            return
    print(f"no slice of {family} that was tried fits it as it is", flush=True)


def _tell(line: str) -> None:
    print(line, flush=True)
