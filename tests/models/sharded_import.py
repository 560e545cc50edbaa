"""Run by test_sharded_import.py, a process per check: python sharded_import.py CHECK FOLDER."""

import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import running
from tiny_families import CONFIGS, IDS, assert_same_tree, left_padded, write_folder

from rlhf_jax.models.attention import fused
from rlhf_jax.models.attention.attend import attend
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder, import_folder
from rlhf_jax.models.huggingface.name_map import parameter_shapes
from rlhf_jax.models.placement import param_shardings
from rlhf_jax.parallel.mesh import make_mesh

MIB = 2**20
CONFIG = ModelConfig(vocab_size=8192, width=512, layers=12, heads=8, kv_heads=8, head_dim=64, ff=2048)


def families(folder):
    """On a mesh, every parameter is cut where the rules say, holds the same bits, and gives the same logits."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for name in CONFIGS:
        source = write_folder(folder / name, name)
        _, host = import_folder.load(source)
        found, params = import_folder.load(source, mesh)
        jax.tree.map(lambda x, where: _same_place(x, where), params, param_shardings(found.config, mesh))
        assert_same_tree(params, host)
        if name in ("gemma2", "gpt_neox", "mixtral"):
            tokens_BP, lengths_B = left_padded()
            ours = running.logits(found.config, params, tokens_BP, lengths_B)
            np.testing.assert_allclose(
                ours, running.logits(found.config, host, tokens_BP, lengths_B), atol=1e-4, rtol=0
            )


def attention(_):
    """A kernel sees each device's rows and heads; with fewer key-value heads than devices, one per query head."""
    make_mesh(data=2, fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    for B, G in ((4, 2), (4, 1), (3, 2)):  # three rows cannot be split
        q_BTHK, k_BTGK, v_BTGK = (
            jnp.asarray(rng.normal(size=(B, 128, heads, 128)), jnp.float32) for heads in (4, G, G)
        )
        found = jax.jit(lambda *qkv: fused.splash(*qkv, interpret=True))(q_BTHK, k_BTGK, v_BTGK)
        wanted = jax.jit(lambda *qkv: attend(*qkv, None))(q_BTHK, k_BTGK, v_BTGK)
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=2e-5)


def export(folder):
    """From any mesh, every family's files are those that the host's arrays give, byte for byte."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for name in CONFIGS:
        source = write_folder(folder / name, name)
        found, host = import_folder.load(source)
        _, params = import_folder.load(source, mesh)
        options = {"token_ids": IDS, "tokenizer_from": source, "dtype": "bfloat16", "shard_bytes": 20_000}
        for kind, arrays in (("host", host), ("mesh", params)):
            export_folder.save_folder(folder / name / kind, found.config, arrays, **options)
        files = sorted(path.name for path in (folder / name / "host").iterdir())
        assert len([file for file in files if file.endswith(".safetensors")]) > 1, files
        assert files == sorted(path.name for path in (folder / name / "mesh").iterdir())
        for file in files:
            assert (folder / name / "host" / file).read_bytes() == (
                folder / name / "mesh" / file
            ).read_bytes()
        export_folder.save_folder(folder / name / "nothing", found.config, params, write=False, **options)
        assert not (folder / name / "nothing").exists()


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
    export_folder.save_folder(
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
    import_folder.load(write_folder(folder / "tiny", "llama"), mesh)  # what jax itself takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, params = import_folder.load(folder / "half", mesh)
    jax.block_until_ready(params)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    own = sum(x.nbytes for x in jax.tree.leaves(params))
    shard = max(file.stat().st_size for file in (folder / "half").glob("*.safetensors"))
    print(f"parameters {own / MIB:.0f} MiB, largest shard {shard / MIB:.0f} MiB, peak {grown / MIB:.0f} MiB")
    assert grown <= own + 1.3 * shard


CHECKS = (families, attention, export, write_half, memory)

if __name__ == "__main__":
    {check.__name__: check for check in CHECKS}[sys.argv[1]](Path(sys.argv[2]))
