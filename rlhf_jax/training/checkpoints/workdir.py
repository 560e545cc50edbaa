"""A job's workdir: made, locked and checked, described by config.json, marked by finished.json when the job is done.

config.json  metrics.jsonl  checkpoints/<step>/  samples/<step>.jsonl  export/  finished.json
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache, wraps
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.object_stores import at, check_reachable, is_remote, write_text
from rlhf_jax.training.progress import Progress

_MIB = 1 << 20
# From so many bytes on, hashing takes long enough to be worth a progress line.
_LARGE = 1 << 30


def prepare_workdir(workdir: str | PurePath, config: Mapping[str, Any]) -> Path | epath.Path:
    """Makes the folder, takes it for this run alone, and writes config.json. Every process calls it.

    Raises UserError on every process when it cannot be written, another run is writing it, or it is not one folder for
    all of them. `one_writer` gives it back.
    """
    check_reachable(workdir)
    workdir, problem = at(workdir), ""
    if startup.is_main():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock.hold(workdir)
            write_json(workdir / "config.json", config)
        except UserError as e:
            problem = str(e)
        except OSError as e:
            problem = f"workdir: {workdir} cannot be written ({e.strerror or e}); use another --workdir"
        # A store has errors of its own: no such bucket, no credentials.
        except Exception as e:
            if not is_remote(workdir):
                raise
            problem = f"workdir: {workdir} cannot be written ({type(e).__name__}: {e}); use another --workdir"
    # Only process 0 has tried. The others must hear of a failure, or they would wait in the next barrier.
    problem = startup.from_main("workdir", problem)
    if problem:
        raise UserError(problem)
    _check_shared(workdir)
    return workdir


class StartAgainError(Exception):
    """Raised by a run that has found out how it must be started, before it has read or written what takes long.

    within: the context in which it is started again, once.
    """

    def __init__(self, within: AbstractContextManager[None]) -> None:
        super().__init__("this run is started again by `one_writer`, which its `run` lacks")
        self.within = within


def one_writer(run: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """Decorates a job's `run`: its workdir is given back at the end, however it ends; see also `StartAgainError`."""

    @wraps(run)
    def alone(config: Any, workdir: str) -> None:
        try:
            try:
                return run(config, workdir)
            except StartAgainError as again:
                within = again.within
            with within:
                run(config, workdir)
        finally:
            lock.release(workdir)

    return alone


def is_finished(workdir: str | PurePath, fingerprint: Any) -> bool:
    """True when `finish` was called here with an equal fingerprint (anything JSON can write)."""
    try:
        found = json.loads((at(workdir) / "finished.json").read_text())
    # Absent, or cut off: then it is not finished.
    except (OSError, ValueError):
        return False
    return found.get("fingerprint") == _as_json(fingerprint)


def finish(workdir: str | PurePath, fingerprint: Any) -> None:
    """Marks the folder as finished. The last thing done for a job. Every process calls it."""
    if startup.is_main():
        # A fresh id each time shows a stage that read an earlier run of this job that it is out of date.
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        finished = {"fingerprint": fingerprint, "time": now, "run": uuid.uuid4().hex}
        write_json(at(workdir) / "finished.json", finished)
    startup.barrier("finish")


def unfinish(workdir: str | PurePath) -> None:
    """Takes the mark away before the job is run again: where that is killed, the folder holds parts of both runs."""
    if startup.is_main():
        (at(workdir) / "finished.json").unlink(missing_ok=True)


def finished_run(workdir: str | PurePath) -> str:
    """The id of the run that `finish` marked, which no other run of the same job in the same folder has."""
    return json.loads((at(workdir) / "finished.json").read_text())["run"]


def write_json(path: str | PurePath, content: Any) -> None:
    """Writes a file that is either the old or the new one, whole, whenever the process is killed."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_samples(workdir: str | PurePath, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes samples/<step>.jsonl. A resumed run that comes to the step again writes the same file again."""
    if startup.is_main():
        path = at(workdir) / "samples" / f"{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to one level with dotted names, values as JSON would read them back."""
    # JSON has no tuples: a config that was read back would differ from the one it was written from otherwise.
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _as_json(value)
    return flat


def digest(path: str | Path) -> str:
    """Hashes the contents of a file or folder, for a fingerprint that notices when an input has changed."""
    root = Path(path)
    if not root.exists():
        raise UserError(f"{root}: not found")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    # Sizes and times are part of the cache's key, so a file that changes within this process is hashed again.
    stats = [file.stat() for file in files]
    return _digest(
        root, tuple((file, s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True))
    )


# A run asks for the same model several times, and each time costs about a second per GB.
@lru_cache
def _digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """files: (path, bytes, time of the last change in ns)."""
    total, sizes = hashlib.sha256(), [size for _, size, _ in files]
    progress = Progress(sum(sizes) // _MIB, unit=f"hashing {root}, MiB")
    # hashlib lets other threads run while it hashes, so the files of a model are read side by side.
    with ThreadPoolExecutor() as pool:
        for i, found in enumerate(pool.map(_hash, [file for file, _, _ in files])):
            total.update(f"{files[i][0].relative_to(root)}\0{sizes[i]}\0".encode() + found)
            if sum(sizes) > _LARGE:
                progress.update(sum(sizes[: i + 1]) // _MIB)
    progress.close()
    return total.hexdigest()[:32]


def _hash(file: Path) -> bytes:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _check_shared(workdir: Path | epath.Path) -> None:
    """Raises UserError where every machine has a folder of its own, which would hold useless pieces of checkpoints."""
    # Every process leaves a file and counts all. Two barriers: none counts early, none cleans up early.
    if startup.process_count() == 1 or is_remote(workdir):
        return
    marker = workdir / f".process_{startup.process_index()}"
    if workdir.is_dir():
        marker.touch()
    startup.barrier("workdir markers written")
    seen = len(list(workdir.glob(".process_*")))
    startup.barrier("workdir markers counted")
    marker.unlink(missing_ok=True)
    if seen != startup.process_count():
        raise UserError(
            f"workdir: {workdir} is not one folder for all {startup.process_count()} processes; "
            "use a --workdir on a shared file system"
        )
