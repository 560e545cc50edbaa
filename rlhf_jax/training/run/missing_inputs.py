"""Checks that what a page names is there, before anything is read, tokenised, compiled or asked of a judge.

That is files, folders, packages, and places to write to; every method and job lists them in its `NEEDS`. Jobs without
jax use this module, so only `check_models`, which looks into the models' files, imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.data.files.splits import is_hub_name, local_path
from rlhf_jax.errors import UserError
from rlhf_jax.ranges import value_at

Page = Mapping[str, Any]

# Kinds of what a field names. A table is a file or folder of records, or a dataset of the hub: one, several
# with commas between them, or NAME=TABLE,... A file is never looked for on the hub.
TABLE, TABLES, NAMED_TABLES = "table", "tables", "named tables"
FILE = "file"
# Any folder that a model is read from; a folder of PEFT's; any folder of tensors.
MODEL, ADAPTER, WEIGHTS = "model", "adapter", "weights"
TOKENIZER = "tokenizer"
# What a text names among other things; its row says how to find them.
WITHIN = "within a text"


class Read(NamedTuple):
    """A field that names something a job reads; where its value is "" nothing is read.

    made_by: the command that makes it, or a function that returns the command for the NAME and PATH of a table.
    when: a function of the page that says whether the field is read there.
    over: of an adapter, the field of the model that it is laid over.
    paths: of a field of kind WITHIN, the paths that its value names.
    """

    field: str
    kind: str
    made_by: str | Callable[[str, str], str] = ""
    when: Callable[[Page], bool] = lambda page: True
    over: str = ""
    paths: Callable[[str], Iterable[str]] = lambda value: (value,)


class Needs(NamedTuple):
    """What a method or job asks for before it begins.

    Attributes:
      reads: the fields that name what it reads.
      writes: the fields that name a file or folder it writes beside its workdir.
      remote: whether its workdir may lie in an object store.
      also: its own checks, of (page, workdir, what stands before a field's name).
      reads_too: of a page, what else decides its result and is no file of `reads`, as something that JSON can write.
    """

    reads: tuple[Read, ...] = ()
    writes: tuple[str, ...] = ()
    remote: bool = False
    also: Callable[[ConfigDict, str, str], None] | None = None
    reads_too: Callable[[Page], Any] | None = None


# Optional packages by the field that asks for them, with what is left to do after pip.
_PACKAGES = {"tensorboard": ("tensorboardX", ""), "wandb_project": ("wandb", ", then wandb login")}


def made_by(page: str, folder: str = "") -> str:
    """The command that makes a missing input, for the message that says it is missing.

    page: of configs/, as NAME or NAME:VARIANT. folder: of the farm, where its result lies; "" is NAME.
    """
    name, colon, variant = page.partition(":")
    return f"python -m rlhf_jax.main --config=configs/{name}.py{colon}{variant} --workdir=runs/farm/{folder or name}"


def made_by_generate(name: str, path: str) -> str:
    """The command that writes a method's file of the farm's layout; "" for a file no job of ours writes."""
    file = Path(path)
    if file.name == "outputs.parquet":
        model = file.parent.parent.parent / name / "export"
        command = made_by("generate").rsplit(" --workdir", 1)[0]
        return f"{command} --workdir={file.parent} --config.model.path={model} --config.model.name={name}"
    return made_by("make_data", "data") if file.name == "eval.parquet" else ""


def either(chosen: Callable[[Page], bool], one: Needs, other: Needs) -> Needs:
    """What a method with two kinds of pages asks for: `one` where a page is chosen, else `other`."""

    def of_page(page: Page) -> Needs:
        return one if chosen(page) else other

    def also(config: ConfigDict, workdir: str, prefix: str) -> None:
        if (check := of_page(config.to_dict()).also) is not None:
            check(config, workdir, prefix)

    def reads_too(page: Page) -> Any:
        more = of_page(page).reads_too
        return None if more is None else more(page)

    def rows(needs: Needs) -> tuple[Read, ...]:
        return tuple(
            row._replace(when=lambda page, row=row: of_page(page) is needs and row.when(page))
            for row in needs.reads
        )

    return Needs(
        (*rows(one), *rows(other)), remote=one.remote and other.remote, also=also, reads_too=reads_too
    )


def train_and_eval(made_by: str) -> tuple[Read, ...]:
    """The fields of a trainer's two files, data.train and data.eval."""
    return Read("data.train", TABLE, made_by), Read("data.eval", TABLE, made_by)


def model_reads(field: str, made_by: str, adapter: str = "model.adapter") -> tuple[Read, ...]:
    """The field that names a model, and the field of the adapter that may be laid over it."""
    return Read(field, MODEL, made_by), Read(adapter, ADAPTER, made_by, over=field)


def _judged(page: Page) -> bool:
    return bool(page["win_rate"]["judges"])


# Of a method that may be judged at its evaluations; the second of one whose evaluations sample nothing otherwise.
WIN_RATE_READS = (
    Read("win_rate.judges", FILE),
    Read("win_rate.baseline", TABLE, made_by("generate", "outputs/sft"), when=_judged),
)
SAMPLED_READS = (Read("win_rate.prompts", TABLE, made_by("make_data", "data"), when=_judged), *WIN_RATE_READS)


def named_paths(text: str, field: str) -> dict[str, str]:
    """Parses "NAME=FILE,NAME=FILE" into {NAME: FILE}. UserError names the entry that is not of this form."""
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, path = (part.strip() for part in entry.partition("="))
        if not (name and equals and path):
            raise UserError(f"{field}: {entry!r} is not NAME=PATH; write for example {field}=sft=A,ppo=B")
        if name in found:
            raise UserError(f"{field}: {name!r} is named twice; give each entry its own name")
        found[name] = path
    return found


def inputs_of(needs: Needs, page: Page) -> Iterator[tuple[Read, str, str]]:
    """Yields (row of `reads`, NAME or "", path) for every file and folder that a page names to be read."""
    for row in needs.reads:
        if row.when(page):
            for name, path in _paths(row, value_at(page, row.field)):
                yield row, name, path


def check_needs(
    needs: Needs, config: ConfigDict, workdir: str, prefix: str = "", made: tuple[str, ...] = ()
) -> None:
    """Raises UserError that names the field, what it asks for, and how to get it.

    prefix: of a stage of a study. made: the folders in which stages before it make what is not there yet.
    """
    page = config.to_dict()
    _check_workdir(needs, page["job"], workdir)
    _check_packages(page, workdir, prefix)
    if needs.also is not None:
        needs.also(config, workdir, prefix)
    # A missing package is said before missing data: it is the cheaper one to mend.
    for row in needs.reads:
        if row.kind in (MODEL, TOKENIZER) and row.when(page):
            _check_gguf(value_at(page, row.field))
    for row, name, path in inputs_of(needs, page):
        # What an earlier stage of the study will make is not there yet; `check_made` looks for it later.
        if not _below(path, made):
            _check_there(row, prefix, name, path)
    for field in needs.writes:
        problem = _not_writable(page[field]) if page[field] else ""
        if problem:
            raise UserError(f"{prefix}{field}: {page[field]} cannot be written ({problem}); use another path")


def check_made(needs: Needs, config: ConfigDict, prefix: str, folder: str) -> None:
    """Raises UserError for what a stage of a study reads below the folder of a finished one, and is not there."""
    for row, name, path in inputs_of(needs, config.to_dict()):
        if _below(path, (folder,)):
            _check_there(row, prefix, name, path)


def check_models(needs: Needs, config: ConfigDict, prefix: str = "", made: tuple[str, ...] = ()) -> None:
    """Raises UserError for a model or adapter whose files are not those of one, before data is read for it.

    Looks at config.json, side files and the tensors' names and shapes. Runs after the processes have met. What trainers
    wrote and GGUF files are left to those who read them.
    """
    # Imported here, because jobs without jax import this module.
    from rlhf_jax.models.huggingface import import_folder
    from rlhf_jax.training.run import load_models

    page = config.to_dict()
    for row in needs.reads:
        path = value_at(page, row.field) if row.kind == MODEL and row.when(page) else ""
        if not path or _below(path, made) or not load_models.is_plain(path):
            continue
        # An adapter's folder given as the model is an easy mistake, and gets an error of its own.
        laid = next((x.field for x in needs.reads if x.over == row.field), "")
        try:
            import_folder.check_no_adapter(path, laid or "model.adapter on a page that has it")
            over = value_at(page, laid) if laid else ""
            load_models.describe_model(path, config.model, "", tokens=0, adapter=over)
        except UserError as error:
            raise UserError(f"{prefix}{row.field}: {error}") from error


def _check_workdir(needs: Needs, job: str, workdir: str) -> None:
    if "://" in workdir:
        if not needs.remote:
            raise UserError(f"workdir: {workdir}: the job {job} writes to a disk; use a folder")
        from rlhf_jax.training.checkpoints.object_stores import check_reachable

        check_reachable(workdir)
    elif problem := _not_writable(workdir, folder=True):
        raise UserError(f"workdir: {workdir} cannot be written ({problem}); use another --workdir")


def _check_packages(page: dict[str, Any], workdir: str, prefix: str) -> None:
    for field, (package, then) in _PACKAGES.items():
        if not page.get(field):
            continue
        # tensorboardX and wandb write files of their own, which only a disk takes.
        if "://" in workdir:
            raise UserError(f"{prefix}{field}: it cannot write to {workdir}; use a --workdir on a disk")
        if find_spec(package) is None:
            raise UserError(f"{prefix}{field}: {package} is not installed; run pip install {package}{then}")


def _paths(row: Read, value: str) -> Iterator[tuple[str, str]]:
    """(NAME or "", path) of everything that a field names."""
    if row.kind == NAMED_TABLES:
        yield from named_paths(value, row.field).items()
    elif row.kind == TABLES:
        yield from (("", part.strip()) for part in value.split(",") if part.strip())
    elif row.kind == WITHIN:
        yield from (("", path) for path in row.paths(value))
    elif value:
        yield "", value


def _check_there(row: Read, prefix: str, name: str, path: str) -> None:
    field = f"{prefix}{row.field}"
    what = "file" if row.kind in (TABLE, TABLES, NAMED_TABLES, FILE) else "folder"
    if "://" in path:
        raise UserError(
            f"{field}: {path}: only files on a disk are read; copy it there, and give that {what}"
        )
    # A GGUF model is a single file where other models are folders.
    as_gguf = row.kind in (MODEL, TOKENIZER) and _is_gguf(path)
    there = local_path(path).exists() if what == "file" else Path(path).is_dir() or as_gguf
    if there:
        return
    # Something like OWNER/NAME that is no path here: the hub may have it, if the package is there.
    from_hub = is_hub_name(path)
    if from_hub and what == "file" and row.kind != FILE:
        if find_spec("datasets") is None:
            fix = "pip install datasets, or give a file"
            raise UserError(f"{field}: {path}: reading it from the hub needs the package datasets; {fix}")
        return
    # transformers fetches a tokenizer by its name; a model has to be downloaded by hand.
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
    from rlhf_jax.models.huggingface import import_folder  # Jobs without models need no jax.

    import_folder.check_gguf_package(path)


def _is_gguf(path: str) -> bool:
    from rlhf_jax.models.huggingface import import_folder

    return import_folder.is_gguf(Path(path))


def _not_writable(path: str, *, folder: bool = False) -> str:
    """Why nothing can be written to a path; "" where it can be, as far as names and rights tell."""
    file = Path(path)
    if not folder and file.is_dir() and file.suffix:
        return "it is a folder"
    # The nearest folder that exists decides: the ones between are made when the job writes.
    there = next(x for x in (file, *file.absolute().parents) if x.exists())
    if not there.is_dir() and (folder or there != file):
        return "it is a file" if there == file else f"{there} is a file"
    return "" if os.access(there, os.W_OK) else "permission denied"


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(Path(path).absolute().is_relative_to(Path(folder).absolute()) for folder in folders)
