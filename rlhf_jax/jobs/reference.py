"""What the frozen reference of DPO says of every pair: computed once and kept on disk, or with every step."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import eval_batches
from rlhf_jax.data.tokenization import Pairs
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import losses
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, host_rows, to_global
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import digest

NAMES = ("ref_chosen", "ref_rejected")
WAYS = ("cached", "step")
_VERSION = 1  # of what is computed: raise it when the numbers of the same model and pairs change

MakeBatch = Callable[[np.ndarray, Any], dict[str, np.ndarray]]


def check(config: ConfigDict) -> None:
    if config.reference not in WAYS:
        raise UserError(f"reference: {config.reference!r}; use one of {', '.join(WAYS)}")


def zeros(found: Pairs) -> dict[str, np.ndarray]:
    """Room for the log-probs of every pair, to be filled when the weights are there."""
    return {name: np.zeros(len(found), np.float32) for name in NAMES}


def logprobs(
    config: ConfigDict,
    mesh: Mesh,
    model: ModelConfig,
    params: Params,
    read_from: str,
    found: Pairs,
    make: MakeBatch,
    R: int,
) -> dict[str, np.ndarray]:
    """Summed log-probs of every pair under the reference, each [n] float32; read from disk where they are kept.

    They are kept by a hash of the model's folder (`read_from`), the numbers it computes in, and the pairs as token
    ids, which holds tokenizer, template and lengths.
    """
    folder = Path(config.reference_cache or _default_folder())
    path = folder / f"{_fingerprint(read_from, model, found)}.npz"
    kept = _read(path, len(found))
    if _everywhere(kept is not None):
        if startup.is_main():
            print(f"reference log-probs of {len(found)} pairs: read from {path}", flush=True)
        return kept
    computed = _computed(config, mesh, model, params, make, len(found), R)
    _write(path, computed)
    return computed


def with_every_step(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, params: Params, R: int
) -> Callable[[dict], dict]:
    """A function that adds the reference's log-probs to a batch. It keeps a copy of the parameters."""
    frozen = jax.tree.map(lambda x: x.copy(), params)  # the train step donates the others
    cut = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    score = jax.jit(losses.pair_logprobs(model, R, config.logprob_chunk), out_shardings=cut)
    return lambda batch: batch | dict(zip(NAMES, score(frozen, batch), strict=True))


def _computed(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, params: Params, make: MakeBatch, n: int, R: int
) -> dict[str, np.ndarray]:
    """In batches of the training shape, so that step 0 sees the very numbers the policy gives."""
    score = jax.jit(losses.pair_logprobs(model, R, config.logprob_chunk))
    mine, progress = host_rows(config.batch_size, mesh), Progress(n, unit="reference pairs")
    found = {name: np.zeros(n, np.float32) for name in NAMES}
    for index_B, weight_B in eval_batches(n, config.batch_size):
        real = weight_B > 0
        both = gather(score(params, to_global(make(index_B, mine), mesh)))
        for name, x_B in zip(NAMES, both, strict=True):
            found[name][index_B[real]] = x_B[real]
        progress.update(int(index_B[real][-1]) + 1)
    progress.close()
    return found


def _fingerprint(read_from: str, model: ModelConfig, found: Pairs) -> str:
    total = hashlib.sha256()
    about = {"version": _VERSION, "model": digest(read_from), "dtype": model.dtype}
    total.update(json.dumps(about, sort_keys=True).encode())
    for sequences in found:
        for name, x in vars(sequences).items():
            total.update(f"{name} {None if x is None else (x.dtype.str, x.shape)}".encode())
            total.update(b"" if x is None else np.ascontiguousarray(x).tobytes())
    return total.hexdigest()[:32]


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "reference"


def _read(path: Path, n: int) -> dict[str, np.ndarray] | None:
    """What was kept; None when it is not there, cut off, or not for so many pairs."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if all(x.shape == (n,) and np.isfinite(x).all() for x in found.values()) else None


def _write(path: Path, found: dict[str, np.ndarray]) -> None:
    """Another run may look at any moment: the file is there whole or not at all. A full disk costs only the cache."""
    temporary = path.with_name(f".{path.name}.{startup.process_index()}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **found)
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        if startup.is_main():
            print(f"notice: reference_cache: {path.parent} cannot be written ({e.strerror or e})", flush=True)


def _everywhere(here: bool) -> bool:
    """Whether it holds on all processes, which then all read or all compute."""
    if startup.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.int32(here)).min())
