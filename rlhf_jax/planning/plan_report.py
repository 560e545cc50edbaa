"""report.html of a plan: a table per slice, what its programs send, and how the numbers of a chip change with size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.evaluation.report.charts import Axes, escape_html, path_data, svg_chart
from rlhf_jax.evaluation.report.page import whole_page
from rlhf_jax.planning.estimates import by_kind, per_chip
from rlhf_jax.planning.plan_text import HEAD, bounds, growth_of, memory_said, program_row, size, waiting_said
from rlhf_jax.planning.slice_costs import SliceCost


def write_plan_report(path: Path, title: str, slices: Sequence[SliceCost]) -> Path:
    """Writes the report of a plan and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = "<p>Compiled for accelerators that were not there.</p>"
    top = f"<header><h1>{escape_html(title)}, planned</h1>{about}</header>"
    parts = {"scaling": ("Scaling, rows per chip alike", _scaling(slices))} if len(slices) > 1 else {}
    for i, found in enumerate(slices):
        parts[f"slice{i}"] = (escape_html(found.slice.name), _slice_section(found))
    path.write_text(whole_page(f"{title}: plan", top, parts), encoding="utf-8")
    return path


def _slice_section(found: SliceCost) -> str:
    mesh = " x ".join(f"{name} {length}" for name, length in found.mesh.items())
    about = f"{found.devices} devices, mesh {mesh}; {found.parameters}; all numbers are those of one chip"
    programs = [(*program_row(x, found.there), memory_said(x)) for x in found.programs]
    sent = [
        (x.name, kind, axes, str(times), size(moved))
        for x in found.programs
        for kind, axes, times, moved in by_kind(x.collectives)
    ]
    said = [
        *found.notices,
        *waiting_said(found),
        *bounds(found),
        *(f"{x.name}: {y}" for x in found.programs for y in x.warnings),
    ]
    said += [found.advice] if found.advice else []
    notes = "".join(f"<li>{escape_html(line)}</li>" for line in said)
    messages = _table(("program", "collective", "over", "times", "bytes received"), sent) if sent else ""
    table = _table((*HEAD, "memory, GiB"), programs)
    return f"<p>{escape_html(about)}</p>{table}<ul>{notes}</ul>{messages}"


def _scaling(slices: Sequence[SliceCost]) -> str:
    """A chart per number of a chip's train step, relative to the smallest slice; a flat line scales."""
    # Of a program that the compiler refuses only its size is known.
    known = [found for found in slices if not found.programs[0].refused]
    step = [found.programs[0] for found in known]
    refused = ", ".join(found.slice.name for found in slices if found.programs[0].refused)
    notes = [f"its train step is refused on {refused}"] if refused else []
    cards = []
    if len(known) > 1:
        chips = np.array([found.slice.count for found in known], float)
        for name, first in per_chip(step[0]).items():
            values = np.array([per_chip(x)[name] for x in step])
            relative = values / first if first else np.ones_like(values)
            axes = Axes(chips, np.concatenate([relative, [0.0, 1.2]]), "chips")
            line = f'<path class="line s1" d="{path_data(axes, chips, relative)}"/>'
            caption = f"{name} of a chip, times that of {known[0].slice.name} ({first:.3g})"
            chart = svg_chart(axes.svg() + line, caption)
            cards.append(
                f'<figure class="card"><figcaption>{escape_html(caption)}</figcaption>{chart}</figure>'
            )
        grows = [f"{name} grows {times:.2f} times" for name, times in growth_of(step).items()]
        notes += grows or ["no number of a chip grows by more than 20 %"]
    return f'<div class="cards two">{"".join(cards)}</div><p class="note">{escape_html("; ".join(notes))}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape_html(x)}</th>" for x in head)
    body = "".join("<tr>" + "".join(f"<td>{escape_html(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
