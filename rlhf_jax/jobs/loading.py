"""A model onto the mesh: from a Hugging Face folder, or from the checkpoint of another trainer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters
from rlhf_jax.json_files import read_object
from rlhf_jax.models import gguf_files, huggingface, lora, peft
from rlhf_jax.models.decoder import Params, trunk
from rlhf_jax.models.embeddings import grow
from rlhf_jax.models.lora import Lora
from rlhf_jax.models.placement import planned
from rlhf_jax.parallel import notices, startup
from rlhf_jax.parallel.arrays import replicate
from rlhf_jax.training.checkpoint import Chosen, chosen, params_shapes, restore_params
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.state import joined

ADAPTER = "adapter.json"  # in WORKDIR/model
_LARGE = 10**8  # parameters, from which on reading takes long enough to be watched


def resolve(folder: str, adapter_field: str = "model.adapter") -> str:
    """A trainer's workdir -> the checkpoint that its export is made of, which is said; any other folder as it is.

    A GGUF file -> the folder made of it. UserError for an adapter's folder, which belongs into `adapter_field`.
    """
    huggingface.check_no_adapter(folder, adapter_field)
    with told(f"writing {folder} as a Hugging Face folder") as tell:
        folder = gguf_files.as_folder(folder, tell)
    path = Path(folder)
    found = _chosen(path)
    if found is None:
        _tell_old(path)
        return folder
    if startup.is_main():
        print(f"{folder}: checkpoint {found.folder.name} is taken, {found.why}", flush=True)
    return str(found.folder)


def _chosen(workdir: Path) -> Chosen | None:
    return chosen(workdir) if (workdir / "model" / "config.json").is_file() else None


def _tell_old(export: Path) -> None:
    """A notice where an export is older than the checkpoint it would be made of now: its run was stopped later."""
    made = export / "config.json"
    later = _chosen(export.parent) if export.name == "export" and made.is_file() else None
    if later is not None and later.folder.stat().st_mtime > made.stat().st_mtime:
        notices.once(
            f"{export}: older than checkpoint {later.folder.name} of its run, {later.why}; "
            f"give {export.parent} to take that"
        )


def is_plain(folder: str) -> bool:
    """Whether a model folder is an ordinary one, neither a trainer's nor a GGUF file."""
    trained = (Path(folder) / "model" / "config.json").is_file() or described_in(folder) is not None
    return Path(folder).is_dir() and not trained


def tokenizer_folder(folder: str) -> str:
    """Where the tokenizer of a model folder is; a checkpoint's stands in its workdir."""
    described = described_in(folder)
    return folder if described is None else str(described)


def base_of(folder: str) -> str:
    """The model that an adapter stands on, of the checkpoint of a trainer with one; any other folder as it is."""
    found = _adapter_in(folder)
    return folder if found is None else found["base"]


def sources(folder: str, adapter: str = "") -> tuple[str, ...]:
    """All folders that a model is read from, to notice when they change."""
    return tuple(dict.fromkeys(name for name in (folder, base_of(folder), adapter) if name))


def load_model(
    folder: str,
    model: ConfigDict,
    mesh: Mesh,
    made_by: str,
    *,
    tokens: int,
    adapter: str = "",
    base_dtype: str = "float32",
) -> tuple[huggingface.Checkpoint, Params]:
    """A model folder, or a trainer's checkpoint, onto the mesh: (what it is; the sharded parameters).

    Of a checkpoint only the parameters are read, or their average where one was kept; of PPO's the policy.
    Where only an adapter was trained, it lies over the model that it was trained on.
    made_by: the command that makes the folder, for the error when it is not there.
    tokens: of the tokenizer. A model with fewer gets embeddings for the others (see `models.embeddings`).
    adapter: a folder in PEFT's format that is laid over the model, or "". One with a score head makes a reward
        model of a language model.
    base_dtype: of a model that stays as it is while an adapter is trained, see `lora.stored`.
    """
    found = describe_model(folder, model, made_by, tokens=tokens, adapter=adapter)
    own = _own_shape(folder, model, made_by)
    params = _read(folder, own, model, mesh, base_dtype)
    startup.barrier("model read", startup.SLOW_S)
    had = own.config.vocab_size
    if tokens > had:
        if startup.is_main():
            new = tokens - had
            print(f"{folder}: embeddings of {new} new tokens, at the mean of the {had} others", flush=True)
        params = grow(own.config, params, tokens, mesh)[1]
    if adapter:
        laid = peft.load(adapter, found.config, mesh)
        if laid.score is not None:
            params = {**trunk(params), "score": replicate(laid.score, mesh)}
        params = joined(params, laid.adapter)
    return found, params


def describe_model(
    folder: str, model: ConfigDict, made_by: str, *, tokens: int, adapter: str = ""
) -> huggingface.Checkpoint:
    """What `load_model` will say of a folder, without reading its weights."""
    found = _own_shape(folder, model, made_by)
    config = dataclasses.replace(found.config, vocab_size=max(tokens, found.config.vocab_size))
    found = dataclasses.replace(found, config=config)
    if not adapter:
        return found
    if found.adapter is not None:
        raise UserError(
            f"model.adapter: {adapter}, but {folder} is the checkpoint of an adapter itself; "
            f"leave it empty, or start from {base_of(folder)}"
        )
    settings, scalar = peft.describe(adapter, config, base=folder)
    config = dataclasses.replace(config, adapter_scale=settings.scale)
    return dataclasses.replace(found, config=config, is_scalar=found.is_scalar or scalar, adapter=settings)


def _own_shape(folder: str, model: ConfigDict, made_by: str) -> huggingface.Checkpoint:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder; make it with: {made_by}")
    described = described_in(folder)
    if described is None:
        return huggingface.describe(folder, **_computed_as(model))
    config, raw = huggingface.read_config(described)
    config = dataclasses.replace(config, **_computed_as(model))
    found, settings = _adapter_in(folder), None
    if found is not None:
        settings = Lora(found["rank"], found["alpha"], tuple(found["targets"]))
        config = dataclasses.replace(config, adapter_scale=settings.scale)
        if not Path(found["base"]).is_dir():
            raise UserError(f"{folder}: trained over {found['base']}, which is no longer there; put it back")
    scalar = "score" in params_shapes(folder)
    # The mean of a checkpoint's scores is not known before it is read, see `rewarding`.
    return huggingface.Checkpoint(
        config, is_scalar=scalar, reward_mean=None, adapter=settings, score_at=raw.get("score_at", "")
    )


def _read(folder: str, own: huggingface.Checkpoint, model: ConfigDict, mesh: Mesh, base_dtype: str) -> Params:
    """The parameters of a folder with as many embeddings as it has."""
    if described_in(folder) is None:
        with told(f"reading {folder}") as tell:
            return huggingface.load(folder, mesh, base_dtype=base_dtype, tell=tell, **_computed_as(model))[1]
    if own.adapter is None:
        return _restored(folder, lora.stored(planned(own.config, mesh, scalar=own.is_scalar), base_dtype))
    trained = adapters.planned(own.config, own.adapter, mesh, scalar=own.is_scalar).trained
    tokens = own.config.vocab_size
    base = load_model(base_of(folder), model, mesh, "", tokens=tokens, base_dtype=base_dtype)[1]
    return joined(trunk(base) if own.is_scalar else base, _restored(folder, trained))


def _restored(checkpoint: str, like: Params) -> Params:
    if "policy" in params_shapes(checkpoint):
        return restore_params(checkpoint, {"policy": like})["policy"]
    return restore_params(checkpoint, like)


def _adapter_in(folder: str) -> dict[str, Any] | None:
    """What `describe` wrote of the adapter that a checkpoint holds; None of one that holds a whole model."""
    described = described_in(folder)
    path = None if described is None else described / ADAPTER
    return read_object(path) if path is not None and path.is_file() else None


def described_in(folder: str) -> Path | None:
    """WORKDIR/model of a folder WORKDIR/checkpoints/STEP; None of any other."""
    path = Path(folder).absolute()
    described = path.parent.parent / "model"
    is_step = path.parent.name == "checkpoints" and path.name.isdigit() and (path / "state").is_dir()
    return described if is_step and described.is_dir() else None


def _computed_as(model: ConfigDict) -> dict[str, str]:
    defaults = {"remat": "none", "attention": "auto"}
    return {"dtype": model.dtype} | {name: model.get(name, value) for name, value in defaults.items()}


@contextmanager
def told(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (parameters done, of how many) that shows how far reading or writing a large model is."""
    lines: list[Progress] = []
    began = time.monotonic()  # The first word comes when a part, often the largest, is done already.

    def tell(done: int, total: int) -> None:
        if total >= _LARGE and not lines:
            lines.append(Progress(total // 10**6, unit=f"{what}, million parameters", began=began))
        for line in lines:
            line.update(done // 10**6)

    yield tell
    for line in lines:
        line.close()
