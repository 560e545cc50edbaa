"""Checks whether a trainer's step fits into memory, by compiling it from shapes before any weight is read.

So a run that does not fit ends before it has loaded anything, with advice on which settings would help, and a recipe
can be checked on a machine that could never run it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.models.attention import fused
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import AUTO, BATCH_AXES, make_mesh, present_devices
from rlhf_jax.training.checkpoints.workdir import StartAgainError
from rlhf_jax.training.loop.program_costs import (
    GIB,
    MemoryNeeds,
    available,
    bytes_per_device,
    chip_of,
    matrix_flops,
    needs,
)
from rlhf_jax.training.loop.state import TrainState
from rlhf_jax.training.loop.step import Losses, TrainStep
from rlhf_jax.training.optimizers.optimizer import make_optimizer

Shapes = Any  # a tree of ShapeDtypeStructs with shardings


class Phase(NamedTuple):
    """A program of an iteration beside the train step, such as sampling.

    Attributes:
      beside: bytes per device of what is alive meanwhile and not its argument.
      shared: bytes per device that two of its arguments have in common.
      mesh: that it runs on, where it is not the run's.
    """

    name: str
    trace: Callable[[], jax.stages.Traced]
    beside: int
    shared: int = 0
    mesh: Mesh | None = None


class Plan(NamedTuple):
    """A trainer's step and what it is called with.

    Attributes:
      loss_fn, optimizer, step: what `make_train_step` was given, and gave.
      state, batch, frozen: as the step will see them.
      beside: bytes per device of other models, alive while the step runs.
      others: the other programs of an iteration.
      evaluation: the program of held-out rows, which needs less than the step; None where evaluations sample.
      flops: of one step over all devices, as MFU counts them; `prepare_step` fills it in.
      smaller: the other shapes that a batch may have, of fewer rows.
      updates: train steps of an iteration.
      waiting: bytes per device that wait in the hosts' memory while no program reads them, by name.
      moved: bytes per device that come from there and go back there in an iteration.
    """

    loss_fn: Losses
    optimizer: optax.GradientTransformation
    step: TrainStep
    state: TrainState
    batch: Shapes
    frozen: Shapes
    beside: int = 0
    others: tuple[Phase, ...] = ()
    evaluation: Phase | None = None
    flops: float = 0.0
    smaller: tuple[Shapes, ...] = ()
    updates: int = 1
    waiting: Mapping[str, int] = MappingProxyType({})
    moved: int = 0


STEP = "train step"
PlanOf = Callable[[ConfigDict, Mesh], Plan]


# What the compiler for TPU says, at once or before it gives up, of a program that does not fit: used, of how much.
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+[KMGT]) of [\d.]+[KMGT] hbm"),
    re.compile(r"\(([\d.]+[KMGT])\) exceeds available HBM"),
)


def compiled_needs(lowered: jax.stages.Lowered) -> tuple[MemoryNeeds, jax.stages.Compiled | None]:
    """Compiles a program: (its memory, it); None where the compiler refuses it as too large, with what it says of that.

    The compiler for TPU refuses what does not fit; others leave that to the first run.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = next((m for pattern in _TOO_LARGE if (m := pattern.search(str(error)))), None)
        if found is None or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = int(float(found[1][:-1]) * 1024 ** (1 + "KMGT".index(found[1][-1])))
        return MemoryNeeds(0, 0, used, used), None
    return needs(compiled), compiled


class StoppedAtPlanError(Exception):
    """Raised instead of compiling where only the plan of a run is wanted, see `stopped_at_plan`."""

    def __init__(self, plan_of: PlanOf, config: ConfigDict, mesh: Mesh) -> None:
        super().__init__("the plan of this run was asked for, and not the run")
        self.plan_of, self.config, self.mesh = plan_of, config, mesh


_stop: list[bool] = []


@contextmanager
def stopped_at_plan() -> Iterator[None]:
    """A context in which every run ends, by `StoppedAtPlanError`, where it would compile its first program."""
    _stop.append(True)
    try:
        yield
    finally:
        _stop.pop()


# What `mesh.fsdp=auto` is in a run that was started again for it.
_chosen: list[int] = []


def auto_mesh(config: ConfigDict) -> dict[str, int]:
    """The mesh of a run with `mesh.fsdp=auto`: what was chosen, or else the first to be tried."""
    tried = meshes_to_try(config)
    return next((sizes for sizes in tried if sizes["fsdp"] in _chosen), tried[0])


def meshes_to_try(config: ConfigDict) -> list[dict[str, int]]:
    """The meshes of which `mesh.fsdp=auto` takes the first that fits: as few devices share the parameters as can.

    What they share they gather for every micro-batch. On several hosts it is at least one host's devices: what passes
    between hosts are then sums of gradients, cut in so many parts. UserError where the page says something else, too.
    """
    devices, tensor = present_devices(), config.mesh.tensor
    if config.mesh.data not in (1, -1) or tensor == -1:
        field = "data" if tensor != -1 else "tensor"
        raise UserError(
            f"mesh.{field}: {config.mesh[field]}, and mesh.fsdp is auto, which chooses mesh.data, too; leave "
            f"mesh.{field} at 1, or give mesh.fsdp as a number"
        )
    chip, ways = chip_of(devices[0].device_kind), len(devices) // tensor
    # A launcher may start a process for each GPU, so the number of processes is not always that of hosts.
    host = (chip and chip.host) or len(devices) // len({device.process_index for device in devices})
    least = 1 if len(devices) <= host else max(1, host // tensor)
    tried = [n for n in range(least, ways + 1) if ways % n == 0] or [1]
    # Left open where tensor does not divide the devices: that is refused where the mesh is made.
    return [{"data": -1 if len(devices) % tensor else ways // n, "fsdp": n, "tensor": tensor} for n in tried]


@contextmanager
def auto_is(fsdp: int) -> Iterator[None]:
    """A context in which `mesh.fsdp=auto` is this number and no question any more."""
    _chosen.append(fsdp)
    try:
        yield
    finally:
        _chosen.pop()


def choose_fsdp(config: ConfigDict, here: int, total_on: Callable[[dict[str, int], int], int | None]) -> None:
    """Decides on `mesh.fsdp=auto` and says so. Raises StartAgainError where that is not what this run has, `here`.

    total_on: (a mesh, bytes there are) -> bytes per device that it needs, at least; None where it cannot be.
    """
    # Process 0 decides for all: machines may differ in what memory they have.
    there, too_large = startup.from_main("memory there", available(), startup.SLOW_S), ""
    for sizes in meshes_to_try(config):
        total = total_on(sizes, there)
        if startup.from_main("mesh.fsdp", total is not None and total <= there, startup.SLOW_S):
            break
        if total is not None:
            too_large += f"; {sizes['fsdp']} would need at least {_gib(total)}"
    again = sizes["fsdp"] != here
    if startup.is_main():
        need = "no plan" if total is None else f"{_gib(total)} needed"
        print(
            f"mesh.fsdp: auto takes {sizes['fsdp']}, with mesh.data {sizes['data']}: {need} on each device, "
            f"{_gib(there)} there{too_large}{'; the run starts again on it' if again else ''}",
            flush=True,
        )
    if again:
        raise StartAgainError(auto_is(sizes["fsdp"]))


def _total_on(
    plan_of: PlanOf, config: ConfigDict, mesh: Mesh, sizes: dict[str, int], there: int
) -> int | None:
    """See `choose_fsdp`; `mesh` stays the current one."""
    try:
        plan = plan_of(config, make_mesh(**sizes))
        kept = always_there(plan)
        return kept if kept > there else needed(plan)
    except UserError:
        return None
    finally:
        jax.set_mesh(mesh)


def always_there(plan: Plan) -> int:
    """Bytes per device of what a run holds all the time. Where they are too many, nothing needs to be compiled."""
    return bytes_per_device((plan.state.params, plan.state.opt_state, plan.frozen)) + plan.beside


def batch_shapes(mesh: Mesh, B: int, arrays: Any) -> Shapes:
    """From some rows of a batch, arrays or shapes: the shapes of the whole batch of B rows, split over the mesh."""
    where = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((B, *x.shape[1:]), x.dtype, sharding=where), arrays)


def optimizer_of(settings: ConfigDict, total_steps: int, **changes: Any) -> optax.GradientTransformation:
    """Makes the optimizer that a page's `optimizer` group describes."""
    return make_optimizer(**{**settings.to_dict(), "total_steps": total_steps, **changes})


def prepare_step(plan_of: PlanOf, config: ConfigDict, mesh: Mesh) -> Plan:
    """Compiles a trainer's step and prints what it takes. Raises UserError when that is more memory than there is."""
    if _stop:
        raise StoppedAtPlanError(plan_of, config, mesh)
    if config.mesh.fsdp == AUTO and not _chosen:
        choose_fsdp(config, mesh.shape["fsdp"], lambda *of: _total_on(plan_of, config, mesh, *of))
    plan, began = plan_of(config, mesh), time.perf_counter()
    traced = traced_step(plan)
    own, compiled = compiled_needs(traced.lower())
    # The run calls this very program, so checking memory costs no second compilation.
    if compiled is not None:
        plan.step.use(compiled, plan.batch)
    found, there = {STEP: own} | _others(plan), available()
    seconds, flops = time.perf_counter() - began, step_flops(plan_of, config, mesh, traced)
    # Programs run one after the other, so the largest of them decides and not their sum.
    most = max(found, key=lambda name: found[name].total + _beside(plan, name))
    total = found[most].total + _beside(plan, most)
    if startup.is_main():
        print(
            f"{STEP}: {parameters_said(plan)}, {flops:.3g} FLOPs; compiled in {seconds:.1f} s\n"
            f"memory per device: {_gib(total)} needed ({_parts(found[most], _beside(plan, most), most)}), "
            f"{_gib(there)} there",
            flush=True,
        )
    if total > there or compiled is None:
        raise UserError(
            f"memory: {most} needs {_gib(total)} on each device, {_gib(there)} are there; "
            f"{advice(plan_of, config, mesh, total)}"
        )
    # Smaller ones take less memory. Compiled here, so that no step in the middle of a run waits for it.
    for batch in plan.smaller:
        smaller = plan.step.trace(plan.state, batch, plan.frozen)
        plan.step.use(smaller.lower().compile(), batch)
    # Machines compile at different speeds, and the collectives that follow do not wait for so long.
    startup.barrier("train step compiled", startup.SLOW_S)
    if config.model.remat != "none":
        flops = step_flops(plan_of, config, mesh, traced, remat="none")
    return plan._replace(flops=flops)


def needed(plan: Plan) -> int:
    """Bytes per device that a plan needs at the worst moment of an iteration."""
    # Only what the compiler says: nothing is allocated, so plans can be larger than the machine.
    found = {STEP: compiled_needs(traced_step(plan).lower())[0]} | _others(plan)
    return max(x.total + _beside(plan, name) for name, x in found.items())


def _others(plan: Plan) -> dict[str, MemoryNeeds]:
    return {x.name: compiled_needs(x.trace().lower())[0].without(x.shared) for x in plan.others}


def traced_step(plan: Plan) -> jax.stages.Traced:
    """Traces a plan's train step."""
    return plan.step.trace(plan.state, plan.batch, plan.frozen)


def step_flops(
    plan_of: PlanOf, config: ConfigDict, mesh: Mesh, traced: jax.stages.Traced, remat: str = ""
) -> float:
    """FLOPs of a train step's products over all devices, the same for every choice of attention.

    Fused attention is one opaque operation to a count of matrix products, so XLA's is traced in its place. With a
    remat of "none", as MFU counts them, what the page's remat computes again is left out. traced: the page's own step.
    """
    remat = remat or config.model.remat
    fused_there = config.model.attention != "xla" and fused.here()[0] != "cpu"
    if config.model.remat != remat or fused_there:
        traced = traced_step(plan_of(plain_page(config, remat), mesh))
    return float(matrix_flops(traced.jaxpr))


def plain_page(config: ConfigDict, remat: str) -> ConfigDict:
    """The page with XLA's attention and this remat."""
    return _changed(config.to_dict(), {"model.remat": remat, "model.attention": "xla"})


def parameters_said(plan: Plan) -> str:
    trained, frozen = (
        sum(x.size for x in jax.tree.leaves(x)) / 1e6 for x in (plan.state.params, plan.frozen)
    )
    said = f"{trained + frozen:.1f}M parameters"
    return f"{said}, {trained:.2f}M of them trained" if frozen else said


def _beside(plan: Plan, name: str) -> int:
    return {phase.name: phase.beside for phase in plan.others}.get(name, plan.beside)


def advice(plan_of: PlanOf, config: ConfigDict, mesh: Mesh, total: int) -> str:
    """Names the three settings that would save most; each is compiled to see how much."""
    found = []
    for setting, changed in _candidates(config, mesh):
        there = make_mesh(**changed.mesh.to_dict()) if setting.startswith("mesh") else mesh
        try:
            found.append((needed(plan_of(changed, there)), setting))
        # A changed mesh may not be able to split this model; then it is no advice.
        except UserError:
            continue
        finally:
            # `make_mesh` has made the changed mesh current, also where the plan failed.
            jax.set_mesh(mesh)
    best = sorted(x for x in found if x[0] < total)[:3]
    if not best:
        return "no single setting helps; use more devices or a smaller model"
    said = ", ".join(f"--config.{setting} ({_gib(bytes_)})" for bytes_, setting in best)
    if mesh.shape["fsdp"] > 1 and any("microbatches" in setting for _, setting in best):
        said += "; every micro-batch gathers all weights again, so more of them send more"
    return f"what helps most: {said}"


def _candidates(config: ConfigDict, mesh: Mesh) -> Iterator[tuple[str, ConfigDict]]:
    """Yields single settings that save memory and are not in use yet, each with the page that has it."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    field = "minibatch_size" if "rollout" in config else "batch_size"
    B, prompts = config[field], config.get("rollout", {}).get("batch_size", 0)
    # Of each setting the strongest value that leaves the model's shape and its rows as they are.
    wanted = {
        "model.remat": "full",
        "microbatches": B // ways,
        "optimizer.name": "adafactor",
        "logprob_chunk": 16,
        "rollout.dtype": "bfloat16",
        "rollout.offload": "all",
        "rollout.microbatches": prompts // ways,
        "model.dtype": "bfloat16",
        field: ways,
    } | ({"lora.base_dtype": "bfloat16"} if config.lora.rank else {})
    page = config.to_dict()
    flat = {name: _at(page, name) for name in wanted}
    for name, value in wanted.items():
        if flat[name] is not None and flat[name] != value:
            # What is cut with it must still divide: one row per device has one micro-batch.
            also = {"microbatches": 1} if name == field else {}
            yield f"{name}={value}", _changed(page, {name: value} | also)
    if mesh.shape["data"] > 1:
        sizes = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": mesh.shape["tensor"]}
        yield "mesh.data=1 --config.mesh.fsdp=-1", _changed(page, sizes)


def _at(page: dict, name: str) -> Any:
    for part in name.split("."):
        page = page.get(part, {})
    return None if page == {} else page


def _changed(page: dict, changes: dict[str, Any]) -> ConfigDict:
    config = ConfigDict(page)
    config.update_from_flattened_dict(changes)
    return config


def _parts(found: MemoryNeeds, beside: int, phase: str) -> str:
    parts = [f"arguments {_gib(found.arguments)}", f"temporaries {_gib(found.temporaries)}"]
    if found.peak:
        parts.append(f"{_gib(found.peak)} of them at one time")
    if found.outputs > GIB // 100:
        parts.append(f"results {_gib(found.outputs)}")
    if beside:
        parts.append(f"what else is kept {_gib(beside)}")
    return f"{phase}: {', '.join(parts)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
