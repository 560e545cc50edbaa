"""Log-probs of rows under the frozen reference model: computed once and kept on disk, or with every step."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, Sequences, eval_batches, row_indices
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import joined
from rlhf_jax.models.response_pairs import pair_logprobs
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import BATCH_AXES, gather, host_rows, to_global
from rlhf_jax.training.checkpoints.workdir import digest
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.run import load_models
from rlhf_jax.training.run.encoded_rows import Rows
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.session import Session


class Columns(NamedTuple):
    """What is asked of the reference: the names of the columns, a function that gives them, what a row is called.

    logprobs_of: (model, R, chunk) -> a function of (params, batch) that returns summed log-probs [B] for each name.
    """

    names: tuple[str, ...]
    logprobs_of: Callable[[ModelConfig, int, int], Callable[[Params, dict], Sequence[jax.Array]]]
    rows: str


PAIRS = Columns(("ref_chosen", "ref_rejected"), pair_logprobs, "pairs")
# Of what is computed. Raise it whenever the same model and pairs would give other numbers than those on disk.
_VERSION = 2


def zeros(found: Rows, columns: Columns = PAIRS) -> dict[str, np.ndarray]:
    """Zeros in the shape of the log-probs of all rows, before they are known: [n], or [n, pairs] of packed rows."""
    # Those of a step that is packed are columns of its pairs, wherever they lie.
    shape = (found.count, *_of_a_row(0 if found.place else found.pairs))
    return {name: np.zeros(shape, np.float32) for name in columns.names}


def logprobs(
    session: Session,
    model: ModelConfig,
    start: Start,
    encoded: Pairs | tuple[Sequences, Sequences],
    found: Rows,
    R: int,
    columns: Columns = PAIRS,
) -> dict[str, np.ndarray]:
    """Summed log-probs of every row under the reference, float32 as `zeros`; read from disk where they are kept.

    encoded: all that is scored, such as `Pairs`. The file's name is a hash of the model's folders, the dtypes it
    computes in, these token ids (on which tokenizer, template and lengths have acted already) and the rows that they
    are packed into.
    """
    config = session.config
    read_from = load_models.sources(session.folder, config.model.adapter)
    folder = Path(config.reference_cache or _default_folder())
    frozen = session.lora.base_dtype if start.frozen else ""
    path = folder / f"{_fingerprint(read_from, model, frozen, encoded, found)}.npz"
    kept = _read(path, zeros(found, columns))
    # All or none: the forward pass is a collective, which a process that has read its file would never join.
    if _everywhere(kept is not None):
        if startup.is_main():
            print(f"reference log-probs of {len(encoded[0])} {columns.rows}: read from {path}", flush=True)
        return kept
    computed = _computed(config, session.mesh, model, start.whole, found, R, columns)
    _write(path, computed)
    return computed


def with_every_step(
    config: ConfigDict,
    mesh: Mesh,
    model: ModelConfig,
    start: Start,
    pairs: int,
    R: int,
    columns: Columns = PAIRS,
) -> Callable[[dict, Params], dict]:
    """Returns a function that adds the reference's log-probs to a batch; it keeps a copy of what is trained.

    pairs: of a packed row; 0 where a row is one pair.
    """
    # The reference is the model as training found it, and the train step donates the trained arrays.
    as_it_was = jax.tree.map(lambda x: x.copy(), start.trained)
    score = every_step_program(config, mesh, model, pairs, R, columns)
    reference = joined(start.frozen, as_it_was)
    return lambda batch, _: batch | dict(zip(columns.names, score(reference, batch), strict=True))


def every_step_program(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, pairs: int, R: int, columns: Columns = PAIRS
) -> Any:
    """The compiled function of `with_every_step`: (parameters of the reference, batch) -> each name's log-probs."""
    logprobs_of = columns.logprobs_of(model, R, config.logprob_chunk)

    def by_row(params: Params, batch: dict) -> list[jax.Array]:
        return [x.reshape(-1, *_of_a_row(pairs)) for x in logprobs_of(params, batch)]

    return jax.jit(by_row, out_shardings=NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


def _computed(
    config: ConfigDict,
    mesh: Mesh,
    model: ModelConfig,
    params: Params,
    rows: Rows,
    R: int,
    columns: Columns,
) -> dict[str, np.ndarray]:
    """Computes the log-probs in batches of the shapes that steps and evaluations have.

    Other shapes round otherwise, and the loss of the first step would not be exactly ln 2.
    """
    score = jax.jit(columns.logprobs_of(model, R, config.logprob_chunk))
    several = rows.pairs and not rows.place
    unit = f"rows of reference {columns.rows}" if several else f"reference {columns.rows}"
    B = rows.batch or config.batch_size
    mine, progress = host_rows(B, mesh), Progress(rows.count, unit=unit)
    found = zeros(rows, columns)
    for i, (index_B, weight_B) in enumerate(eval_batches(rows.count, B)):
        real = weight_B > 0
        if rows.place:
            # As the steps of the first epoch have them, whose pairs share array rows.
            index_B = row_indices(i, B, rows.count, config.seed)
        both = gather(score(params, to_global(rows.make(index_B, mine), mesh)))
        for name, x in zip(columns.names, both, strict=True):
            if rows.place:
                rows_B, places_B, shape = rows.spots(index_B)
                x_B = x.reshape(shape)[rows_B, places_B]
            else:
                x_B = x.reshape(len(index_B), *_of_a_row(rows.pairs))
            # The last batch repeats a row to be full; what was computed of the repetitions is dropped.
            found[name][index_B[real]] = x_B[real]
        progress.update(progress.done + int(real.sum()))
    progress.close()
    return found


def _of_a_row(pairs: int) -> tuple[int, ...]:
    """The shape of one row's log-probs: a number, or one for each pair of a packed row."""
    return (pairs,) if pairs else ()


def _fingerprint(
    read_from: tuple[str, ...],
    model: ModelConfig,
    frozen: str,
    encoded: Pairs | tuple[Sequences, Sequences],
    rows: Rows,
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
    for sequences in encoded:
        for name, x in vars(sequences).items():
            # Name, dtype and shape too: the same bytes can be arrays of different shapes.
            total.update(f"{name} {None if x is None else (x.dtype.str, x.shape)}".encode())
            total.update(b"" if x is None else np.ascontiguousarray(x).tobytes())
    return total.hexdigest()[:32]


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "reference"


def _read(path: Path, room: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Reads kept log-probs; None when the file is not there, cut off, or of another number of pairs."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in room}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    # A NaN that was once kept would spoil every later run on these pairs.
    fits = all(x.shape == room[name].shape and np.isfinite(x).all() for name, x in found.items())
    return found if fits else None


def _write(path: Path, found: dict[str, np.ndarray]) -> None:
    """Writes the file so that another run finds it whole or not at all. A full disk is a notice and no error."""
    # Several runs, and on one machine several processes, may write the same file at the same time.
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
    """Whether `here` is true on all processes, so that all of them read or all of them compute."""
    if startup.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.int32(here)).min())
