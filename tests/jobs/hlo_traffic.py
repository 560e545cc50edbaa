"""Reading a compiled program's text: the bytes that each device sends in its collectives, loops counted as they run."""

import re
from typing import NamedTuple

import hlo

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_SENDING = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_CALLED = re.compile(
    r"(?:to_apply|calls|called_computations|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?"
)


class Sent(NamedTuple):
    """A collective of a program.

    Attributes:
      kind: as XLA calls it; an all-reduce of which each device keeps a part is a reduce-scatter.
      bytes: what each device sends in all of its runs, by a ring of the devices that take part.
      times: how often it runs.
      shape: of its largest result.
    """

    kind: str
    bytes: float
    times: int
    shape: tuple[int, ...]


def collectives(text, devices):
    """Every collective of a program that is compiled for a number of devices, as `Sent`, the largest first."""
    parts = hlo.computations(text)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1]
    found = []
    for name, times in _runs(entry, parts).items():
        lines = parts[name]
        started = any("AsyncCollectiveStart" in line for line in lines)
        for line in lines:
            sending = _SENDING.search(line)
            # TPU: a collective that runs beside other work stands in three fused computations, of which one starts it.
            if not sending or ("chain_id=" in line and not started):
                continue
            arrays = [_size(*x) for x in _ARRAY.findall(sending[1])]
            many = _devices_of(line, devices)
            if many == 1:
                continue
            kind = "reduce-scatter" if "reduce-scatter" in name else sending[2]
            # A -start returns (operands, results), of an all-reduce results only.
            result = max(arrays) if sending[3] and kind != "all-reduce" else sum(arrays)
            moved = {
                "all-gather": result * (many - 1) / many,
                "all-reduce": 2 * result * (many - 1) / many,
                "all-to-all": result * (many - 1) / many,
                "reduce-scatter": result * (many - 1) / many
                if sending[3] or "reduce-scatter" in name
                else result * (many - 1),
                "collective-permute": result,
            }[kind]
            shape = max(hlo.shapes(sending[1]), key=_elements)
            found.append(Sent(kind, moved * times, times, shape))
    return sorted(found, key=lambda sent: -sent.bytes)


def _runs(entry, parts):
    """{computation: how often it runs}, of those that the entry reaches."""
    times = {}

    def visit(name, many):
        times[name] = times.get(name, 0) + many
        for line in parts[name]:
            if " while(" in line:
                body, condition = (re.search(rf"{x}=%?([\w.\-]+)", line)[1] for x in ("body", "condition"))
                visit(body, many * _trips(line, parts[condition]))
                continue
            for names in _CALLED.findall(line):
                for called in (x.strip().lstrip("%") for x in names.split(",")):
                    if called in parts:
                        visit(called, many)

    visit(entry, 1)
    return times


def _trips(line, condition):
    """How often a loop runs; 1 where its text does not say."""
    if known := re.search(r'known_trip_count"?:\{"n":"?(\d+)', line):
        return int(known[1])
    # A counted loop's condition compares the counter with a constant.
    compared = re.search(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", "\n".join(condition))
    for other in condition if compared else ():
        if (constant := re.search(r"constant\((\d+)\)", other)) and other.split()[0] == f"%{compared[2]}":
            return int(constant[1])
    return 1


def _devices_of(line, devices):
    """How many devices take part in one group of a collective."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", line):
        sizes, many = dict(re.findall(r"'(\w+)'=(\d+)", named[1])), 1
        for axis, _, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[2]):
            many *= int(part or sizes[axis])
        return many
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(counted[1]) if counted else devices


def _size(dtype, dims):
    return _BYTES.get(dtype, 1) * _elements(tuple(map(int, filter(None, dims.split(",")))))


def _elements(shape):
    many = 1
    for n in shape:
        many *= n
    return many
