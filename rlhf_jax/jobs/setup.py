"""What every jax job does first and last: join the processes, build the mesh, load a model, export one."""

from __future__ import annotations

import dataclasses
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
from rlhf_jax.models import huggingface
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.embeddings import grow
from rlhf_jax.models.placement import planned
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.checkpoint import newest, params_shapes, restore_params
from rlhf_jax.training.storage import at, is_remote, named, publish


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


def load_model(
    folder: str, model: ConfigDict, mesh: Mesh, made_by: str, *, tokens: int
) -> tuple[huggingface.Checkpoint, Params]:
    """A model folder, or a trainer's checkpoint, onto the mesh: (what it is; the sharded parameters).

    Of a checkpoint only the parameters are read, as they were trained and not their average; of PPO's the policy.
    made_by: the command that makes the folder, for the error when it is not there.
    tokens: of the tokenizer. A model with fewer gets embeddings for the others (see `models.embeddings`).
    """
    found = _own_shape(folder, model, made_by)
    had = found.config.vocab_size
    if _described_in(folder) is None:
        params = huggingface.load(folder, mesh, **_computed_as(model))[1]
    else:
        like = planned(found.config, mesh, scalar=found.is_scalar)
        if "policy" in params_shapes(folder):
            params = restore_params(folder, {"policy": like})["policy"]
        else:
            params = restore_params(folder, like)
    if tokens <= had:
        return found, params
    if startup.is_main():
        print(
            f"{folder}: embeddings of {tokens - had} new tokens, at the mean of the {had} others", flush=True
        )
    config, params = grow(found.config, params, tokens, mesh)
    return dataclasses.replace(found, config=config), params


def describe_model(folder: str, model: ConfigDict, made_by: str, *, tokens: int) -> huggingface.Checkpoint:
    """What `load_model` will say of a folder, without reading its weights."""
    found = _own_shape(folder, model, made_by)
    vocab_size = max(tokens, found.config.vocab_size)
    return dataclasses.replace(found, config=dataclasses.replace(found.config, vocab_size=vocab_size))


def _own_shape(folder: str, model: ConfigDict, made_by: str) -> huggingface.Checkpoint:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder; make it with: {made_by}")
    described = _described_in(folder)
    if described is None:
        return huggingface.describe(folder, **_computed_as(model))
    config = dataclasses.replace(huggingface.read_config(described)[0], **_computed_as(model))
    shapes = params_shapes(folder)
    return huggingface.Checkpoint(config, is_scalar="score" in shapes, reward_mean=0.0)


def describe(
    workdir: str, config: ModelConfig, tokenizer: Any, tokenizer_from: str, *, scalar: bool = False
) -> None:
    """Writes WORKDIR/model, which says what the checkpoints beside it are, so that another run can start from them."""
    if startup.is_main():
        with _folder(workdir, "model") as folder:
            huggingface.save_shape(
                folder, config, scalar=scalar, token_ids=token_ids(tokenizer), tokenizer_from=tokenizer_from
            )


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
) -> None:
    """Writes WORKDIR/export, the form in which the next job (or transformers) takes the model."""
    with _folder(workdir, "export") as folder:
        huggingface.save(
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
