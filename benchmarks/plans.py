"""Plans of the papers' recipes on slices that are not here, as one table: what fits, what it needs, what bounds it.

    pip install -r requirements-plan.txt        # the compiler for TPUs; for GPUs "jax[cuda13]"
    python benchmarks/plans.py --slices h100:8,v5e:4x4
    python benchmarks/plans.py --slices h100:8 --pages alpaca_farm/sft,alpaca_farm/ppo --programs

Each recipe on each slice is compiled in a process of its own, one after the other, and kept in a file of `--out`: the
same command goes on where it was stopped. What failed is tried again, what the plan refused is not. `--table` compiles
nothing and prints what is there. Needs are those of the worst program of an iteration; tokens/s and MFU are those at
the bounds, padding included: of the train step, and of PPO's iteration the tokens that it writes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ROOT / "configs" / "papers"
sys.path[:0] = [str(ROOT)]
HEAD = (
    "recipe",
    "slice",
    "mesh",
    "fits",
    "needs",
    "of",
    "a step takes",
    "bound",
    "MFU",
    "tokens/s",
    "iteration",
)
HEAD_OF_PROGRAMS = ("recipe", "slice", "program", "fits", "needs", "TFLOP", "receives")
HEAD_OF_PROGRAMS += ("compute", "interconnect", "memory", "bound")


def recipes() -> list[str]:
    """The papers' pages that train something, as PAPER/NAME."""
    from rlhf_jax.programs import is_method

    return [f"{x.parent.name}/{x.stem}" for x in sorted(PAPERS.glob("*/*.py")) if is_method(x.stem)]


def result_file(out: Path, recipe: str, slice_: str) -> Path:
    """Where a plan is kept."""
    return out / f"{recipe}@{slice_}.json".replace("/", "-").replace(":", "-")


def plan(recipe: str, slice_: str) -> dict[str, Any]:
    """Compiles a recipe for a slice: what the table says of it, or {"refused": why not}."""
    from rlhf_jax.errors import UserError
    from rlhf_jax.planning.slice_costs import slice_cost
    from rlhf_jax.planning.slices import slices_of
    from rlhf_jax.settings import load_page

    try:
        (found,) = slices_of(slice_)
        page = load_page(str(PAPERS / f"{recipe}.py"))
        return said_of(slice_cost(page, found, {}, lambda line: print(line, flush=True), advise=False))
    except UserError as error:
        return {"refused": str(error)}


def said_of(cost: Any) -> dict[str, Any]:
    """A `SliceCost` as JSON holds it: sizes in bytes, times in seconds, all of one chip."""
    from rlhf_jax.planning.estimates import utilisation
    from rlhf_jax.planning.plan_text import iteration_seconds

    step, sampling = cost.programs[0], next((x for x in cost.programs if x.name == "sampling"), None)
    others = [x for x in cost.programs[1:] if x.name != "evaluation"]
    known = not any(x.refused for x in (step, *others))
    seconds = iteration_seconds(cost) if known else 0.0
    tokens = sampling.tokens if sampling else step.tokens
    programs = [
        {
            "name": x.name,
            "refused": x.refused,
            "needs": x.total,
            "fits": not x.refused and x.total <= cost.there,
            "flops": x.flops,
            "receives": x.received,
            **x.times._asdict(),
            "bound": x.times.bound,
            "compiled_s": x.seconds,
            "warnings": list(x.warnings),
        }
        for x in cost.programs
    ]
    return {
        "mesh": dict(cost.mesh),
        "there": cost.there,
        "fits": cost.fits,
        "notices": list(cost.notices),
        "mfu": utilisation(step, cost.slice.chip, cost.dtype),
        "iteration_s": seconds if others else 0.0,
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "programs": programs,
    }


def rows_of(
    recipe: str, slice_: str, found: Mapping[str, Any] | None, *, programs: bool
) -> list[tuple[str, ...]]:
    """The lines of the table that tell a plan; of one that is not there, or failed, one that says so."""
    from rlhf_jax.planning.plan_text import duration, size
    from rlhf_jax.training.loop.program_costs import GIB

    head = HEAD_OF_PROGRAMS if programs else HEAD
    why = "not planned" if found is None else found.get("failed") or found.get("refused")
    if why:
        return [(recipe, slice_, why, *[""] * (len(head) - 3))]
    if programs:
        return [
            (
                recipe,
                slice_,
                x["name"],
                "yes" if x["fits"] else "no",
                f"{x['needs'] / GIB:.1f} GiB",
                f"{x['flops'] / 1e12:.4g}",
                *(
                    ["-"] * 5
                    if x["refused"]
                    else [size(x["receives"])]
                    + [duration(x[name]) for name in ("compute", "interconnect", "memory")]
                    + [x["bound"]]
                ),
            )
            for x in found["programs"]
        ]
    step, most = found["programs"][0], max(found["programs"], key=lambda x: x["needs"])
    speeds = (
        ("-", "-", "-", "-")
        if not found["tokens_per_s"]
        else (
            step["bound"],
            f"{found['mfu']:.0%}",
            f"{found['tokens_per_s']:,.0f}",
            duration(found["iteration_s"]) if found["iteration_s"] else "",
        )
    )
    takes = max(step["compute"], step["interconnect"], step["memory"])
    return [
        (
            recipe,
            slice_,
            " x ".join(str(x) for x in found["mesh"].values()),
            "yes"
            if found["fits"]
            else f"no: {', '.join(x['name'] for x in found['programs'] if not x['fits'])}",
            f"{most['needs'] / GIB:.1f} GiB ({most['name']})",
            f"{found['there'] / GIB:.1f} GiB",
            "-" if step["refused"] else duration(takes),
            *speeds,
        )
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the head, as a table."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def planned(recipe: str, slice_: str, out: Path, timeout: float) -> None:
    """Has a plan made in a process of its own, which leaves the result; of a failure this one keeps the last line."""
    file, began = result_file(out, recipe, slice_), f"{recipe} on {slice_}"
    print(f"{began} ...", flush=True)
    command = [sys.executable, __file__, "--one", recipe, slice_, "--out", str(out)]
    try:
        run = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=timeout or None)
        lines = run.stderr.strip().splitlines()
        why = "" if not run.returncode else (lines or [f"ended with status {run.returncode}"])[-1][:300]
    except subprocess.TimeoutExpired:
        why = f"not compiled within {timeout:.0f} s"
    if why:
        file.write_text(json.dumps({"failed": why}) + "\n")
        print(f"{began}: {why}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", default="h100:8", help="with commas between them, as --plan names them")
    parser.add_argument("--pages", default="", help="recipes with commas between them; else all that train")
    parser.add_argument("--out", type=Path, default=Path("runs/plans"), help="folder of the results")
    parser.add_argument("--timeout", type=float, default=0, help="seconds that a plan may take; 0: any")
    parser.add_argument("--programs", action="store_true", help="a line for each program")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        from rlhf_jax.planning.slices import prepare_environment

        prepare_environment()
        file = result_file(options.out, *options.one)
        # The old file or the new one, whole, whenever this is killed.
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(plan(*options.one), indent=1) + "\n")
        beside.replace(file)
        return
    wanted = [x.strip() for x in options.pages.split(",") if x.strip()] or recipes()
    rows = [HEAD_OF_PROGRAMS if options.programs else HEAD]
    for slice_ in (x.strip() for x in options.slices.split(",")):
        for recipe in wanted:
            file = result_file(options.out, recipe, slice_)
            found = json.loads(file.read_text()) if file.is_file() else None
            if not options.table and (found is None or "failed" in found):
                planned(recipe, slice_, options.out, options.timeout)
                found = json.loads(file.read_text())
            rows += rows_of(recipe, slice_, found, programs=options.programs)
    print(f"\n{markdown(rows)}")


if __name__ == "__main__":
    main()
