"""Whether a trainer's step fits into memory: compiled from shapes, before any weight is read, and told.

So a run that does not fit ends before it has loaded anything, and a recipe can be checked on a machine that could
never run it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.jobs.plan import Plan, PlanOf
from rlhf_jax.models import fused
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.ahead import GIB, Needs, available, matrix_flops, needs


def prepare(plan_of: PlanOf, config: ConfigDict, mesh: Mesh) -> Plan:
    """Compiles a trainer's step and says what it takes. Raises UserError when that is more than there is."""
    plan, began = plan_of(config, mesh), time.perf_counter()
    traced = _traced(plan)
    compiled = traced.lower().compile()
    plan.step.use(compiled)
    found, there = {"train step": needs(compiled)} | _others(plan), available()
    most = max(found, key=lambda name: found[name].total + _beside(plan, name))
    total = found[most].total + _beside(plan, most)
    if startup.is_main():
        print(
            f"train step: {_parameters(plan)}, {matrix_flops(traced.jaxpr):.3g} FLOPs; "
            f"compiled in {time.perf_counter() - began:.1f} s\n"
            f"memory per device: {_gib(total)} needed ({_parts(found[most], _beside(plan, most), most)}), "
            f"{_gib(there)} there",
            flush=True,
        )
    if total > there:
        raise UserError(
            f"memory: {most} needs {_gib(total)} on each device, {_gib(there)} are there; "
            f"{_advice(plan_of, config, mesh, total)}"
        )
    startup.barrier("train step compiled", startup.SLOW_S)
    return plan._replace(flops=_model_flops(plan_of, config, mesh, traced))


def placed(params: Any, planned: Any) -> Any:
    """Parameters where the step expects them, and themselves where they are; fresh heads were made elsewhere."""

    def put(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return x if x.sharding.is_equivalent_to(like.sharding, x.ndim) else jax.device_put(x, like.sharding)

    return jax.tree.map(put, params, planned)


def needed(plan: Plan) -> int:
    """Bytes per device at the worst moment of an iteration."""
    found = {"train step": needs(_traced(plan).lower().compile())} | _others(plan)
    return max(x.total + _beside(plan, name) for name, x in found.items())


def _others(plan: Plan) -> dict[str, Needs]:
    found = {phase: needs(phase.lower().compile()) for phase in plan.others}
    return {p.name: x._replace(arguments=x.arguments - p.shared) for p, x in found.items()}


def _traced(plan: Plan) -> jax.stages.Traced:
    return plan.step.trace(plan.state, plan.batch, plan.frozen)


def _model_flops(plan_of: PlanOf, config: ConfigDict, mesh: Mesh, traced: jax.stages.Traced) -> float:
    """FLOPs of a train step as MFU counts them: without what remat computes again, whatever computes attention.

    Fused attention is one opaque operation to a count of matrix products, so XLA's is traced in its place.
    """
    fused_there = config.model.attention != "xla" and fused.here()[0] != "cpu"
    if config.model.remat != "none" or fused_there:
        plain = _changed(config.to_dict(), {"model.remat": "none", "model.attention": "xla"})
        traced = _traced(plan_of(plain, mesh))
    return float(matrix_flops(traced.jaxpr))


def _parameters(plan: Plan) -> str:
    trained, frozen = (
        sum(x.size for x in jax.tree.leaves(x)) / 1e6 for x in (plan.state.params, plan.frozen)
    )
    said = f"{trained + frozen:.1f}M parameters"
    return f"{said}, {trained:.2f}M of them trained" if frozen else said


def _beside(plan: Plan, name: str) -> int:
    return {phase.name: phase.beside for phase in plan.others}.get(name, plan.beside)


def _advice(plan_of: PlanOf, config: ConfigDict, mesh: Mesh, total: int) -> str:
    """The three settings that would help most, each compiled to see how much."""
    found = []
    for setting, changed in _candidates(config, mesh):
        there = make_mesh(**changed.mesh.to_dict()) if setting.startswith("mesh") else mesh
        try:
            found.append((needed(plan_of(changed, there)), setting))
        except UserError:  # a mesh that cannot split this model
            continue
        finally:
            jax.set_mesh(mesh)
    best = sorted(x for x in found if x[0] < total)[:3]
    if not best:
        return "no single setting helps; use more devices or a smaller model"
    return "what helps most: " + ", ".join(f"--config.{setting} ({_gib(bytes_)})" for bytes_, setting in best)


def _candidates(config: ConfigDict, mesh: Mesh) -> Iterator[tuple[str, ConfigDict]]:
    """Single settings that save memory and are not used yet."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    field = "minibatch_size" if "rollout" in config else "batch_size"
    B = config[field]
    wanted = {
        "model.remat": "full",
        "microbatches": B // ways,
        "optimizer.name": "adafactor",
        "logprob_chunk": 16,
        "rollout.dtype": "bfloat16",
        "model.dtype": "bfloat16",
        field: ways,
    } | ({"lora.base_dtype": "bfloat16"} if config.lora.rank else {})
    page = config.to_dict()
    flat = {name: _at(page, name) for name in wanted}
    for name, value in wanted.items():
        if flat[name] is not None and flat[name] != value:
            # Whatever else is cut with it must still divide: a batch of one row per device has one micro-batch.
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


def _parts(found: Needs, beside: int, phase: str) -> str:
    parts = [f"arguments {_gib(found.arguments)}", f"temporaries {_gib(found.temporaries)}"]
    if found.outputs > GIB // 100:
        parts.append(f"results {_gib(found.outputs)}")
    if beside:
        parts.append(f"what else is kept {_gib(beside)}")
    return f"{phase}: {', '.join(parts)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
