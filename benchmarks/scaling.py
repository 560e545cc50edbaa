"""Seconds of a train step against rows, tokens of a row, layers and devices, and how its matrix products grow: one SVG.

    python benchmarks/scaling.py                            # `small`, SFT and DPO, one CPU device and two: scaling.svg
    python benchmarks/scaling.py --size tiny --jobs sft --devices 1 --out /tmp/scaling.svg

Both axes are logarithmic, so a cost that grows with a power is a straight line, and the power its slope. The dotted
line through the largest size is the ideal: time in proportion to the floating-point operations of the step's matrix
products. Two CPU devices share the same two cores, so their ideal is the line of one. Every number of devices is a
process of its own; a time is the median of the steps after the first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import run
from setting import SIZES

import numpy as np  # isort: skip

from rlhf_jax.evaluation.report.charts import Axes, escape_html, path_data, svg_chart
from rlhf_jax.evaluation.report.claim_charts import standalone

JOBS, FACTORS = ("sft", "dpo"), (0.5, 1, 2, 4)
AXES = {"rows": "rows of a step", "length": "tokens of a row", "layers": "layers"}
PANEL, GAP, HEAD = (300, 210), 26, 34


class Point(NamedTuple):
    """What a step works on: rows (of DPO half as many pairs), tokens of each, and the model's layers."""

    rows: int
    length: int
    layers: int


class Cost(NamedTuple):
    """A step's seconds, and the FLOPs of its matrix products."""

    seconds: float
    flops: float


class Measured(NamedTuple):
    job: str
    devices: int
    costs: dict[Point, Cost]


def points(base: Point) -> dict[str, list[Point]]:
    """Along each axis half the base, the base, twice and four times as much."""
    return {name: [base._replace(**{name: round(getattr(base, name) * x)}) for x in FACTORS] for name in AXES}


def base_of(size: str) -> Point:
    found = SIZES[size]
    return Point(found.rows, (found.prompt + found.response) // 2, found.layers // 2)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power with which values grow, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def figure(measured: Sequence[Measured], base: Point) -> str:
    """The SVG: a row of panels for each job, in it one for each axis."""
    jobs = list(dict.fromkeys(one.job for one in measured))
    size = (len(AXES) * (PANEL[0] + GAP), HEAD + len(jobs) * (PANEL[1] + HEAD))
    body = [_legend(measured)]
    for i, job in enumerate(jobs):
        for j, (name, along) in enumerate(points(base).items()):
            drawn = _panel([one for one in measured if one.job == job], job, name, along)
            place = f"translate({j * (PANEL[0] + GAP)},{HEAD + i * (PANEL[1] + HEAD)})"
            body.append(f'<g transform="{place}">{drawn}</g>')
    return standalone(svg_chart("".join(body), "seconds of a train step against its size", size))


def _legend(measured: Sequence[Measured]) -> str:
    out = []
    for i, devices in enumerate(dict.fromkeys(one.devices for one in measured)):
        x, said = 46 + 110 * i, f"{devices} device{'s' if devices > 1 else ''}"
        out.append(f'<line class="line s{i + 1}" x1="{x}" x2="{x + 18}" y1="9" y2="9"/>')
        out.append(f'<text class="label" x="{x + 24}" y="9" dy=".32em">{said}</text>')
    x = 46 + 110 * len(out) // 2
    out.append(f'<path class="line dashed s6" d="M{x} 9L{x + 18} 9"/>')
    return (
        "".join(out) + f'<text class="label" x="{x + 24}" y="9" dy=".32em">as the matrix products grow</text>'
    )


def _panel(measured: Sequence[Measured], job: str, name: str, along: Sequence[Point]) -> str:
    sizes = [getattr(point, name) for point in along]
    costs = {one.devices: [one.costs[point] for point in along] for one in measured}
    times = {devices: [cost.seconds for cost in found] for devices, found in costs.items()}
    first = next(iter(costs.values()))
    flops = [cost.flops for cost in first]
    ideal = [first[-1].seconds * x / flops[-1] for x in flops]
    every = np.log2([*ideal, *(x for found in times.values() for x in found)])
    axes = Axes(np.log2(sizes), every, AXES[name], size=PANEL, x_pad=0.05)
    slopes = " and ".join(f"{slope(sizes, found):.2f}" for found in times.values())
    said = f"{job.upper()}, s a step: slope {slopes}, ideal {slope(sizes, flops):.2f}"
    out = [_grid(axes, sizes), f'<text class="label" x="4" y="-4">{escape_html(said)}</text>']
    for i, (devices, found) in enumerate(times.items(), 1):
        out.append(f'<path class="line s{i}" d="{path_data(axes, np.log2(sizes), np.log2(found))}"/>')
        for x, y in zip(sizes, found, strict=True):
            place = f'cx="{axes.px(math.log2(x)):.1f}" cy="{axes.py(math.log2(y)):.1f}"'
            told = f"{x} {AXES[name]}, {devices} device{'s' if devices > 1 else ''}: {y:.3g} s"
            out.append(f'<circle class="mark s{i}" r="4" {place}><title>{escape_html(told)}</title></circle>')
    out.append(f'<path class="line dashed s6" d="{path_data(axes, np.log2(sizes), np.log2(ideal))}"/>')
    return "".join(out)


def _grid(axes: Axes, sizes: Sequence[int]) -> str:
    """Lines at the powers of two of a second, and the sizes below: the axes' own ticks would be logarithms."""
    (width, height), out = PANEL, []
    for power in range(math.ceil(axes.y_low), math.floor(axes.y_high) + 1):
        y = f"{axes.py(power):.1f}"
        out.append(f'<line class="grid" x1="46" x2="{width - axes.right}" y1="{y}" y2="{y}"/>')
        out.append(f'<text x="40" y="{y}" dy=".32em" text-anchor="end">{2.0**power:.3g}</text>')
    for x in sizes:
        out.append(f'<text x="{axes.px(math.log2(x)):.1f}" y="{height - 10}" text-anchor="middle">{x}</text>')
    name = (
        f'<text class="name" x="{width - axes.right}" y="{height + 4}" text-anchor="end">{axes.x_name}</text>'
    )
    return "".join([*out, name])


def measure(mesh: Any, job: str, size: str, point: Point, steps: int) -> Cost:
    """Compiles a step on full rows of random tokens over the mesh, and times it."""
    import jax

    from rlhf_jax.data.batches import Pairs, Sequences, flattened, pad
    from rlhf_jax.methods import dpo, sft
    from rlhf_jax.models.config import ModelConfig
    from rlhf_jax.models.placement import init_sharded
    from rlhf_jax.parallel.mesh import to_global
    from rlhf_jax.training.loop.program_costs import matrix_flops
    from rlhf_jax.training.loop.state import create
    from rlhf_jax.training.loop.step import make_train_step
    from rlhf_jax.training.optimizers.optimizer import make_optimizer
    from rlhf_jax.training.run.encoded_rows import pad_pairs

    shape, (B, T, layers) = SIZES[size], point
    heads = {"heads": shape.heads, "kv_heads": shape.heads, "head_dim": shape.head_dim}
    config = ModelConfig(shape.vocab, shape.width, layers, ff=shape.ff, **heads)
    tokens_BT = np.random.default_rng(0).integers(3, shape.vocab, (B, T)).astype(np.int32)
    R = T - T // 4

    def sequences(rows_BT: np.ndarray) -> Sequences:
        return Sequences(*flattened(list(rows_BT)), np.full(len(rows_BT), T // 4, np.int32))

    if job == "sft":
        loss_fn, batch = sft.sft_loss_fn(config, R, 128), pad(sequences(tokens_BT), np.arange(B), T, 0)
    else:
        halves, zeros = Pairs(*map(sequences, np.split(tokens_BT, 2))), np.zeros(B // 2, np.float32)
        batch = pad_pairs(halves, np.arange(B // 2), T, 0, slice(None))
        batch |= {"ref_chosen": zeros, "ref_rejected": zeros}
        loss_fn = dpo.dpo_loss_fn(config, R, 128, beta=0.1)
    tx = make_optimizer(learning_rate=1e-6, total_steps=1000, schedule="constant")
    step, state = make_train_step(loss_fn, tx), create(init_sharded(config, mesh, 0), tx, 0)
    batch = to_global(batch, mesh)
    traced = step.trace(state, batch)
    step.use(traced.lower().compile(), batch)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - began)
    return Cost(statistics.median(seconds[1:]), matrix_flops(traced.jaxpr))


def in_a_process(job: str, devices: int, args: argparse.Namespace) -> Measured:
    """Measures all points with so many CPU devices, which a process decides at its start."""
    environment = run.environment(own_malloc=True)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, "--size", args.size, "--steps", str(args.steps), "--one", job]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line) for line in out.splitlines()]
    return Measured(job, devices, {Point(*point): Cost(*cost) for point, cost in found})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--jobs", type=run.names(JOBS), default=list(JOBS))
    parser.add_argument("--devices", type=run.names(("1", "2")), default=["1", "2"])
    parser.add_argument("--steps", type=int, default=3, help="timed ones, after the first")
    parser.add_argument("--out", type=Path, default=Path("scaling.svg"))
    parser.add_argument("--one", choices=JOBS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    base = base_of(args.size)
    if args.one:
        from rlhf_jax.parallel.mesh import make_mesh

        mesh = make_mesh()
        for point in dict.fromkeys(point for along in points(base).values() for point in along):
            print(json.dumps([point, measure(mesh, args.one, args.size, point, args.steps)]), flush=True)
        return
    measured = [in_a_process(job, int(devices), args) for job in args.jobs for devices in args.devices]
    print("| | axis | sizes | seconds a step | slope | ideal |\n|---|---|---|---|---|---|")
    for one in measured:
        for name, along in points(base).items():
            print(line(one, name, along))
    args.out.write_text(figure(measured, base))
    print(f"wrote {args.out}")


def line(one: Measured, name: str, along: Sequence[Point]) -> str:
    """A row of the table."""
    sizes, costs = [getattr(point, name) for point in along], [one.costs[point] for point in along]
    said = f"{one.job}, {one.devices} device{'s' if one.devices > 1 else ''}"
    seconds = ", ".join(f"{cost.seconds:.3g}" for cost in costs)
    slopes = [slope(sizes, [getattr(cost, field) for cost in costs]) for field in ("seconds", "flops")]
    cells = (said, AXES[name], ", ".join(map(str, sizes)), seconds, *(f"{x:.2f}" for x in slopes))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
