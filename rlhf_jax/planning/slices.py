"""Slices of accelerators by name, v5e:8x8 or h100:64, as devices that programs can be compiled for without being there.

TPUs take the compiler of the package libtpu, NVIDIA GPUs that of jax's CUDA plugin; neither needs a chip.
"""

from __future__ import annotations

import math
import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.training.loop.program_costs import Chip

_TPU = re.compile(r"[1-9]\d*(x[1-9]\d*){1,2}")
_GPUS = re.compile(r"[1-9]\d*")


class Slice(NamedTuple):
    """Some accelerators of a family.

    Attributes:
      name: as it is asked for, v5e:8x8.
      chip: what each of its devices can do.
      count: of its chips; TPU7x has two devices on each.
    """

    name: str
    chip: Chip
    count: int

    @property
    def is_tpu(self) -> bool:
        return not self.chip.host

    @property
    def memory(self) -> int:
        """Bytes that a run finds on each device: all of a TPU's, and of a GPU's what jax takes for itself."""
        share = 1.0 if self.is_tpu else float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
        return int(self.chip.memory * share * 2**30)


def prepare_environment() -> None:
    """Sets what jax and the compilers read when they are loaded: call it before anything imports jax."""
    # The plan needs no accelerator, and must not take one that another program works on.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # libtpu would look for its machine, and lets one process in at a time.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    # Autotuning would measure candidates on a card.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_autotune_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def slices_of(text: str, scale: str = "") -> list[Slice]:
    """The slices that --plan and --scale name: one, or with a scale several of one family, by their chips.

    Raises UserError for a name that is none, with those that are.
    """
    from rlhf_jax.training.loop.program_costs import chips

    family, _, size = text.partition(":")
    known = chips()
    named = [name for name, chip in known.items() if chip.host or chip.slices]
    if family not in named:
        raise UserError(f"--plan: {text!r} is no slice; use one of {', '.join(named)}, as {_EXAMPLES}")
    chip = known[family]
    if not scale:
        return [_slice(chip, size, text)]
    if size:
        raise UserError(f"--scale: goes with a family alone, --plan={family}, and not with {text}")
    counts = [part.strip() for part in scale.split(",")]
    if len(counts) < 2 or not all(_GPUS.fullmatch(part) for part in counts):
        raise UserError(
            f"--scale: {scale!r} is no list of two or more chip counts; write for example 8,64,256"
        )
    return [of_count(chip, int(part)) for part in counts]


_EXAMPLES = "v5e:8x8, v5p:2x2x2, h100:64"


def of_count(chip: Chip, count: int) -> Slice:
    """The slice of a family with so many chips; UserError where the family has none."""
    if chip.host:
        return _slice(chip, str(count), f"{chip.name}:{count}")
    sizes = {math.prod(map(int, shape.split("x"))): shape for shape in chip.slices}
    if count not in sizes:
        raise UserError(f"--scale: no slice of {chip.name} has {count} chips; there are {_listed(sizes)}")
    return _slice(chip, sizes[count], f"{chip.name}:{sizes[count]}")


def larger(found: Slice) -> list[Slice]:
    """The slices of the same family that have more chips, the smallest first."""
    if found.is_tpu:
        rest = [_slice(found.chip, shape, f"{found.chip.name}:{shape}") for shape in found.chip.slices]
    else:
        rest = [of_count(found.chip, found.chip.host * 2**i) for i in range(8)]
    return [x for x in rest if x.count > found.count]


def devices_of(found: Slice) -> list[Any]:
    """The devices of a slice, for a mesh that programs are compiled for. UserError where the compiler is missing."""
    return _tpu_devices(found) if found.is_tpu else _gpu_devices(found)


def _slice(chip: Chip, size: str, text: str) -> Slice:
    if chip.host:
        if not _GPUS.fullmatch(size):
            raise UserError(f"--plan: {text!r} names no number of GPUs; write for example {chip.name}:8")
        count = int(size)
        if count > chip.host and count % chip.host:
            raise UserError(
                f"--plan: {text!r}: {count} GPUs are no whole hosts of {chip.host}; use a multiple of it"
            )
        return Slice(text, chip, count)
    example = chip.slices[len(chip.slices) // 2]
    if not _TPU.fullmatch(size) or size.count("x") != example.count("x"):
        raise UserError(
            f"--plan: {text!r} names no shape of a slice; write for example {chip.name}:{example}"
        )
    # A family in two dimensions has few slices, and libtpu would compile for others, too, that nobody can have.
    if size.count("x") == 1 and size not in chip.slices:
        raise UserError(
            f"--plan: there is no slice {text}; use {chip.name}: with one of {', '.join(chip.slices)}"
        )
    return Slice(text, chip, math.prod(map(int, size.split("x"))))


def _listed(sizes: Any) -> str:
    return ", ".join(map(str, sorted(sizes)))


def _tpu_devices(found: Slice) -> list[Any]:
    if find_spec("libtpu") is None:
        raise UserError(
            f"--plan: {found.name} needs the compiler for TPUs; run pip install 'libtpu==0.0.42.*'"
        )
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found.name).devices)
    # jax and libtpu raise several kinds, by what of the name they do not like.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--plan: {found.name} is no slice that libtpu knows ({reason}); use {found.chip.name}: with one of "
            f"{', '.join(found.chip.slices)}"
        ) from error


# A card as XLA's compiler is told of it: cores, compute capability, shared memory of a core, second-level cache.
_CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 132, (9, 0), 233472, 52428800),
    "h200": ("NVIDIA H200", 132, (9, 0), 233472, 62914560),
    "a100": ("NVIDIA A100-SXM4-80GB", 108, (8, 0), 167936, 41943040),
}
_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}" """


def _gpu_devices(found: Slice) -> list[Any]:
    if find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda13") is None:
        raise UserError(
            f"--plan: {found.name} needs the compiler for NVIDIA GPUs; run pip install 'jax[cuda13]'"
        )
    from jax._src.cudnn import fused_attention_stablehlo as library
    from jax.experimental import topologies

    name, cores, (major, minor), shared, cache = _CARDS[found.chip.name]
    target = _TARGET.format(
        name=name,
        cores=cores,
        major=major,
        minor=minor,
        shared=shared,
        optin=shared - 1024,
        cache=cache,
        bandwidth=int(found.chip.bandwidth),
        memory=int(found.chip.memory * 2**30),
    )
    # What jax asks of the card that is there before it takes cuDNN's attention, answered for the one that is not.
    library.check_cudnn_version = lambda: 91200
    library.check_compute_capability = lambda capability: True
    library.is_cuda_compute_capability_equal = lambda capability: capability == f"{major}.{minor}"
    hosts = max(1, found.count // found.chip.host)
    topology = f"1x{hosts}x{found.count // hosts}"
    about = {"topology_name": "", "platform": "cuda", "target_config": target, "topology": topology}
    return list(topologies.get_topology_desc(**about).devices)
