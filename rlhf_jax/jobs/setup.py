"""What every jax job does first and last: join the processes, build the mesh, load a model, export one."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax import __version__
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters
from rlhf_jax.models import huggingface, huggingface_export, lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, trunk
from rlhf_jax.models.embeddings import grow
from rlhf_jax.models.lora import Lora
from rlhf_jax.models.placement import planned
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, replicate
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.checkpoint import newest, params_shapes, restore_params
from rlhf_jax.training.state import joined
from rlhf_jax.training.storage import at, is_remote, named, publish

_ADAPTER = "adapter.json"  # in WORKDIR/model


def start(config: ConfigDict, workdir: str) -> Mesh:
    """Joins the processes of the run, checks that they agree on what it is, and builds the mesh."""
    startup.start(config.distributed)
    startup.agree("workdir", named(workdir))
    startup.agree("config", config.to_json_best_effort(sort_keys=True))
    startup.agree("rlhf_jax version", __version__)
    _keep_compiled_programs()
    return make_mesh(**config.mesh.to_dict())


def resolve(folder: str) -> str:
    """A trainer's workdir -> its last checkpoint; any other model folder as it is."""
    path = Path(folder)
    step = newest(path) if (path / "model" / "config.json").is_file() else None
    return folder if step is None else str(step)


def tokenizer_folder(folder: str) -> str:
    """Where the tokenizer of a model folder is; a checkpoint's stands in its workdir."""
    described = _described_in(folder)
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

    Of a checkpoint only the parameters are read, as they were trained and not their average; of PPO's the policy.
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
    settings, scalar = peft.describe(adapter, config)
    config = dataclasses.replace(config, adapter_scale=settings.scale)
    return dataclasses.replace(found, config=config, is_scalar=found.is_scalar or scalar, adapter=settings)


def _own_shape(folder: str, model: ConfigDict, made_by: str) -> huggingface.Checkpoint:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder; make it with: {made_by}")
    described = _described_in(folder)
    if described is None:
        return huggingface.describe(folder, **_computed_as(model))
    config = dataclasses.replace(huggingface.read_config(described)[0], **_computed_as(model))
    found, settings = _adapter_in(folder), None
    if found is not None:
        settings = Lora(found["rank"], found["alpha"], tuple(found["targets"]))
        config = dataclasses.replace(config, adapter_scale=settings.scale)
        if not Path(found["base"]).is_dir():
            raise UserError(f"{folder}: trained over {found['base']}, which is no longer there; put it back")
    scalar = "score" in params_shapes(folder)
    return huggingface.Checkpoint(config, is_scalar=scalar, reward_mean=0.0, adapter=settings)


def _read(folder: str, own: huggingface.Checkpoint, model: ConfigDict, mesh: Mesh, base_dtype: str) -> Params:
    """The parameters of a folder with as many embeddings as it has."""
    if _described_in(folder) is None:
        return huggingface.load(folder, mesh, base_dtype=base_dtype, **_computed_as(model))[1]
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


def describe(
    workdir: str,
    config: ModelConfig,
    tokenizer: Any,
    tokenizer_from: str,
    *,
    scalar: bool = False,
    adapter: Lora,
    base: str,
) -> None:
    """Writes WORKDIR/model, which says what the checkpoints beside it are, so that another run can start from them.

    adapter, base: what is trained, if not everything (rank 0), and the folder of what is frozen beside it.
    """
    if startup.is_main():
        with _folder(workdir, "model") as folder:
            huggingface_export.save_shape(
                folder, config, scalar=scalar, token_ids=token_ids(tokenizer), tokenizer_from=tokenizer_from
            )
            if adapter.rank:
                targets = [name for site in lora.chosen(config, adapter.targets) for name in site.kernels]
                found = {"base": os.path.abspath(base), **adapter._asdict(), "targets": targets}
                (folder / _ADAPTER).write_text(json.dumps(found, indent=2) + "\n")


def _adapter_in(folder: str) -> dict[str, Any] | None:
    """What `describe` wrote of the adapter that a checkpoint holds; None of one that holds a whole model."""
    described = _described_in(folder)
    path = None if described is None else described / _ADAPTER
    return json.loads(path.read_text()) if path is not None and path.is_file() else None


def _described_in(folder: str) -> Path | None:
    """WORKDIR/model of a folder WORKDIR/checkpoints/STEP; None of any other."""
    path = Path(folder).absolute()
    described = path.parent.parent / "model"
    is_step = path.parent.name == "checkpoints" and path.name.isdigit() and (path / "state").is_dir()
    return described if is_step and described.is_dir() else None


def _computed_as(model: ConfigDict) -> dict[str, str]:
    defaults = {"remat": "none", "attention": "auto"}
    return {"dtype": model.dtype} | {name: model.get(name, value) for name, value in defaults.items()}


def token_ids(tokenizer: Any) -> dict[str, int | None]:
    """The special token ids as `config.json` names them."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def export(
    workdir: str,
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    tokenizer_from: str,
    reward_mean: float = 0.0,
    *,
    base: str,
) -> None:
    """Writes WORKDIR/export, the form in which the next job (or transformers) takes the model.

    An adapter is merged into it, and written in PEFT's format to WORKDIR/adapter, where `base` is its base.
    """
    adapter = lora.split(params)[1]
    if adapter:
        host = gather({name: x for name, x in {**params, **adapter}.items() if name in ("layers", "score")})
        if startup.is_main():
            with _folder(workdir, "adapter") as folder:
                peft.save(folder, config, host, base=base)
    with _folder(workdir, "export") as folder:
        huggingface_export.save(
            folder,
            config,
            params,
            token_ids=token_ids(tokenizer),
            tokenizer_from=tokenizer_from,
            reward_mean=reward_mean,
            write=startup.is_main(),
        )
    startup.barrier("export")


@contextmanager
def _folder(workdir: str, name: str) -> Iterator[Path]:
    """WORKDIR/NAME to write into; for an object store a folder on this machine, which is copied there at the end."""
    if not is_remote(workdir):
        yield Path(workdir) / name
        return
    with tempfile.TemporaryDirectory() as local:
        yield Path(local) / name
        if startup.is_main():
            publish(Path(local) / name, at(workdir) / name)


def _keep_compiled_programs() -> None:
    """Compiled programs are kept in the user's cache, so a second start does not compile again."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
