"""Compiles all programs of a page for a slice, and reads off what each of them costs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.models.attention import fused
from rlhf_jax.planning import hlo_costs, hlo_text, plan_warnings
from rlhf_jax.planning.estimates import ProgramCost, Times, chip_times
from rlhf_jax.planning.page_programs import PagePlan, page_on, programs_of
from rlhf_jax.planning.slices import Slice
from rlhf_jax.training.loop.program_costs import GIB, bytes_per_device, matrix_flops
from rlhf_jax.training.run import memory_check
from rlhf_jax.training.run.memory_check import STEP, Phase, Plan

Tell = Callable[[str], None]


class SliceCost(NamedTuple):
    """A page on a slice.

    Attributes:
      mesh: sizes by axis.
      devices: as jax counts them.
      programs: the train step first.
      notices: lines that a user should read.
      kept: GiB per device of what a run always holds, by name.
      waiting: bytes per device that are in the hosts' memory while they are not used, by name.
      moved: bytes per device that come from there and go there in an iteration.
      updates: train steps of an iteration.
      advice: of a page that does not fit, what would help; "" of one that does.
    """

    slice: Slice
    mesh: Mapping[str, int]
    devices: int
    programs: tuple[ProgramCost, ...]
    parameters: str
    dtype: str
    notices: tuple[str, ...]
    kept: Mapping[str, float]
    waiting: Mapping[str, int] = MappingProxyType({})
    moved: int = 0
    updates: int = 1
    advice: str = ""

    @property
    def there(self) -> int:
        """Bytes of memory on each device."""
        return self.slice.memory

    @property
    def fits(self) -> bool:
        return all(not x.refused and x.total <= self.there for x in self.programs)


def slice_cost(
    page: ConfigDict, found: Slice, asked: Mapping[str, str], tell: Tell, *, advise: bool
) -> SliceCost:
    """Compiles a page's programs for a slice. Raises UserError as its run would.

    advise: whether to compile, where it does not fit, the settings that may help.
    """
    with page_on(page, found, asked) as one:
        for planned in one.on_meshes():
            result = _cost_on(planned, found, tell)
            if result.fits:
                break
        if advise and not result.fits:
            tell(f"{found.name}: does not fit; compiling what may help")
            most = max(x.total for x in result.programs)
            said = memory_check.advice(planned.plan_of, planned.page, planned.mesh, most)
            result = result._replace(advice=said)
    return result


def _cost_on(planned: PagePlan, found: Slice, tell: Tell) -> SliceCost:
    """Compiles the programs on one mesh, the current one."""
    plan, count = planned.plan_of(planned.page, planned.mesh), planned.mesh.size
    flops, model_flops = _flops(planned, plan)
    programs = []
    for phase in programs_of(plan):
        cost = _program_cost(phase, planned, plan, found, flops[phase.name] / count)
        if phase.name == STEP:
            cost = cost._replace(model_flops=model_flops / count)
        tell(f"{found.name}: {phase.name} compiled in {cost.seconds:.0f} s")
        programs.append(cost)
    return SliceCost(
        found,
        dict(planned.mesh.shape),
        count,
        tuple(programs),
        memory_check.parameters_said(plan),
        planned.page.model.dtype,
        (*planned.notices, *_other_meshes(plan, planned.mesh)),
        _kept(plan),
        plan.waiting,
        plan.moved,
        plan.updates,
    )


def _kept(plan: Plan) -> dict[str, float]:
    found = {"trained": plan.state.params, "optimizer": plan.state.opt_state, "frozen": plan.frozen}
    found = {name: tree for name, tree in found.items() if name not in plan.waiting}
    sizes = {name: bytes_per_device(tree) for name, tree in found.items()} | {"other models": plan.beside}
    return {name: size / GIB for name, size in sizes.items() if size}


def _other_meshes(plan: Plan, mesh: Mesh) -> Iterator[str]:
    for phase in plan.others:
        if phase.mesh not in (None, mesh):
            said = " x ".join(f"{name} {size}" for name, size in phase.mesh.shape.items())
            yield f"{phase.name} runs on the same devices as {said}"


def _flops(planned: PagePlan, plan: Plan) -> tuple[dict[str, float], float]:
    """(FLOPs of every program over all devices, FLOPs of the train step as MFU counts them), without kernels."""
    plain, page = plan, planned.page
    if page.model.attention != "xla" and fused.here()[0] != "cpu":
        # A kernel is one opaque operation to a count of products.
        plain = planned.plan_of(memory_check.plain_page(page, page.model.remat), planned.mesh)
    flops = {x.name: float(matrix_flops(x.trace().jaxpr)) for x in programs_of(plain)}
    if page.model.remat == "none":
        return flops, flops[STEP]
    traced = memory_check.traced_step(planned.plan_of(memory_check.plain_page(page, "none"), planned.mesh))
    return flops, float(matrix_flops(traced.jaxpr))


def _program_cost(phase: Phase, planned: PagePlan, plan: Plan, found: Slice, flops: float) -> ProgramCost:
    began = time.perf_counter()
    try:
        needs, compiled = memory_check.compiled_needs(phase.trace().lower())
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0][:300]
        raise UserError(
            f"{found.name}: {phase.name}: the compiler itself fails, as it would in a run: {said}"
        ) from error
    seconds = time.perf_counter() - began
    page, mesh = planned.page, dict((phase.mesh or planned.mesh).shape)
    dtype, tokens = page.model.dtype, _tokens(phase.name, page, plan)
    needs = needs.without(phase.shared)
    about = {"name": phase.name, "needs": needs, "beside": phase.beside, "flops": flops, "model_flops": 0.0}
    if compiled is None:
        none = {
            "collectives": (),
            "traffic": 0.0,
            "kernels": {},
            "times": Times(flops / found.chip.flops[dtype], 0, 0),
        }
        return ProgramCost(**about, **none, refused=True, tokens=tokens, seconds=seconds)
    parts = hlo_text.computations_of(compiled.as_text())
    runs = hlo_text.runs_of(parts)
    sent = tuple(hlo_costs.collectives_of(parts, runs, mesh, found.chip.host))
    traffic, kernels = hlo_costs.memory_traffic(parts, runs), hlo_costs.kernels_of(parts, runs)
    sizes = plan_warnings.model_sizes((plan.frozen, plan.state.params))
    micro = page.microbatches if phase.name == STEP else 1
    warnings = plan_warnings.sending_warnings(sent, sizes, micro, mesh["fsdp"], mesh["tensor"])
    if phase.name == STEP:
        warnings += plan_warnings.attention_warning(kernels, fused.here()[0], page.model.attention)
        rows, T = _rows_and_columns(plan)
        each = rows // (mesh["data"] * mesh["fsdp"]) // micro
        warnings += plan_warnings.logits_warning(parts, runs, sizes, mesh["fsdp"], mesh["tensor"], each, T)
    times = chip_times(found.chip, dtype, flops, sent, traffic)
    rest = {
        "collectives": sent,
        "traffic": traffic,
        "kernels": kernels,
        "times": times,
        "warnings": tuple(warnings),
    }
    return ProgramCost(**about, **rest, refused=False, tokens=tokens, seconds=seconds)


def _tokens(name: str, page: ConfigDict, plan: Plan) -> int:
    """Positions of a program's batch; of sampling the tokens that it writes."""
    if name == "sampling" and "rollout" in page:
        return page.rollout.batch_size * page.rollout.samples * page.rollout.max_new_tokens
    return sum(leaf.size for leaf in _token_leaves(plan)) if name in (STEP, "evaluation") else 0


def _rows_and_columns(plan: Plan) -> tuple[int, int]:
    leaf = max(_token_leaves(plan), key=lambda x: x.shape[-1])
    return leaf.size // leaf.shape[-1], leaf.shape[-1]


def _token_leaves(plan: Plan) -> list[Any]:
    found = jax.tree_util.tree_leaves_with_path(plan.batch)
    return [x for path, x in found if "tokens" in jax.tree_util.keystr(path) and x.ndim > 1]
