"""A plan as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_jax.planning.estimates import ProgramCost, by_kind, grown, per_chip, utilisation
from rlhf_jax.planning.slice_costs import SliceCost
from rlhf_jax.training.loop.program_costs import GIB
from rlhf_jax.training.run.memory_check import STEP

HEAD = ("program", "fits", "needs", "TFLOP", "receives", "compute", "interconnect", "memory", "bound")
# Collectives that are listed of each program; the rest is in the sum.
_LISTED = 6


def slice_text(found: SliceCost) -> str:
    """The table of a slice, its collectives, what bounds it, and what it warns of."""
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    lines = [
        f"{found.slice.name}: {found.devices} devices, mesh {mesh}; {found.parameters}; "
        f"{found.there / GIB:.2f} GiB on each",
        *(f"notice: {x}" for x in found.notices),
        "",
        *table([HEAD, *(program_row(x, found.there) for x in found.programs)]),
        "",
    ]
    for program in found.programs:
        if program.collectives:
            rows = by_kind(program.collectives)
            said = [
                f"{kind} over {axes} {times}x {size(moved)}" for kind, axes, times, moved in rows[:_LISTED]
            ]
            lines.append(f"{program.name} receives: {', '.join(said)}")
        lines.append(f"{program.name} memory: {memory_said(program)}")
    lines.append(f"always there: {', '.join(f'{name} {x:.2f}' for name, x in found.kept.items())} GiB")
    lines += [*waiting_said(found), "", *bounds(found)]
    lines += [f"warning: {x.name}: {said}" for x in found.programs for said in x.warnings]
    if not found.fits:
        lines.append(f"does not fit: {found.advice or 'use more devices or a smaller model'}")
    return "\n".join(lines)


def program_row(program: ProgramCost, there: int) -> tuple[str, ...]:
    """A program as a row of the table; all numbers are those of one chip."""
    fits = "yes" if program.total <= there and not program.refused else "NO"
    needed = f"{program.total / GIB:.2f} GiB"
    if program.refused:
        return (program.name, fits, needed, f"{program.flops / 1e12:.4g}", *("-",) * 5)
    times = program.times
    three = (duration(times.compute), duration(times.interconnect), duration(times.memory))
    return (
        program.name,
        fits,
        needed,
        f"{program.flops / 1e12:.4g}",
        size(program.received),
        *three,
        times.bound,
    )


def memory_said(program: ProgramCost) -> str:
    """The parts of what a program needs."""
    if program.refused:
        return f"the compiler refuses it at {program.needs.total / GIB:.2f} GiB"
    needs = program.needs
    parts = [f"arguments {needs.arguments / GIB:.2f}", f"temporaries {needs.temporaries / GIB:.2f}"]
    if needs.peak:
        parts.append(f"at one time {needs.peak / GIB:.2f}")
    if needs.outputs > GIB // 100:
        parts.append(f"results {needs.outputs / GIB:.2f}")
    parts.append(f"kept beside it {program.beside / GIB:.2f} GiB")
    return ", ".join(parts)


def waiting_said(found: SliceCost) -> list[str]:
    """What waits in the hosts' memory, and what it takes to move it there and back."""
    if not found.waiting:
        return []
    parts = ", ".join(f"{name} {x / GIB:.2f}" for name, x in found.waiting.items())
    link = found.slice.chip.host_link
    time = (
        f"{duration(found.moved / link)} at {size(link)}/s" if link else "how fast is not known of this chip"
    )
    return [
        f"waits on the hosts: {parts} GiB of each chip; an iteration moves {size(found.moved)} of it, {time}"
    ]


def bounds(found: SliceCost) -> list[str]:
    """What the train step, and an iteration of several programs, can reach at their bounds."""
    step = found.programs[0]
    if step.refused or not step.times.seconds:
        return []
    rate, mfu = step.tokens / step.times.seconds, utilisation(step, found.slice.chip, found.dtype)
    lines = [
        f"at its bound ({step.times.bound}) the {STEP} takes {duration(step.times.seconds)}: "
        f"{rate:,.0f} tokens/s, MFU {mfu:.1%}; compute alone would take {duration(step.times.compute)}"
    ]
    lines += [
        f"{x.name} writes {x.tokens / x.times.seconds:,.0f} tokens/s at its bound ({x.times.bound})"
        for x in found.programs[1:]
        if x.name == "sampling" and not x.refused
    ]
    others = [x for x in found.programs[1:] if x.name != "evaluation"]
    if others and not any(x.refused for x in others):
        seconds = iteration_seconds(found)
        parts = ", ".join([f"{found.updates} x {STEP}", *(x.name for x in others)])
        parts += ", moves to and from the hosts" if found.moved and found.slice.chip.host_link else ""
        lines.append(f"an iteration ({parts}) takes {duration(seconds)} at its bounds")
    return lines


def iteration_seconds(found: SliceCost) -> float:
    """Seconds of an iteration at the bounds of its programs; an evaluation is no part of it."""
    others = [x.times.seconds for x in found.programs[1:] if x.name != "evaluation"]
    link = found.slice.chip.host_link
    # Programs wait for what is moved, so none of it hides behind them.
    moving = found.moved / link if link else 0.0
    return found.updates * found.programs[0].times.seconds + sum(others) + moving


def scale_text(slices: Sequence[SliceCost]) -> str:
    """The train step and the others from slice to slice, rows per chip alike, and what grows."""
    lines = []
    for name in [x.name for x in slices[0].programs]:
        programs = [next(x for x in found.programs if x.name == name) for found in slices]
        rows = [(name, *per_chip(programs[0]), "bound", "at it")]
        for found, program in zip(slices, programs, strict=True):
            numbers = [f"{x:.3g}" for x in per_chip(program).values()]
            said = (*numbers, program.times.bound, duration(program.times.seconds))
            # What a refused program would receive, and how long it would take, nobody knows.
            said = (*numbers[:2], *"----") if program.refused else said
            rows.append((found.slice.name, *said))
        lines += [*table(rows), ""]
        for what, times in growth_of(programs).items():
            lines.append(
                f"warning: {name}: {what} of a chip grows {times:.2f} times from {slices[0].slice.name} on"
            )
    return "\n".join(lines)


def growth_of(programs: Sequence[ProgramCost]) -> dict[str, float]:
    """Per-chip numbers of a program that grow from slice to slice; refused ones have none."""
    known = [per_chip(x) for x in programs if not x.refused]
    return grown(known) if len(known) > 1 else {}


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
