"""What every jax job does first and last: join the processes, build the mesh, load a model, export one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax import __version__
from rlhf_jax.errors import UserError
from rlhf_jax.models import huggingface, lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, trunk
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, replicate
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.state import joined


def start(config: ConfigDict, workdir: str) -> Mesh:
    """Joins the processes of the run, checks that they agree on what it is, and builds the mesh."""
    startup.start(config.distributed)
    startup.agree("workdir", os.path.abspath(workdir))
    startup.agree("config", config.to_json_best_effort(sort_keys=True))
    startup.agree("rlhf_jax version", __version__)
    _keep_compiled_programs()
    return make_mesh(**config.mesh.to_dict())


def load_model(
    folder: str, model: ConfigDict, mesh: Mesh, made_by: str, *, adapter: str = ""
) -> tuple[huggingface.Checkpoint, Params]:
    """A model folder onto the mesh: (what it is; the sharded parameters).

    made_by: the command that makes the folder, for the error when it is not there.
    adapter: a folder in PEFT's format that is laid over the model, or "". One with a score head makes a reward
        model of a language model.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder; make it with: {made_by}")
    checkpoint, params = huggingface.load(folder, mesh, dtype=model.dtype, remat=model.get("remat", "none"))
    if not adapter:
        return checkpoint, params
    found = peft.load(adapter, checkpoint.config, mesh)
    if found.score is not None:
        params = {**trunk(params), "score": replicate(found.score, mesh)}
    config = dataclasses.replace(checkpoint.config, adapter_scale=found.lora.scale)
    checkpoint = dataclasses.replace(checkpoint, config=config, is_scalar="score" in params)
    return checkpoint, joined(params, found.adapter)


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
    """Writes WORKDIR/export, the form in which the next job (or transformers) takes the model.

    An adapter is merged into it, and written in PEFT's format to WORKDIR/adapter; its base is `tokenizer_from`.
    """
    host = gather(params)
    if startup.is_main():
        if lora.split(host)[1]:
            peft.save(Path(workdir) / "adapter", config, host, base=tokenizer_from)
            host = lora.merged(config, host)
        huggingface.save(
            Path(workdir) / "export",
            config,
            host,
            token_ids=token_ids(tokenizer),
            tokenizer_from=tokenizer_from,
            reward_mean=reward_mean,
        )
    startup.barrier("export")


def _keep_compiled_programs() -> None:
    """Compiled programs are kept in the user's cache, so a second start does not compile again."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
