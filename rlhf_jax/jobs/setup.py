"""What every jax job does first and last: join the processes, build the mesh, export a model."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import rlhf_jax
from rlhf_jax import ranges
from rlhf_jax.jobs import loading, wanted
from rlhf_jax.models import huggingface_export, lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import Lora
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.storage import at, is_remote, named, publish


def start(config: ConfigDict, workdir: str) -> Mesh:
    """Checks the settings, joins the processes of the run, sees that they agree on what it is, and builds the mesh."""
    ranges.check(config.to_dict())
    try:
        wanted.check(config, workdir)
    finally:  # Only who has joined can tell the others why they need not wait.
        startup.start(config.distributed)
    startup.agree("workdir", named(workdir))
    startup.agree("config", config.to_json_best_effort(sort_keys=True))
    startup.agree("rlhf_jax's code", f"{rlhf_jax.__version__} {_code()}")
    _keep_compiled_programs()
    mesh = make_mesh(**config.mesh.to_dict())
    wanted.check_models(config)
    return mesh


def describe(
    workdir: str,
    config: ModelConfig,
    tokenizer: Any,
    tokenizer_from: str,
    *,
    scalar: bool = False,
    adapter: Lora,
    base: str,
    score_at: str = "eos",
    beside: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
) -> None:
    """Writes WORKDIR/model, which says what the checkpoints beside it are, so that another run can start from them.

    score_at: of a reward model, at which token it is read. beside: further files by name, and what writes each.
    adapter, base: what is trained, if not everything (rank 0), and the folder of what is frozen beside it.
    """
    if startup.is_main():
        with _folder(workdir, "model") as folder:
            huggingface_export.save_shape(
                folder,
                config,
                scalar=scalar,
                token_ids=token_ids(tokenizer),
                tokenizer_from=tokenizer_from,
                score_at=score_at,
            )
            if adapter.rank:
                targets = [name for site in lora.chosen(config, adapter.targets) for name in site.kernels]
                found = {"base": os.path.abspath(base), **adapter._asdict(), "targets": targets}
                (folder / loading.ADAPTER).write_text(json.dumps(found, indent=2) + "\n")
            for name, write in beside.items():
                write(folder / name)


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
    score_at: str = "eos",
    ends: tuple[int, ...] = (),
) -> None:
    """Writes WORKDIR/export, the form in which the next job (or transformers) takes the model.

    reward_mean, score_at: of a reward model, what readers subtract and at which token they read.
    ends: the tokens that end a response, of a model that writes some; its generation_config.json names them all.
    An adapter is merged into it, and written in PEFT's format to WORKDIR/adapter, where `base` is its base.
    """
    adapter = lora.split(params)[1]
    if adapter:
        host = gather({name: x for name, x in {**params, **adapter}.items() if name in ("layers", "score")})
        if startup.is_main():
            with _folder(workdir, "adapter") as folder:
                peft.save(folder, config, host, base=base)
    with _folder(workdir, "export") as folder, loading.told(f"writing {workdir}/export") as tell:
        huggingface_export.save(
            folder,
            config,
            params,
            token_ids=token_ids(tokenizer),
            tokenizer_from=tokenizer_from,
            reward_mean=reward_mean,
            score_at=score_at,
            write=startup.is_main(),
            tell=tell,
        )
        if ends and startup.is_main():
            _write_ends(folder / "generation_config.json", ends)
    startup.barrier("export")


def _write_ends(path: Path, ends: tuple[int, ...]) -> None:
    """The settings that other programs sample with stop where training text ends, too."""
    raw = json.loads(path.read_text())
    found = raw.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    if not set(ends) <= set(listed):
        raw["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
        path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


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


def _code() -> str:
    """A hash of the program: a checkout of one machine may be behind."""
    root, total = Path(rlhf_jax.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:12]


def _keep_compiled_programs() -> None:
    """Compiled programs are kept in the user's cache, so a second start does not compile again.

    Who names a folder of their own (JAX_COMPILATION_CACHE_DIR) also says, in jax's way, what is kept there.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
