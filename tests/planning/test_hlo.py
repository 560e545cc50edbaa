"""Reading compiled programs: loops, collectives in the forms in which XLA writes them, traffic with memory."""

import hlo_texts
import pytest

from rlhf_jax.planning import hlo_costs, hlo_text
from rlhf_jax.planning.hlo_text import Operation, Runs

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
EIGHT = {"data": 2, "fsdp": 4, "tensor": 1}


def parsed(text):
    parts = hlo_text.computations_of(text)
    return parts, hlo_text.runs_of(parts)


def test_how_often_loops_run():
    _, runs = parsed(hlo_texts.LOOPS)
    assert runs["main"] == Runs(1, (), True)
    assert runs["outer_body"] == Runs(4, (4,), True)
    assert runs["inner_body"] == Runs(12, (4, 3), True)
    # It may stop before, so that is the most, and known to be no more than that.
    assert runs["early_body"] == Runs(7, (7,), False)


def test_a_collective_in_loops_counts_as_often_as_they_run():
    (found,) = hlo_costs.collectives_of(*parsed(hlo_texts.LOOPS), MESH)
    assert (found.kind, found.axes, found.group) == ("all-reduce", ("tensor",), 2)
    assert found.moved == 2 * 8 * 4 * 4 / 2 and found.total == 12 * found.moved


def test_each_collective_counts_once_whatever_its_form():
    found = hlo_costs.collectives_of(*parsed(hlo_texts.COLLECTIVES), EIGHT)
    w, g = 4 * 8 * 2, 16 * 8 * 4
    wanted = {
        ("all-gather", ("data",), 2): w * 1,
        ("reduce-scatter", ("fsdp",), 4): [g * 3 / 4] * 2,
        ("all-reduce", ("data", "fsdp"), 8): 2 * (g + g / 4) * 7 / 8,
        ("all-gather", ("fsdp",), 4): w * 3,
        ("collective-permute", ("data",), 2): w,
    }
    seen = {}
    for x in found:
        seen.setdefault((x.kind, x.axes, x.group), []).append(x.moved)
    assert seen == {key: value if isinstance(value, list) else [value] for key, value in wanted.items()}
    assert [x.total for x in found] == sorted((x.total for x in found), reverse=True)
    gathered = next(x for x in found if x.kind == "all-gather" and x.group == 4)
    assert gathered.arrays == ((16, 8),)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]<=[2,2]T(1,0)) {'b'}", [(0, 2), (1, 3)]),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}",
            [(0, 2), (1, 3), (4, 6), (5, 7)],
        ),
        ("replica_groups={}", [(0, 1, 2, 3)]),
        ("source_target_pairs={{0,0},{1,2},{2,1}}", [(1, 2), (2, 1)]),
    ],
)
def test_the_forms_of_groups(text, groups):
    operation = Operation("x", "f32[]", "all-reduce", (), f", {text}, to_apply=%add", False)
    assert hlo_costs.groups_of(operation, 4) == groups


def test_hosts_share_a_group():
    text = hlo_texts.LOOPS.replace("{{0,1},{2,3},{4,5},{6,7}}", "{{0,1,4,5},{2,3,6,7}}")
    (found,) = hlo_costs.collectives_of(*parsed(text), MESH, host=4)
    assert (found.axes, found.group, found.hosts) == (("data", "tensor"), 4, 2)
    (found,) = hlo_costs.collectives_of(*parsed(text), MESH)
    assert found.hosts == 4


def test_traffic_is_of_slices_and_not_of_what_they_are_of():
    row, i = 64 * 4, 4
    product = (8 * 16 + 16 * 4 + 8 * 4) * 4
    taken = row + i + row
    # The row that is written lies in fast memory; the stack is written in place.
    written = i + row
    assert hlo_costs.memory_traffic(*parsed(hlo_texts.TRAFFIC)) == product + taken + written


def test_sizes_of_arrays():
    assert hlo_text.arrays_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[5], f8e4m3fn[4])") == [
        (12, (2, 3)),
        (5, (5,)),
        (4, (4,)),
    ]
    assert hlo_text.bytes_of("(bf16[2,3]{1,0:T(8,128)S(1)}, s4[8]{0})", fast=False) == 4
