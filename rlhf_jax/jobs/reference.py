"""What the frozen reference of DPO says of every pair: computed once and kept on disk, or with every step."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import eval_batches
from rlhf_jax.data.tokenization import Pairs
from rlhf_jax.jobs import adapters, losses
from rlhf_jax.jobs.adapters import Start
from rlhf_jax.jobs.rows import Rows
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, host_rows, to_global
from rlhf_jax.parallel.mesh import BATCH_AXES
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.state import joined
from rlhf_jax.training.workdir import digest

NAMES = ("ref_chosen", "ref_rejected")
_VERSION = 2  # of what is computed: raise it when the numbers of the same model and pairs change


def zeros(found: Rows) -> dict[str, np.ndarray]:
    """Room for the log-probs of every pair, to be filled when the weights are there: [n], or packed [n, pairs]."""
    return {name: np.zeros((found.count, *_of_a_row(found.pairs)), np.float32) for name in NAMES}


def logprobs(
    config: ConfigDict,
    mesh: Mesh,
    model: ModelConfig,
    start: Start,
    read_from: tuple[str, ...],
    pairs: Pairs,
    found: Rows,
    R: int,
) -> dict[str, np.ndarray]:
    """Summed log-probs of every pair under the reference, float32 as `zeros`; read from disk where they are kept.

    They are kept by a hash of the model's folders (`read_from`), the numbers it computes in, the pairs as token
    ids, which holds tokenizer, template and lengths, and the rows that they are packed into.
    """
    folder = Path(config.reference_cache or _default_folder())
    frozen = adapters.settings(config.lora).base_dtype if start.frozen else ""
    path = folder / f"{_fingerprint(read_from, model, frozen, pairs, found)}.npz"
    kept = _read(path, zeros(found))
    if _everywhere(kept is not None):
        if startup.is_main():
            print(f"reference log-probs of {len(pairs)} pairs: read from {path}", flush=True)
        return kept
    computed = _computed(config, mesh, model, start.whole, found, R)
    _write(path, computed)
    return computed


def with_every_step(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, start: Start, pairs: int, R: int
) -> Callable[[dict], dict]:
    """A function that adds the reference's log-probs to a batch. It keeps a copy of what is trained.

    pairs: of a packed row; 0 where a row is one pair.
    """
    as_it_was = jax.tree.map(lambda x: x.copy(), start.trained)  # the train step donates the other
    cut = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    logprobs_of = losses.pair_logprobs(model, R, config.logprob_chunk)

    def by_row(params: Params, batch: dict) -> list[jax.Array]:
        return [x.reshape(-1, *_of_a_row(pairs)) for x in logprobs_of(params, batch)]

    score, params = jax.jit(by_row, out_shardings=cut), joined(start.frozen, as_it_was)
    return lambda batch: batch | dict(zip(NAMES, score(params, batch), strict=True))


def _computed(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, params: Params, rows: Rows, R: int
) -> dict[str, np.ndarray]:
    """In batches of the training shape, so that step 0 sees the very numbers the policy gives."""
    score = jax.jit(losses.pair_logprobs(model, R, config.logprob_chunk))
    unit = "rows of reference pairs" if rows.pairs else "reference pairs"
    mine, progress = host_rows(config.batch_size, mesh), Progress(rows.count, unit=unit)
    found = zeros(rows)
    for index_B, weight_B in eval_batches(rows.count, config.batch_size):
        real = weight_B > 0
        both = gather(score(params, to_global(rows.make(index_B, mine), mesh)))
        for name, x in zip(NAMES, both, strict=True):
            found[name][index_B[real]] = x.reshape(len(index_B), *_of_a_row(rows.pairs))[real]
        progress.update(int(index_B[real][-1]) + 1)
    progress.close()
    return found


def _of_a_row(pairs: int) -> tuple[int, ...]:
    """The shape of a row's log-probs."""
    return (pairs,) if pairs else ()


def _fingerprint(
    read_from: tuple[str, ...], model: ModelConfig, frozen: str, pairs: Pairs, rows: Rows
) -> str:
    """frozen: dtype of the weights beside an adapter, which is not merged and so rounds otherwise; or ""."""
    total = hashlib.sha256()
    about = {
        "version": _VERSION,
        "models": [digest(folder) for folder in read_from],
        "frozen": frozen,
        "dtype": model.dtype,
    }
    total.update(json.dumps(about, sort_keys=True).encode())
    for x in rows.layout:
        total.update(np.ascontiguousarray(x, np.int64).tobytes())
    for sequences in pairs:
        for name, x in vars(sequences).items():
            total.update(f"{name} {None if x is None else (x.dtype.str, x.shape)}".encode())
            total.update(b"" if x is None else np.ascontiguousarray(x).tobytes())
    return total.hexdigest()[:32]


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "reference"


def _read(path: Path, room: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What was kept; None when it is not there, cut off, or not for so many pairs as there is room for."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all(x.shape == room[name].shape and np.isfinite(x).all() for name, x in found.items())
    return found if fits else None


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
