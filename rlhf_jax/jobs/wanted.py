"""What a page asks for and is not there is said before anything is read, tokenised, compiled or asked.

Files, folders, packages, keys and places to write to, of every job: `reads` says which. Needs no jax, but for
`check_models`, which looks at the models' own files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.annotation.specs import load_pool
from rlhf_jax.data.splits import is_hub_name, local_path
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.evaluation_inputs import named
from rlhf_jax.jobs.judging import check_keys
from rlhf_jax.jobs.reads import (
    ASKS,
    FILE,
    MODEL,
    NAMED_TABLES,
    READS,
    REMOTE,
    TABLE,
    TABLES,
    TOKENIZER,
    WRITES,
    Read,
)
from rlhf_jax.settings import value_at

_PACKAGES = {"tensorboard": ("tensorboardX", ""), "wandb_project": ("wandb", ", then wandb login")}


def check(config: ConfigDict, workdir: str, prefix: str = "", made: str = "") -> None:
    """Raises UserError that names the field, what it asks for, and how to get it.

    prefix: of a stage of the farm. made: the folder in which stages before it make what is not there yet.
    """
    page = config.to_dict()
    job = page["job"]
    _check_workdir(job, workdir)
    _check_packages(page, workdir, prefix)
    if job in ASKS and ASKS[job](page):
        _check_judges(config, workdir, prefix)
    rows = [row for row in READS[job] if row.when(page)]
    for row in rows:  # A package that a model needs is said before data that is missing.
        if row.kind in (MODEL, TOKENIZER):
            _check_gguf(value_at(page, row.field))
    for row in rows:
        for name, path in _paths(row, value_at(page, row.field)):
            if not (made and _below(path, made)):
                _check_there(row, prefix, name, path)
    for field in WRITES.get(job, ()):
        problem = _not_writable(page[field]) if page[field] else ""
        if problem:
            raise UserError(f"{prefix}{field}: {page[field]} cannot be written ({problem}); use another path")


def check_models(config: ConfigDict, prefix: str = "", made: str = "") -> None:
    """Raises UserError for a model or adapter whose files are not those of one, before data is read for it.

    Looks at config.json, side files and the tensors' names and shapes. Runs after the processes have met. What trainers
    wrote and GGUF files are left to those who read them.
    """
    from rlhf_jax.jobs import loading
    from rlhf_jax.models import huggingface

    page = config.to_dict()
    for row in READS[page["job"]]:
        path = value_at(page, row.field)
        if row.kind != MODEL or not path or (made and _below(path, made)) or not loading.is_plain(path):
            continue
        laid = next(x.field for x in READS[page["job"]] if x.over == row.field)
        try:
            huggingface.check_no_adapter(path, laid)
            over = value_at(page, laid)
            loading.describe_model(path, config.model, "", tokens=0, adapter=over)
        except UserError as error:
            raise UserError(f"{prefix}{row.field}: {error}") from error


def _check_workdir(job: str, workdir: str) -> None:
    if "://" in workdir:
        if job not in REMOTE:
            raise UserError(f"workdir: {workdir}: the job {job} writes to a disk; use a folder")
        from rlhf_jax.training.storage import check_reachable

        check_reachable(workdir)
    elif problem := _not_writable(workdir, folder=True):
        raise UserError(f"workdir: {workdir} cannot be written ({problem}); use another --workdir")


def _check_packages(page: dict[str, Any], workdir: str, prefix: str) -> None:
    for field, (package, then) in _PACKAGES.items():
        if not page.get(field):
            continue
        if "://" in workdir:
            raise UserError(f"{prefix}{field}: it cannot write to {workdir}; use a --workdir on a disk")
        if find_spec(package) is None:
            raise UserError(f"{prefix}{field}: {package} is not installed; run pip install {package}{then}")


def _check_judges(config: ConfigDict, workdir: str, prefix: str) -> None:
    """The judge file, and the keys of its judges."""
    try:
        check_keys(config, load_pool(config.judges), Path(workdir))
    except UserError as error:
        raise UserError(f"{prefix}judges: {error}" if prefix else str(error)) from None


def _paths(row: Read, value: str) -> Iterator[tuple[str, str]]:
    """(NAME or "", path) of everything that a field names."""
    if row.kind == NAMED_TABLES:
        yield from named(value, row.field).items()
    elif row.kind == TABLES:
        yield from (("", part.strip()) for part in value.split(",") if part.strip())
    elif value:
        yield "", value


def _check_there(row: Read, prefix: str, name: str, path: str) -> None:
    field = f"{prefix}{row.field}"
    what = "file" if row.kind in (TABLE, TABLES, NAMED_TABLES, FILE) else "folder"
    if "://" in path:
        raise UserError(
            f"{field}: {path}: only files on a disk are read; copy it there, and give that {what}"
        )
    as_gguf = row.kind in (MODEL, TOKENIZER) and _is_gguf(path)
    there = local_path(path).exists() if what == "file" else Path(path).is_dir() or as_gguf
    if there:
        return
    from_hub = is_hub_name(path)
    if from_hub and what == "file" and row.kind != FILE:
        if find_spec("datasets") is None:
            fix = "pip install datasets, or give a file"
            raise UserError(f"{field}: {path}: reading it from the hub needs the package datasets; {fix}")
        return
    if from_hub and row.kind == TOKENIZER:
        return
    made_by = row.made_by(name, path) if callable(row.made_by) else row.made_by
    ways = [f"make it with: {made_by}"] if made_by else []
    if from_hub and what == "folder":
        ways.append(f"if it is on the hub: hf download {path} --local-dir={path}")
    no_folder = what == "folder" and Path(path).is_file()
    problem = "a file, not a model folder" if no_folder else f"no such {what}"
    raise UserError(
        f"{field}: {path}: {problem}; {', or '.join(ways) or 'give the path of one that is there'}"
    )


def _check_gguf(path: str) -> None:
    """UserError where a GGUF file is given and the package that reads it is missing."""
    from rlhf_jax.models import gguf_files  # Jobs without models need no jax.

    gguf_files.check_package(path)


def _is_gguf(path: str) -> bool:
    from rlhf_jax.models import gguf_files

    return gguf_files.is_gguf(Path(path))


def _not_writable(path: str, *, folder: bool = False) -> str:
    """Why nothing can be written to a path; "" where it can be, as far as names and rights tell."""
    file = Path(path)
    if not folder and file.is_dir() and file.suffix:
        return "it is a folder"
    there = next(x for x in (file, *file.absolute().parents) if x.exists())
    if not there.is_dir() and (folder or there != file):
        return "it is a file" if there == file else f"{there} is a file"
    return "" if os.access(there, os.W_OK) else "permission denied"


def _below(path: str, folder: str) -> bool:
    return Path(path).absolute().is_relative_to(Path(folder).absolute())
