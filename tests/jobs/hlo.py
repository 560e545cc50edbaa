"""Reading a compiled program's text: the buffers it holds, and what its loops send between devices."""

import math
import re

_SHAPE = re.compile(r"\b(?:pred|[suf]\d+|bf16|f8\w*|c\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLS = re.compile(
    r"(?:to_apply|body|condition|calls|true_computation|false_computation|branch_computations)="
    r"\{?((?:%?[\w.\-]+(?:, )?)+)\}?"
)


def shapes(text):
    """Every array shape that stands in a piece of a program."""
    return {tuple(map(int, filter(None, dims.split(",")))) for dims in _SHAPE.findall(text)}


def computations(text):
    """{name: lines} of every computation of a program."""
    found, lines = {}, []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            lines = found.setdefault(start[2], [])
        lines.append(line)
    return found


def while_loops(text):
    """The lines of every loop of the program's entry, with all that they call: {op_name of the loop: lines}."""
    parts = computations(text)
    loops = {}
    for line in text.splitlines():
        body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
        if not body:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        loops[name[1] if name else body[1]] = [
            found for part in _reached(body[1], parts) for found in parts[part]
        ]
    return loops


def _reached(start, parts):
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in parts:
            continue
        seen.add(name)
        for line in parts[name]:
            for names in _CALLS.findall(line):
                todo += [called.strip().lstrip("%") for called in names.split(",")]
    return seen


def collectives(lines, kind):
    """The result shapes of every collective of a kind, as all-gather, among the lines of a program."""
    started = re.compile(rf"= (.*?) {kind}(?:-start)?\(")
    return [shape for line in lines if (found := started.search(line)) for shape in shapes(found[1])]


def largest_with(text, sizes):
    """The shape with the most elements among those that have a dimension of one of these sizes."""
    having = [shape for shape in shapes(text) if set(shape) & set(sizes)]
    return max(having, key=math.prod, default=())
