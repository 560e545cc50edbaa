"""What it takes to read a model of 1.2 billion parameters from bfloat16 shards, and to write it back.

    python benchmarks/import_export.py FOLDER

FOLDER needs 5 GB. A process each: one writes a random Llama (the shape of Llama 3.2 1B), one reads it onto a mesh and
writes it out again. Printed: the peak of resident memory during the import beyond what the process had before it, to
be compared with the float32 parameters' own size (here they live in host memory) and 1.3 times the largest shard; and
whether the files are the same, byte for byte.
"""

import filecmp
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MIB = 2**20
SHARD = 600 * 10**6  # bytes
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shape() -> Any:
    """The ModelConfig of Llama 3.2 1B."""
    from rlhf_jax.models.config import ModelConfig

    return ModelConfig(
        vocab_size=128256,
        width=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        ff=8192,
        tie_embeddings=True,
        dtype="bfloat16",
    )


def write(folder: Path) -> None:
    """Random weights, made one parameter after the other."""
    import jax.numpy as jnp
    import numpy as np

    from rlhf_jax.models.huggingface.name_map import parameter_shapes

    rng, params = np.random.default_rng(0), {}
    for path, size in parameter_shapes(shape(), scalar=False).items():
        group = params
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = rng.random(size, np.float32).astype(jnp.bfloat16)
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    _save(folder / "made", folder, params)


def read_and_write(folder: Path) -> None:
    import jax

    from rlhf_jax.models.huggingface import import_folder
    from rlhf_jax.parallel.mesh import make_mesh

    mesh = make_mesh(1, 1, 1)
    jax.block_until_ready(jax.numpy.ones(8) + 1)  # what jax itself takes
    before, began = _peak(), time.perf_counter()
    _, params = import_folder.load(folder / "made", mesh)
    jax.block_until_ready(params)
    peak, seconds = _peak() - before, time.perf_counter() - began
    own = sum(x.nbytes for x in jax.tree.leaves(params))
    count = sum(x.size for x in jax.tree.leaves(params))
    shards = [path.stat().st_size for path in (folder / "made").glob("*.safetensors")]
    most = own + 1.3 * max(shards)
    print(
        f"import: {count / 1e6:.0f}M parameters from {len(shards)} shards, the largest {max(shards) / MIB:.0f} MiB, "
        f"in {seconds:.1f} s; peak {peak / MIB:.0f} MiB, of {most / MIB:.0f} MiB that it may take "
        f"(parameters {own / MIB:.0f} MiB): {'ok' if peak <= most else 'TOO MUCH'}",
        flush=True,
    )
    began = time.perf_counter()
    _save(folder / "again", folder, params)
    seconds, risen = time.perf_counter() - began, _peak() - before - peak
    print(f"export: {seconds:.1f} s; the host's peak rose by {risen / MIB:.0f} MiB", flush=True)


def _save(target: Path, folder: Path, params: dict) -> None:
    from rlhf_jax.models.huggingface import export_folder

    options = {"token_ids": IDS, "tokenizer_from": folder / "tokenizer", "dtype": "bfloat16"}
    export_folder.save_folder(target, shape(), params, shard_bytes=SHARD, **options)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path) -> None:
    for step in ("write", "read_and_write"):
        subprocess.run([sys.executable, __file__, str(folder), step], check=True, cwd=ROOT)
    files = sorted(path.name for path in (folder / "made").iterdir())
    same, other, missing = filecmp.cmpfiles(folder / "made", folder / "again", files, shallow=False)
    print(f"files: {len(same)} the same byte for byte, {len(other)} not, {len(missing)} missing")
    sys.exit(bool(other or missing))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    steps = {"write": write, "read_and_write": read_and_write}
    steps.get(sys.argv[2] if len(sys.argv) > 2 else "", main)(Path(sys.argv[1]))
