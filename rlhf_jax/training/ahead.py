"""What a program will take, known before it runs: memory on each device, and floating-point operations."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import jax

GIB = 2**30
# The vendors' FLOP/s in dense bfloat16 and bytes/s of memory, by part of the device's name; the first that fits.
PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
    "TPU v6": (918e12, 1.64e12),
    "TPU v5 lite": (197e12, 0.82e12),
    "TPU v5": (459e12, 2.77e12),
    "TPU v4": (275e12, 1.23e12),
}


class Needs(NamedTuple):
    """Bytes of one compiled program on each device.

    Attributes:
      arguments: what it is called with.
      outputs: what it returns, without what it writes over its (donated) arguments.
      temporaries: what it holds in between.
    """

    arguments: int
    outputs: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries


def needs(compiled: jax.stages.Compiled) -> Needs:
    """As the compiler has planned it. The peak of the devices' own allocators may lie a few percent above."""
    found = compiled.memory_analysis()
    return Needs(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """What a tree of arrays, or of shapes with shardings, takes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def available(device: Any = None) -> int:
    """Bytes a device offers programs. CPU devices share the machine's memory, each an equal part."""
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def peak_flops(device: Any = None) -> float | None:
    """FLOP/s of a device in dense bfloat16; None where that is not known, as of CPUs."""
    kind = (jax.local_devices()[0] if device is None else device).device_kind
    return next((flops for name, (flops, _) in PEAKS.items() if name in kind), None)


def matrix_flops(jaxpr: Any) -> int:
    """Floating-point operations of a program's matrix products, over all devices: 2 per multiply and add.

    jaxpr: of `jax.jit(f).trace(...)`. A scan counts as often as it runs, what remat computes again counts again,
    of a `cond` the dearer branch, and a `while` once: how often it runs is not known. The compiler's own
    `cost_analysis` counts the body of a scan once, whatever its length.
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
            total += eqn.params.get("length", 1) * sum(inner) if inner else 0
    return total


def programs_inside(eqn: Any) -> list[Any]:
    """The programs that an operation of a jaxpr contains, without rules of differentiation."""
    found = []
    for name, value in eqn.params.items():
        if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):  # rules of differentiation, not run here
            continue
        values = value if isinstance(value, tuple | list) else (value,)
        found += [x for x in values if hasattr(getattr(x, "jaxpr", x), "eqns")]
    return found
