"""XLA's flags for programs so small that nearly all their time goes to compiling them, and for eight devices of one.

Tests of what XLA makes of a program, and of what it takes of memory, set their own.
"""

from importlib.metadata import version

# The older of its two emitters of fused loops takes a quarter of the time that MLIR's takes, and one module of LLVM's
# less than many. XLA ends a process at a flag that it does not know, so another version gets only what all know.
_OF_THIS_VERSION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK = f"{QUICK} {_OF_THIS_VERSION}"
EIGHT = f"{QUICK} --xla_force_host_platform_device_count=8"
