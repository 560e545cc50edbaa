"""Numbers of a measurement as a table."""

from __future__ import annotations

from statistics import median
from typing import Any

BUSY = 0.1  # Share of a repetition that a thread may wait for a core before the table says so.
AGREE = 1e-4  # Relative difference of loss and gradient norm at step 0 that counts as equal.
HEADER = (
    f"{'contestant':<14}{'tokens/s':>10}{'ours / it':>11}{'of matrix rate':>16}{'best s':>9}{'median s':>10}"
    f"{'CPU-s':>8}{'waited':>8}{'peak GiB':>10}{'first step s':>14}{'loss at 0':>12}{'|gradient|':>13}"
)


def table(found: dict[str, Any]) -> str:
    """One task at one size. Rates are of the fastest repetition: what the machine's other work disturbed least."""
    tokens, flops = found["tokens"], found["flops"]
    contestants = dict(found["contestants"])
    yardstick = contestants.pop("yardstick")["notes"]
    gflops, gbytes = (max(note[name] for note in yardstick) for name in ("gflops", "gbytes"))
    ours = _best(contestants.get("ours"))
    lines = [
        f"\n{found['title']}: {tokens} tokens and {flops / 1e9:.0f} GFLOP of "
        f"matrix products a repetition; this machine: {gflops:.0f} GFLOP/s, {gbytes:.0f} GB/s read",
        HEADER,
    ]
    for name, c in contestants.items():
        best = _best(c)
        if best is None:
            lines.append(f"{name:<14}failed: {c['failed'] or 'no timed repetition'}")
            continue
        timed, first = c["notes"][1:], c["notes"][0]
        lines.append(
            f"{name:<14}{tokens / best:>10.0f}{_ratio(best, ours):>11}{flops / best / 1e9 / gflops:>16.2f}"
            f"{best:>9.2f}{median(n['seconds'] for n in timed):>10.2f}{min(n['cpu_seconds'] for n in timed):>8.2f}"
            f"{_waited(c):>8.0%}"
            f"{c['peak_bytes'] / 2**30:>10.2f}{first['seconds']:>14.1f}{_number(first, 'loss'):>12}"
            f"{_number(first, 'grad_norm'):>13}"
        )
    busy = [name for name, c in contestants.items() if _waited(c) > BUSY]
    if busy:
        lines.append(f"!!! BUSY MACHINE: {', '.join(busy)} waited for a core; repeat them alone")
    return "\n".join(lines + disagreements(contestants))


def disagreements(contestants: dict[str, Any]) -> list[str]:
    """Says loudly whose loss or gradient norm at step 0 is not that of the first contestant that has one."""
    found = []
    for key in ("loss", "grad_norm"):
        given = {
            name: c["notes"][0][key] for name, c in contestants.items() if c["notes"] and key in c["notes"][0]
        }
        if not given:
            continue
        base, expected = next(iter(given.items()))
        found += [
            f"!!! DISAGREEMENT: {key} at step 0 is {x:.6g} for {name}, but {expected:.6g} for {base}"
            for name, x in given.items()
            if not abs(x - expected) <= AGREE * abs(expected)
        ]
    return found


def _best(c: dict[str, Any] | None) -> float | None:
    return min((n["seconds"] for n in c["notes"][1:]), default=None) if c else None


def _waited(c: dict[str, Any]) -> float:
    """Share of its fastest repetition that the thread worst off was ready to run but had no core."""
    fastest = min(c["notes"][1:], key=lambda n: n["seconds"], default=None)
    return fastest["waited_seconds"] / fastest["seconds"] if fastest else 0.0


def _ratio(best: float, ours: float | None) -> str:
    return "-" if ours is None else f"{best / ours:.2f}"


def _number(note: dict[str, float], name: str) -> str:
    return f"{note[name]:.6f}" if name in note else "-"
