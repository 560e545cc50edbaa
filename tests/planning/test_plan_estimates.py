"""Arithmetic of a plan, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.planning import estimates, plan_report, plan_text, plan_warnings
from rlhf_jax.planning.estimates import ProgramCost, Times
from rlhf_jax.planning.hlo_costs import Collective
from rlhf_jax.planning.hlo_text import Computation, Operation, Runs
from rlhf_jax.planning.slice_costs import SliceCost
from rlhf_jax.planning.slices import Slice
from rlhf_jax.training.loop.program_costs import Chip, MemoryNeeds, chip_of, chips

CARD = Chip("card", "Card", {"bfloat16": 1e15, "float32": 5e14}, 80.0, 4e12, 4e11, 5e10, 8)
TORUS = CARD._replace(network=0.0, host=0, slices=("2x2",))


def sent(kind="all-gather", axes=("fsdp",), group=8, loops=(), moved=1e9, arrays=((4096, 4096),), hosts=8):
    times = 1
    for trips in loops:
        times *= trips
    return Collective(kind, axes, group, Runs(times, loops, True), moved, arrays, hosts, "")


def cost(name="train step", flops=1e12, moved=1e9, total=2**30, **changes):
    times = Times(1.0, 2.0, 0.5)
    about = (
        name,
        MemoryNeeds(0, 0, total),
        0,
        False,
        flops,
        6e11,
        (sent(moved=moved),),
        1e9,
        {},
        times,
        100,
        1.0,
    )
    return ProgramCost(*about)._replace(**changes)


def test_three_times():
    found = estimates.chip_times(CARD, "bfloat16", 2e12, [sent(), sent(loops=(3,))], 8e9)
    assert found == pytest.approx((2e12 / 1e15, 4e9 / 4e11, 8e9 / 4e12))
    assert (found.bound, found.seconds) == ("interconnect", pytest.approx(0.01))
    assert estimates.chip_times(CARD, "float32", 2e12, [], 0).compute == pytest.approx(4e-3)


def test_between_hosts_a_network_card_decides():
    assert estimates.link_speed(CARD, sent()) == 4e11
    # All eight cards of a host take part in a ring over 64, so that together they are as fast as the links.
    assert estimates.link_speed(CARD, sent(group=64, hosts=8)) == 4e11
    assert estimates.link_speed(CARD, sent(group=8, hosts=1)) == 5e10
    assert estimates.link_speed(TORUS, sent(group=64, hosts=1)) == 4e11


def test_utilisation_counts_the_models_own_operations():
    assert estimates.utilisation(cost(), CARD, "bfloat16") == pytest.approx(6e11 / 2.0 / 1e15)
    assert estimates.utilisation(cost(model_flops=0.0), CARD, "bfloat16") == 0.0


def test_collectives_are_added_by_kind_and_axis():
    found = [sent(), sent(loops=(4,)), sent("all-reduce", ("data", "fsdp"), moved=9e9)]
    assert estimates.by_kind(found) == [("all-reduce", "data+fsdp", 1, 9e9), ("all-gather", "fsdp", 5, 5e9)]


def test_what_grows_by_more_than_a_fifth_is_flagged():
    numbers = [estimates.per_chip(cost(moved=moved)) for moved in (1e9, 1.19e9, 1.3e9)]
    assert estimates.grown(numbers[:2]) == {}
    assert estimates.grown(numbers) == {"GB received": pytest.approx(1.3)}
    assert estimates.grown([{"x": 0.0}, {"x": 1.0}]) == {"x": float("inf")}
    assert estimates.grown([{"x": 2.0}, {"x": 1.0}]) == {}


def test_the_table_of_chips():
    assert {
        name: (chip.flops["bfloat16"], chip.memory) for name, chip in chips().items() if name[:2] == "v5"
    } == {
        "v5e": (197e12, 15.75),
        "v5p": (459e12, 95.74),
    }
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x", "TPU v4": "v4"}
    kinds |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100"}
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("cpu") is None
    for chip in chips().values():
        assert (
            set(chip.flops) == {"bfloat16", "float32"} and chip.bandwidth > chip.interconnect > chip.network
        )


def shapes():
    layers = {
        "up": jax.ShapeDtypeStruct((4, 64, 256), jnp.float32),
        "norm": jax.ShapeDtypeStruct((4, 64), jnp.float32),
    }
    return {"layers": layers, "embed": jax.ShapeDtypeStruct((1000, 64), jnp.float32)}


def test_weights_in_loops_and_sums_kept_whole_are_said():
    sizes = plan_warnings.model_sizes({"policy": shapes()})
    assert sizes == ({64 * 256, 64000}, {4}, {1000})
    weight, other = ((64, 256),), ((7, 11),)

    def said(*found):
        return plan_warnings.sending_warnings(found, sizes, 8, fsdp=4, tensor=1)

    assert said(sent(loops=(4,), arrays=weight), sent(loops=(8, 4), arrays=other)) == []
    (line,) = said(sent(loops=(8, 4), arrays=weight), sent(loops=(8,), arrays=weight))
    assert "all-gather over fsdp 8 times each" in line and "micro-batches" in line and "40.00 GB" in line
    (line,) = said(sent(loops=(3,), arrays=weight))
    assert "micro-batches" not in line
    (line,) = said(sent("all-reduce", loops=(4,), arrays=weight))
    assert line.startswith("4 all-reduces of whole weights over fsdp, 4.00 GB") and line.endswith(
        "sends half"
    )
    (line,) = plan_warnings.sending_warnings([sent("all-reduce", arrays=weight)], sizes, 1, fsdp=16, tensor=1)
    assert "mesh.fsdp=8" in line
    assert said(sent("all-reduce", ("data",), loops=(4,), arrays=weight)) == []


def test_an_array_of_all_logits_is_said_and_the_head_is_none():
    sizes = plan_warnings.model_sizes({"policy": shapes()})

    def said(shape, rows, T):
        parts = {"main": Computation("main", True, {"x": Operation("x", shape, "fusion", (), "", True)})}
        return plan_warnings.logits_warning(
            parts, {"main": Runs(1, (), True)}, sizes, fsdp=4, tensor=1, rows=rows, T=T
        )

    (line,) = said("f32[4,32,1000]{2,1,0}", 4, 32)
    assert line.startswith("an array of all logits, [4, 32, 1000], 0.00 GiB; a smaller logprob_chunk")
    assert said("f32[4,16,1000]{2,1,0}", 4, 32) == []
    # As many positions as the model is wide, or as a chip's part of the head is.
    assert said("f32[64,1000]{1,0}", 2, 32) == said("f32[16,1000]{1,0}", 2, 8) == []


def test_attention_that_fell_back_is_said():
    said = plan_warnings.attention_warning
    assert (
        said({"tpu_custom_call": 3}, "tpu", "auto") == said({}, "cpu", "auto") == said({}, "tpu", "xla") == []
    )
    assert said({"__cudnn$fmhaSoftmax": 3}, "gpu", "auto") == []
    assert "model.attention=splash says why" in said({"AllocateBuffer": 1}, "tpu", "auto")[0]


def slices_with(*programs):
    page = {"mesh": {}, "devices": 4, "parameters": "", "dtype": "bfloat16", "notices": (), "kept": {}}
    named = [Slice(f"card:{4 * 2**i}", CARD, 4 * 2**i) for i in range(len(programs))]
    return [SliceCost(one, programs=(found,), **page) for one, found in zip(named, programs, strict=True)]


def test_of_a_refused_program_a_scale_says_only_what_is_known():
    refused = cost(total=2**40, traffic=0.0, collectives=(), times=Times(1.0, 0, 0), refused=True)
    lines = plan_text.scale_text(slices_with(cost(), refused, cost(moved=2e9))).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("card:")}
    assert rows["card:4"] == ["1", "1", "1", "1", "interconnect", "2", "s"]
    assert rows["card:8"] == ["1", "1.02e+03", "-", "-", "-", "-"]
    assert lines[-1].startswith("warning: train step: GB received of a chip grows 2.00 times")


def test_a_report_draws_no_refused_program(tmp_path):
    refused = cost(total=2**40, traffic=0.0, collectives=(), refused=True)
    page = plan_report.write_plan_report(tmp_path / "two.html", "p", slices_with(cost(), refused, cost()))
    assert page.read_text().count("<svg") == 4 and "refused on card:8" in page.read_text()
    page = plan_report.write_plan_report(tmp_path / "one.html", "p", slices_with(refused, cost()))
    assert page.read_text().count("<svg") == 0 and "refused on card:4" in page.read_text()
