"""Reads the text of a compiled program (XLA's HLO): its computations, how often each runs, how large arrays are."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+(?:e\w+)?|c64|c128)\[([\d,<=]*)\](\{[^}]*\})?")
_START = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:to_apply|body|condition|calls|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"?(\d+)')


class Operation(NamedTuple):
    """A line of a computation. shape: of its result, as text; rest: what stands behind the operands."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def called(self) -> list[str]:
        """The computations it names."""
        return [
            x.strip().lstrip("%")
            for several, one in _CALLED.findall(self.rest)
            for x in (several or one).split(",")
        ]

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from; "" where none is noted."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Computation(NamedTuple):
    """Operations by name, in their order."""

    name: str
    entry: bool
    operations: dict[str, Operation]

    @property
    def root(self) -> Operation:
        return next(x for x in self.operations.values() if x.root)


class Runs(NamedTuple):
    """How often a computation runs in one call of the program.

    Attributes:
      times: the product of its loops.
      loops: the trips of each loop around it, the outermost first.
      exact: whether all of them are known; else they are the most that a condition allows, or 1.
    """

    times: int
    loops: tuple[int, ...]
    exact: bool


def computations_of(text: str) -> dict[str, Computation]:
    """All computations of a program, by name."""
    found: dict[str, Computation] = {}
    current = None
    for line in text.splitlines():
        if start := _START.match(line):
            current = found.setdefault(start[2], Computation(start[2], bool(start[1]), {}))
        elif current is not None and (match := _LINE.match(line)):
            operation = _operation(match[2], match[3], bool(match[1]))
            if operation is not None:
                current.operations[operation.name] = operation
    return found


def arrays_of(shape: str, *, fast: bool = True) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes, dimensions) of every array of a shape. fast: also of those in a memory of the chip's own beside HBM."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        # S(1) is the vector memory of a TPU; without a letter an array lies in HBM.
        if not fast and "S(" in layout:
            continue
        sizes = tuple(int(x.strip("<=")) for x in dims.split(",") if x)
        bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        found.append((math.prod(sizes) * bits // 8, sizes))
    return found


def bytes_of(shape: str, *, fast: bool = True) -> int:
    """Bytes of all arrays of a shape."""
    return sum(size for size, _ in arrays_of(shape, fast=fast))


def runs_of(parts: dict[str, Computation]) -> dict[str, Runs]:
    """How often each computation runs; those that nothing calls are not there."""
    entry = next(x.name for x in parts.values() if x.entry)
    calls: dict[str, list[tuple[str, int, bool]]] = defaultdict(list)
    for part in parts.values():
        for operation in part.operations.values():
            # The two ends of an asynchronous operation name what it does once more.
            if operation.opcode in ("async-done", "async-update"):
                continue
            trips, exact = trips_of(operation, parts) if operation.opcode == "while" else (0, True)
            calls[part.name] += [(name, trips, exact) for name in operation.called if name in parts]
    found: dict[str, Runs] = {}
    waiting = _callers(entry, calls)
    totals: dict[str, list[Runs]] = defaultdict(list)
    totals[entry] = [Runs(1, (), True)]
    ready = [entry]
    while ready:
        name = ready.pop()
        several = totals[name]
        # One that several call has the loops of that caller which runs it most.
        most = max(several, key=lambda runs: runs.times)
        found[name] = Runs(sum(x.times for x in several), most.loops, all(x.exact for x in several))
        for called, trips, exact in calls[name]:
            runs = found[name]
            loops = (*runs.loops, trips) if trips else runs.loops
            totals[called].append(Runs(runs.times * (trips or 1), loops, runs.exact and exact))
            waiting[called] -= 1
            if not waiting[called]:
                ready.append(called)
    return found


def trips_of(loop: Operation, parts: dict[str, Computation]) -> tuple[int, bool]:
    """(how often a loop runs, whether that is known): as noted, or by the constant that its counter is compared with.

    Where the condition asks for more than the counter it is the most; where it has no constant, 1.
    """
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1]), True
    name = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    inside, todo = [], [name]
    while todo:
        part = parts[todo.pop()]
        inside += part.operations.values()
        todo += [x for operation in part.operations.values() for x in operation.called if x in parts]
    bounds = [
        int(x[1])
        for o in inside
        if o.opcode == "constant" and (x := re.match(r"s32\[\]\S* (\d+)", o.shape + " " + o.rest))
    ]
    compared = [o for o in inside if o.opcode == "compare" and "direction=LT" in o.rest]
    asks_more = any(o.opcode in ("and", "or", "all-reduce", "reduce") for o in inside)
    return (max(bounds), len(compared) == 1 and not asks_more) if bounds else (1, False)


def _callers(entry: str, calls: dict[str, list[tuple[str, int, bool]]]) -> dict[str, int]:
    """How many calls of each computation there are in what the entry reaches."""
    found: dict[str, int] = defaultdict(int)
    seen, todo = {entry}, [entry]
    while todo:
        for called, _, _ in calls[todo.pop()]:
            found[called] += 1
            if called not in seen:
                seen.add(called)
                todo.append(called)
    return found


def _operation(name: str, text: str, root: bool) -> Operation | None:
    """Parses what stands behind `name = `: a shape, an opcode, operands in brackets, attributes."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.find("(")
    if end <= 0 or opening < 0:
        return None
    closing = _closing(rest, opening)
    opcode, inner = rest[:opening], rest[opening + 1 : closing]
    attributes = inner if opcode in ("constant", "parameter") else rest[closing + 1 :]
    return Operation(name, shape, opcode, tuple(_NAME.findall(inner)), attributes, root)


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens at a place closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)
