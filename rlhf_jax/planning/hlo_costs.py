"""What a compiled program sends between chips, by kind and mesh axis, and its traffic with their main memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.planning.hlo_text import Computation, Operation, Runs, arrays_of, bytes_of

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """A collective of a program.

    Attributes:
      kind: one of KINDS.
      axes: of the mesh, over which its devices differ.
      group: how many devices take part together.
      runs: how often, and in which loops.
      moved: bytes that a chip receives each time, as a ring does it.
      arrays: dimensions of the whole arrays.
      hosts: of the devices of a group, how many lie on one host; the whole group where it is on one.
      source: the traced operation it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    runs: Runs
    moved: float
    arrays: tuple[tuple[int, ...], ...]
    hosts: int
    source: str

    @property
    def total(self) -> float:
        """Bytes that a chip receives in one call of the program."""
        return self.moved * self.runs.times


def collectives_of(
    parts: Mapping[str, Computation], runs: Mapping[str, Runs], mesh: Mapping[str, int], host: int = 0
) -> list[Collective]:
    """Every collective of a program, the largest first.

    mesh: its axes and their sizes. host: devices of a host; 0 where all are on one network.
    """
    count = int(np.prod(list(mesh.values())))
    found = []
    for part in parts.values():
        if part.name not in runs:
            continue
        # On TPU an asynchronous collective stands in every step of its way; the first of them says what it is.
        starts = any("AsyncCollectiveStart" in x.rest for x in part.operations.values())
        scatters = part.name.startswith(("all-reduce-scatter", "reduce-scatter"))
        for operation in part.operations.values():
            kind = operation.opcode.removesuffix("-start")
            if kind not in KINDS or ("chain_id=" in operation.rest and not starts):
                continue
            groups = groups_of(operation, count)
            if len(groups[0]) < 2:
                continue
            kind = "reduce-scatter" if kind == "all-reduce" and scatters else kind
            found.append(_collective(kind, operation, part, runs[part.name], groups, mesh, host))
    return sorted(found, key=lambda x: -x.total)


def groups_of(operation: Operation, count: int) -> list[tuple[int, ...]]:
    """The groups of devices, as numbers in the mesh, that take part in a collective together.

    XLA writes them out, as {{0,1},{2,3}}; as an iota that is reshaped and transposed, [2,2]<=[2,2]T(1,0); or by axes of
    a mesh of its own, mesh['x'=2,'y'=2] {'x'}. Of a permutation a group is a source and its target.
    """
    text = operation.rest
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        found = [tuple(map(int, x.split(","))) for x in re.findall(r"\{([\d,]+)\}", pairs[1])]
        return [pair for pair in found if pair[0] != pair[1]] or [(0,)]
    if axes := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\([^)]*\))?[^)]*)\))? \{([^}]*)\}", text
    ):
        return _by_axes(axes[1], axes[2] or "", axes[3])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape = [int(x) for x in iota[1].split(",")]
        return [tuple(map(int, row)) for row in _iota(iota[2], iota[3]).reshape(-1, shape[-1])]
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", text):
        return [tuple(int(y) for y in x.split(",") if y) for x in re.findall(r"\{([\d,]*)\}", listed[1])]
    return [tuple(range(count))]


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh over which some of its devices differ."""
    places = np.unravel_index(np.array(group), tuple(mesh.values()))
    return tuple(name for name, at in zip(mesh, places, strict=True) if len(set(at.tolist())) > 1)


def memory_traffic(parts: Mapping[str, Computation], runs: Mapping[str, Runs]) -> float:
    """Bytes that one call reads from and writes to a chip's main memory.

    Every operation reads its operands and writes its result, a fusion as one; of what is sliced the slice counts, and
    what lies in a chip's own fast memory does not.
    """
    inner = _inner(parts)
    total = 0.0
    for part in parts.values():
        if part.name in runs and part.name not in inner:
            total += runs[part.name].times * sum(_traffic(x, part, parts) for x in part.operations.values())
    return total


def kernels_of(parts: Mapping[str, Computation], runs: Mapping[str, Runs]) -> dict[str, int]:
    """Calls of what is no operation of XLA's, such as attention's kernels, by name: {name: times}."""
    found: dict[str, int] = {}
    for part in parts.values():
        for operation in part.operations.values():
            name = re.search(r'custom_call_target="([^"]+)"', operation.rest)
            if name and part.name in runs:
                found[name[1]] = found.get(name[1], 0) + runs[part.name].times
    return found


def _collective(
    kind: str,
    operation: Operation,
    part: Computation,
    runs: Runs,
    groups: list[tuple[int, ...]],
    mesh: Mapping[str, int],
    host: int,
) -> Collective:
    g = len(groups[0])
    given = [part.operations[name].shape for name in operation.operands if name in part.operations]
    arrays = [x for shape in given for x in arrays_of(shape)]
    size = sum(bytes_ for bytes_, _ in arrays)
    # A ring's: every chip receives each part of the result but its own, and of a sum its parts once on the way.
    ring = (g - 1) / g
    moved = size * {
        "all-gather": g - 1.0,
        "all-reduce": 2 * ring,
        "collective-permute": 1.0,
        "collective-broadcast": 1.0,
    }.get(kind, ring)
    together = g if not host else max(sum(x // host == groups[0][0] // host for x in groups[0]), 1)
    whole = tuple(_gathered(dims, g) if kind == "all-gather" else dims for _, dims in arrays)
    return Collective(kind, axes_of(groups[0], mesh), g, runs, moved, whole, together, operation.source)


def _gathered(dims: tuple[int, ...], group: int) -> tuple[int, ...]:
    # Which dimension grows does not matter to those who ask for the number of elements.
    return (group * dims[0], *dims[1:]) if dims else (group,)


def _by_axes(sizes: str, order: str, named: str) -> list[tuple[int, ...]]:
    """Groups by axes of a mesh that XLA writes out; an axis may be a part of one, 'x':(2)4, behind 2 and 4 long."""
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)]
    count = int(np.prod([size for _, size in axes]))
    ids = np.arange(count)
    if iota := re.search(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        ids = _iota(iota[1], iota[2]).reshape(-1)
    elif listed := re.findall(r"\d+", order):
        ids = np.array([int(x) for x in listed])
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
    shape, chosen = [], []
    for name, size in axes:
        parts = [(int(before), int(long)) for axis, before, long in wanted if axis == name and long]
        if any(axis == name and not long for axis, _, long in wanted):
            chosen.append(len(shape))
            shape.append(size)
            continue
        done = 1
        for before, long in sorted(parts):
            if before > done:
                shape.append(before // done)
            chosen.append(len(shape))
            shape.append(long)
            done = before * long
        shape.append(size // done)
    rest = [i for i in range(len(shape)) if i not in chosen]
    grouped = ids.reshape(shape).transpose(*rest, *chosen)
    return [tuple(map(int, row)) for row in grouped.reshape(-1, int(np.prod([shape[i] for i in chosen])))]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    shape = [int(x) for x in sizes.split(",")]
    ids = np.arange(int(np.prod(shape))).reshape(shape)
    return ids.transpose([int(x) for x in order.split(",")]) if order else ids


# Operations that move nothing: they name, or hand on, what another has made.
_FREE = (
    *("parameter", "constant", "iota", "partition-id", "replica-id", "tuple", "get-tuple-element", "bitcast"),
    *(
        "while",
        "conditional",
        "call",
        "after-all",
        "opt-barrier",
        "optimization-barrier",
        "domain",
        "add-dependency",
    ),
)


def _inner(parts: Mapping[str, Computation]) -> set[str]:
    """The computations that run inside an operation: what is fused, and the functions of reductions."""
    found = set()
    for part in parts.values():
        for operation in part.operations.values():
            if operation.opcode not in ("while", "conditional", "call", "async-start"):
                found |= set(operation.called)
    return found


def _traffic(operation: Operation, part: Computation, parts: Mapping[str, Computation]) -> float:
    opcode = operation.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")) or "AllocateBuffer" in operation.rest:
        return 0
    given = [part.operations[name].shape for name in operation.operands if name in part.operations]
    if opcode == "fusion":
        return _fusion_traffic(operation, given, parts[operation.called[0]])
    read = [bytes_of(shape, fast=False) for shape in given]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * bytes_of(operation.shape, fast=False) + sum(read[1:])
    if opcode == "dynamic-update-slice":
        return 2 * read[1]
    if opcode.endswith("-start"):  # (operand, result, what it waits for), where the result is the larger one
        sizes = [size for size, _ in arrays_of(operation.shape, fast=False)]
        return sum(read) + max(sizes, default=0) * (opcode != "copy-start" or len(sizes) > 1)
    return sum(read) + bytes_of(operation.shape, fast=False)


def _fusion_traffic(operation: Operation, given: Sequence[str], inside: Computation) -> float:
    """What a fusion reads of each operand, the slices of it where it takes no more, and what it writes."""
    uses: dict[str, list[Operation]] = {}
    for one in inside.operations.values():
        for name in one.operands:
            uses.setdefault(name, []).append(one)
    total = 0.0
    for one in inside.operations.values():
        if one.opcode == "parameter":
            size = bytes_of(given[int(one.rest)], fast=False)
            total += min(size, _read_of(one.name, uses, inside, size))
    return total + _written(inside.root, inside)


def _read_of(name: str, uses: Mapping[str, list[Operation]], inside: Computation, size: int) -> float:
    read = 0.0
    for use in uses.get(name, []):
        if use.opcode in ("bitcast", "reshape"):
            read += _read_of(use.name, uses, inside, size)
        elif use.opcode in ("dynamic-slice", "slice", "gather") and use.operands[0] == name:
            read += bytes_of(use.shape)
        elif use.opcode == "dynamic-update-slice" and use.operands[0] == name:
            continue  # written in place
        else:
            return size
    return read


def _written(root: Operation, inside: Computation) -> float:
    if root.opcode == "tuple":
        return sum(_written(inside.operations[x], inside) for x in root.operands if x in inside.operations)
    if root.opcode == "bitcast" and root.operands[0] in inside.operations:
        return _written(inside.operations[root.operands[0]], inside)
    if root.opcode == "dynamic-update-slice":
        return bytes_of(inside.operations[root.operands[1]].shape, fast=False)
    return bytes_of(root.shape, fast=False)
