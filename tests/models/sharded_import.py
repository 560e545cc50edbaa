"""Run by test_sharded_import.py, a process per check: python sharded_import.py CHECK FOLDER."""

import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import running
from tiny_families import CONFIGS, IDS, assert_same_tree, left_padded, write_folder

from rlhf_jax.models import huggingface
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.name_map import parameter_shapes
from rlhf_jax.models.placement import param_shardings
from rlhf_jax.parallel.mesh import make_mesh

MIB = 2**20
CONFIG = ModelConfig(vocab_size=8192, width=512, layers=12, heads=8, kv_heads=8, head_dim=64, ff=2048)


def families(folder):
    """On a mesh, every parameter is cut where the rules say, holds the same bits, and gives the same logits."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for name in CONFIGS:
        source = write_folder(folder / name, name)
        _, host = huggingface.load(source)
        found, params = huggingface.load(source, mesh)
        jax.tree.map(lambda x, where: _same_place(x, where), params, param_shardings(found.config, mesh))
        assert_same_tree(params, host)
        if name in ("gemma2", "gpt_neox", "mixtral"):
            tokens_BP, lengths_B = left_padded()
            ours = running.logits(found.config, params, tokens_BP, lengths_B)
            np.testing.assert_allclose(
                ours, running.logits(found.config, host, tokens_BP, lengths_B), atol=1e-4, rtol=0
            )


def _same_place(x, where):
    assert x.sharding.is_equivalent_to(where, x.ndim), (x.sharding, where)


def write_half(folder):
    """A bfloat16 model of 58M parameters in shards of 48 MB."""
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in parameter_shapes(CONFIG, scalar=False).items():
        group = params
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = rng.random(shape, np.float32).astype(jnp.bfloat16)
    (folder / "tokenizer").mkdir()
    huggingface.save(
        folder / "half",
        CONFIG,
        params,
        token_ids=IDS,
        tokenizer_from=folder / "tokenizer",
        dtype="bfloat16",
        shard_bytes=48 * 10**6,
    )


def memory(folder):
    """Peak memory of an import: the float32 parameters (they live on the host here) and 1.3 times a shard."""
    mesh = make_mesh(data=1, fsdp=1, tensor=1)
    huggingface.load(write_folder(folder / "tiny", "llama"), mesh)  # what jax itself takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, params = huggingface.load(folder / "half", mesh)
    jax.block_until_ready(params)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    own = sum(x.nbytes for x in jax.tree.leaves(params))
    shard = max(file.stat().st_size for file in (folder / "half").glob("*.safetensors"))
    print(f"parameters {own / MIB:.0f} MiB, largest shard {shard / MIB:.0f} MiB, peak {grown / MIB:.0f} MiB")
    assert grown <= own + 1.3 * shard


if __name__ == "__main__":
    {"families": families, "write_half": write_half, "memory": memory}[sys.argv[1]](Path(sys.argv[2]))
