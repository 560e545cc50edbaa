"""What a program will take, known before it runs: memory on each device, and floating-point operations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.parallel.mesh import mesh_device

GIB = 2**30


class Chip(NamedTuple):
    """What an accelerator can do, per jax device of it; chips.yaml says what each number means, and its source."""

    name: str
    kind: str
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    interconnect: float
    network: float = 0.0
    host_link: float = 0.0
    host: int = 0
    slices: tuple[str, ...] = ()


@lru_cache
def chips() -> dict[str, Chip]:
    """The accelerators that are known, by the name of their family."""
    import yaml  # Here, since most runs ask for no chip.

    rows = yaml.safe_load((Path(__file__).with_name("chips.yaml")).read_text())
    return {name: Chip(name, **row) for name, row in rows.items()}


def chip_of(kind: str) -> Chip | None:
    """The accelerator of a jax device_kind; None of one that is not known, such as a CPU."""
    return next((chip for chip in chips().values() if chip.kind in kind), None)


class MemoryNeeds(NamedTuple):
    """Bytes of one compiled program on each device.

    Attributes:
      arguments: what it is called with.
      outputs: what it returns, without what it writes over its (donated) arguments.
      temporaries: what it holds in between.
      peak: the most that is alive at one time, where the compiler knows it; else 0.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int = 0

    @property
    def total(self) -> int:
        return self.peak or self.arguments + self.outputs + self.temporaries

    def without(self, shared: int) -> MemoryNeeds:
        """The same where so many bytes of the arguments are there only once."""
        return self._replace(arguments=self.arguments - shared, peak=max(0, self.peak - shared))


def needs(compiled: jax.stages.Compiled) -> MemoryNeeds:
    """Memory of a program as the compiler plans it. The peak of a device's allocator may lie a few percent above."""
    found = compiled.memory_analysis()
    # The compiler for CPUs leaves temporaries out of its peak; the others' is below the sum, by a fifth on TPU.
    peak = 0 if mesh_device().platform == "cpu" else getattr(found, "peak_memory_in_bytes", 0)
    # Donated arguments are overwritten by results; those bytes count once, as arguments.
    return MemoryNeeds(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        peak,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes that a tree of arrays, or of shapes with shardings, takes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available(device: Any = None) -> int:
    """Bytes a device offers programs. CPU devices share the machine's memory, each an equal part.

    device: the current mesh's unless given; of one that is not there, what chips.yaml says.
    """
    device = mesh_device() if device is None else device
    # The allocator's limit, which on GPUs is a share of the memory. CPU devices have no statistics.
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # of a device that programs are compiled for and that is elsewhere
        return int(chip_of(device.device_kind).memory * GIB)
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def peak_flops(device: Any = None) -> float | None:
    """FLOP/s of a device in dense bfloat16; None where that is not known, as of CPUs."""
    chip = chip_of((mesh_device() if device is None else device).device_kind)
    return None if chip is None else chip.flops["bfloat16"]


def matrix_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products, over all devices: 2 per multiply and add.

    jaxpr: of `jax.jit(f).trace(...)`. A scan counts as often as it runs, what remat computes again counts again,
    of a `cond` the dearer branch, and a `while` as often as it may run where its condition compares a counter with a
    number, else once. The compiler's own `cost_analysis` counts the body of a scan once, whatever its length.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            a = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(a[i] for i in contracted)
        inner = [matrix_flops(sub) for sub in programs_inside(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params.get("length", _most_runs(eqn)) * sum(inner) if inner else 0
    return total


def _most_runs(eqn: Any) -> int:
    """How often a `while` runs at most: the whole number that its condition compares with; of all else 1."""
    asked = eqn.params["cond_jaxpr"].jaxpr.eqns if eqn.primitive.name == "while" else ()
    most = [x.invars[1].val for x in asked if x.primitive.name == "lt" and hasattr(x.invars[1], "val")]
    return max((int(x) for x in most if jnp.issubdtype(jnp.result_type(x), jnp.integer)), default=1)


def programs_inside(eqn: Any) -> list[Any]:
    """Lists the jaxprs inside an operation of a jaxpr, such as a scan's body, without rules of differentiation."""
    found = []
    for name, inner in eqn.params.items():
        # Rules of differentiation: kept beside the operation, not run by it.
        if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):
            continue
        several = inner if isinstance(inner, tuple | list) else (inner,)
        found += [x for x in several if hasattr(getattr(x, "jaxpr", x), "eqns")]
    return found
