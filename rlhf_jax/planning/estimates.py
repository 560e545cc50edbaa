"""Arithmetic of a plan: what products, messages and memory traffic take at least, and what grows with a slice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.planning.hlo_costs import Collective
from rlhf_jax.training.loop.program_costs import Chip, MemoryNeeds

# Per-chip numbers that grow by more than this from the smallest slice to another are flagged.
GROWTH = 1.2


class Times(NamedTuple):
    """Seconds that a program needs at least for its products, for what it sends, and for its main memory."""

    compute: float
    interconnect: float
    memory: float

    @property
    def seconds(self) -> float:
        """The longest of the three; a program is as fast as that where the others hide behind it."""
        return max(self)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        return max(self._fields, key=lambda name: getattr(self, name))


class ProgramCost(NamedTuple):
    """A program of an iteration on one slice; bytes and FLOPs are those of one chip in one call.

    Attributes:
      needs: its memory; of a program that the compiler refuses, what that says it uses.
      beside: bytes of what is alive meanwhile.
      refused: whether the compiler refused it as too large; nothing else is known of it then.
      flops: of its matrix products, whatever the attention kernel, with what remat computes again.
      model_flops: the same without that, as MFU counts them; 0 where it is no train step.
      traffic: bytes read from and written to main memory.
      tokens: of the batch over all chips, padding included.
      seconds: to compile it.
    """

    name: str
    needs: MemoryNeeds
    beside: int
    refused: bool
    flops: float
    model_flops: float
    collectives: tuple[Collective, ...]
    traffic: float
    kernels: Mapping[str, int]
    times: Times
    tokens: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes that must be there when it runs."""
        return self.needs.total + self.beside

    @property
    def received(self) -> float:
        """Bytes that a chip receives from others."""
        return sum(x.total for x in self.collectives)


def chip_times(
    chip: Chip, dtype: str, flops: float, collectives: Iterable[Collective], traffic: float
) -> Times:
    """The three times of a program whose products are in this dtype, at a chip's peaks."""
    sending = sum(x.total / link_speed(chip, x) for x in collectives)
    return Times(flops / chip.flops[dtype], sending, traffic / chip.bandwidth)


def link_speed(chip: Chip, collective: Collective) -> float:
    """Bytes/s at which a chip receives in a collective: over the torus or NVLink, or over the network between hosts.

    A ring over several hosts crosses each network card with a part of the bytes: a host's chips share the crossing.
    """
    if not chip.network or collective.hosts == collective.group:
        return chip.interconnect
    return min(chip.interconnect, collective.hosts * chip.network)


def by_kind(collectives: Iterable[Collective]) -> list[tuple[str, str, int, float]]:
    """(kind, axes, how often, bytes a chip receives) of a program's collectives, the largest first."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for x in collectives:
        key = (x.kind, "+".join(x.axes))
        times, moved = found.get(key, (0, 0.0))
        found[key] = (times + x.runs.times, moved + x.total)
    return sorted(((*key, *value) for key, value in found.items()), key=lambda row: -row[3])


def utilisation(program: ProgramCost, chip: Chip, dtype: str) -> float:
    """MFU at the bound: the share of the chip's peak that the model's own FLOPs come to. 0 where there are none."""
    if not program.model_flops or not program.times.seconds:
        return 0.0
    return program.model_flops / program.times.seconds / chip.flops[dtype]


def per_chip(program: ProgramCost) -> dict[str, float]:
    """The numbers of a program that should stay as they are where rows per chip do."""
    return {
        "TFLOP": program.flops / 1e12,
        "GiB needed": program.total / 2**30,
        "GB received": program.received / 1e9,
        "GB of memory traffic": program.traffic / 1e9,
    }


def grown(slices: Sequence[Mapping[str, float]], most: float = GROWTH) -> dict[str, float]:
    """{name: how many times as large} of the numbers that grow by more than `most` from the first to the largest."""
    first, *rest = slices
    found = {}
    for name, start in first.items():
        largest = max((x[name] for x in rest if name in x), default=0.0)
        # Next to nothing may grow to a little.
        if start > 1e-6 and largest > most * start:
            found[name] = largest / start
        elif start <= 1e-6 and largest > 1e-3:
            found[name] = float("inf")
    return found
