"""How every run of a method opens and ends: start-up, workdir, tokenizer, description of the model, export.

The order is fixed and written once, here. Wrong settings, files and models are refused before anything is read that
takes long, and the processes of a run agree on what they do before any of them writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import rlhf_jax
from rlhf_jax import ranges
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.chat.chat_templates import asks_for_the_date
from rlhf_jax.data.files.splits import local_path
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokens.special_ids import end_ids
from rlhf_jax.data.tokens.tokenizer_files import add_markers, load_tokenizer
from rlhf_jax.models import lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, increasing
from rlhf_jax.models.huggingface import export_folder
from rlhf_jax.models.lora import Lora
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import AUTO, gather, make_mesh
from rlhf_jax.training.checkpoints.object_stores import at, is_remote, publish, workdir_name, write_text
from rlhf_jax.training.checkpoints.workdir import digest, prepare_workdir
from rlhf_jax.training.run import load_models, missing_inputs
from rlhf_jax.training.run.missing_inputs import Needs

# The packages whose versions decide what tokens a text becomes; a run that goes on compares them.
_TOKEN_MAKERS = ("tokenizers", "transformers", "jinja2")


class Session(NamedTuple):
    """An opened run.

    Attributes:
      config, workdir: its page, whose paths are as they were given, and its folder.
      mesh: the devices of all its processes.
      folder: the model folder that training starts from, as `load_models.resolve_folder` returns it; "" for a fresh
        model.
      tokenizer, tokenizer_from: that model's, and the folder it was read from.
      lora: what is trained beside the model; its rank is 0 where the whole model is trained.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    folder: str
    tokenizer: Any
    tokenizer_from: str
    lora: Lora

    @property
    def base(self) -> str:
        """The model that an adapter of this run stands on."""
        return load_models.base_of(self.folder)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        data = self.config.data
        return end_ids(self.tokenizer, self.tokenizer_from, data.template, handling_of(data))

    def inputs(self, *folders: str) -> dict[str, str]:
        """Hashes of what the run reads: rows, model, and these folders too. A run that goes on compares them."""
        data, sources = self.config.data, load_models.sources(self.folder, self.config.model.adapter)
        return digests(data.train, data.eval, *sources, *folders)


class Network(NamedTuple):
    """A model that a run trains, before any of its weights is read.

    Attributes:
      config: its settings; the scale of the adapter that is trained is part of them.
      read: gives its parameters on the mesh, with the adapter that it starts from, if any.
      scalar: whether it has a score head instead of a language model's.
      score_at: of a reward model, the token at which it is read.
      score_as, thresholds: of a reward model, see `models.model.Reading`.
    """

    config: ModelConfig
    read: Callable[[], Params]
    scalar: bool = False
    score_at: str = "eos"
    score_as: str = "logit"
    thresholds: int = 0


def open_session(
    needs: Needs,
    config: ConfigDict,
    workdir: str,
    *,
    folder: str,
    made_by: str,
    find_tokenizer: Callable[[str], str] = load_models.tokenizer_folder,
) -> Session:
    """Starts a run, takes its workdir, and loads the tokenizer of the model that it trains.

    folder: what the page names: a model folder, a trainer's workdir, a GGUF file; "" for a fresh model.
    made_by: the command that makes the tokenizer, for the error when it is not there.
    find_tokenizer: the tokenizer's folder of a model folder.
    """
    mesh = start_up(needs, config, workdir, trains=True)
    # From here on this run alone writes into the folder; before, nothing was written.
    prepare_workdir(workdir, config.to_dict())
    lora_settings = load_models.lora_settings(config.lora)
    resolved = load_models.resolve_folder(folder) if folder else ""
    tokenizer_from = find_tokenizer(resolved)
    tokenizer = load_tokenizer(tokenizer_from, made_by=made_by)
    # Changes the page in place: before anything is encoded, and after config.json was written as asked for.
    keep_date(config, workdir, tokenizer)
    return Session(config, workdir, mesh, resolved, tokenizer, tokenizer_from, lora_settings)


def marked_tokenizer(workdir: str, tokens: Sequence[str], prefix: str, made_by: str, folder: str) -> str:
    """Writes a model's tokenizer with these control tokens to WORKDIR/tokenizer, and returns that folder.

    prefix: what it puts in front of every prompt from here on. folder: the model's, as it was resolved.
    """
    source, found = load_models.tokenizer_folder(folder), Path(workdir) / "tokenizer"
    if startup.is_main():
        add_markers(source, tokens, prefix, found, made_by=made_by)
        # An export takes generation_config.json from where the tokenizer is, so it has to come along.
        settings = Path(source) / "generation_config.json"
        if settings.is_file():
            shutil.copyfile(settings, found / settings.name)
    startup.barrier("tokenizer")
    return str(found)


def start_up(needs: Needs, config: ConfigDict, workdir: str, *, trains: bool = False) -> Mesh:
    """Checks the settings, joins the processes of the run, sees that they agree on what it is, and builds the mesh.

    trains: whether the run has a train step, by whose plan `mesh.fsdp=auto` goes; without one it takes all devices.
    """
    # A value out of range is wrong in every process. A missing file may be missing on one machine only, and
    # that process has to join the others before it can tell them.
    ranges.check_ranges(config.to_dict())
    with startup.join_after_checks(config.distributed):
        missing_inputs.check_needs(needs, config, workdir)
    # Processes that disagree compile different programs, and hang in a collective that one of them lacks.
    startup.agree("workdir", workdir_name(workdir))
    startup.agree("config", config.to_json_best_effort(sort_keys=True))
    startup.agree("rlhf_jax's code", f"{rlhf_jax.__version__} {code_version()}")
    _keep_compiled_programs()
    mesh = make_mesh(**mesh_sizes(config, trains=trains))
    # After the processes have met: a model folder may be broken on one machine only, and all should end then.
    missing_inputs.check_models(needs, config)
    return mesh


def mesh_sizes(config: ConfigDict, *, trains: bool) -> dict[str, int]:
    """A page's mesh in numbers, of which one may be -1."""
    sizes = config.mesh.to_dict()
    if sizes["fsdp"] != AUTO:
        return sizes
    if not trains:
        return sizes | {"data": max(1, sizes["data"]), "fsdp": -1}
    # Here, because jobs that train nothing need none of what a train step does.
    from rlhf_jax.training.run import memory_check

    return memory_check.auto_mesh(config)


def network_of(session: Session, made_by: str) -> Network:
    """Describes the model that a run starts from, as it will be trained; UserError where its adapter does not fit."""
    config, mesh, lora_settings = session.config, session.mesh, session.lora
    about = {"tokens": len(session.tokenizer), "adapter": config.model.adapter}
    found = load_models.describe_model(session.folder, config.model, made_by, **about)
    model = load_models.model_of(found, lora_settings)
    about["base_dtype"] = lora_settings.base_dtype

    # Called when the step is known to fit; until then only config.json and tensors' shapes are looked at.
    def read() -> Params:
        return load_models.load_model(session.folder, config.model, mesh, made_by, **about)[1]

    return Network(model, read, found.is_scalar, found.score_at)


def write_model_folder(
    session: Session, network: Network, *, beside: Mapping[str, Callable[[Path], None]] = MappingProxyType({})
) -> None:
    """Writes WORKDIR/model, which says what the checkpoints beside it are, so that another run can start from them.

    beside: further files by name, and what writes each.
    """
    if not startup.is_main():
        return
    config, adapter = network.config, session.lora
    with folder_of(session.workdir, "model") as folder:
        export_folder.save_shape(
            folder,
            config,
            scalar=network.scalar,
            token_ids=token_ids(session.tokenizer),
            tokenizer_from=session.tokenizer_from,
            score_at=network.score_at or "eos",
            reward=_reward(network),
        )
        if adapter.rank:
            # Written out, because what `all` stands for depends on the model's family.
            targets = [name for site in lora.chosen_sites(config, adapter.targets) for name in site.kernels]
            found = {"base": os.path.abspath(session.base), **adapter._asdict(), "targets": targets}
            (folder / load_models.ADAPTER).write_text(json.dumps(found, indent=2) + "\n")
        for name, write in beside.items():
            write(folder / name)


def token_ids(tokenizer: Any) -> dict[str, int | None]:
    """The special token ids as `config.json` names them."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def export_model(
    session: Session,
    network: Network,
    params: Params,
    *,
    reward_mean: float = 0.0,
    ends: tuple[int, ...] = (),
    tokenizer: Any = None,
    tokenizer_from: str = "",
    member: str = "",
) -> None:
    """Writes WORKDIR/export, the form in which the next job (or transformers) takes the model.

    An adapter is merged into it, and written in PEFT's format to WORKDIR/adapter, where the session's base is its base.

    reward_mean: of a reward model, what readers subtract.
    ends: the tokens that end a response, of a model that writes some; its generation_config.json names them all.
    tokenizer, tokenizer_from: where the export is to have another than the session's.
    member: of one model of several, the folder within WORKDIR/export (and WORKDIR/adapter) that it is written to.
    """
    workdir, config = session.workdir, network.config
    adapter = lora.split_adapter(params)[1]
    if adapter:
        # A collective, so every process takes part, although only one writes.
        host = gather({name: x for name, x in {**params, **adapter}.items() if name in ("layers", "score")})
        if startup.is_main():
            with folder_of(workdir, f"adapter/{member}".rstrip("/")) as folder:
                peft.save_adapter(folder, config, host, base=session.base)
    with (
        folder_of(workdir, f"export/{member}".rstrip("/")) as folder,
        load_models.told(f"writing {workdir}/export") as tell,
    ):
        export_folder.save_folder(
            folder,
            config,
            params,
            token_ids=token_ids(session.tokenizer if tokenizer is None else tokenizer),
            tokenizer_from=tokenizer_from or session.tokenizer_from,
            reward_mean=reward_mean,
            score_at=network.score_at or "eos",
            reward=_reward(network, params),
            write=startup.is_main(),
            tell=tell,
        )
        if ends and startup.is_main():
            _write_ends(folder / "generation_config.json", ends)
    # The job that follows may read the folder on another machine.
    startup.barrier("export")


def _write_ends(path: Path, ends: tuple[int, ...]) -> None:
    """Adds the tokens that end training text to generation_config.json, so that other programs stop there, too."""
    raw = json.loads(path.read_text())
    found = raw.get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    if not set(ends) <= set(listed):
        raw["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
        path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def _reward(network: Network, params: Params | None = None) -> dict[str, Any]:
    """What config.json says of a reward model's score where it is not simply the number that its head gives."""
    found: dict[str, Any] = {} if network.score_as == "logit" else {"score_as": network.score_as}
    if params is not None and "thresholds" in params:
        found["thresholds"] = np.asarray(gather(increasing(params["thresholds"])), np.float64).tolist()
    return found


@contextmanager
def folder_of(workdir: str, name: str) -> Iterator[Path]:
    """A context with WORKDIR/NAME to write into; for an object store a local folder that is copied there at the end."""
    if not is_remote(workdir):
        yield Path(workdir) / name
        return
    with tempfile.TemporaryDirectory() as local:
        yield Path(local) / name
        if startup.is_main():
            publish(Path(local) / name, at(workdir) / name)


def digests(*paths: str) -> dict[str, str]:
    """Hashes of a run's inputs and the versions of the packages that tokenize them, for a resumed run to compare."""
    # Some methods take several files in one field.
    files = [one.strip() for path in paths for one in (path, *path.split(","))]
    found = {path: digest(local_path(path)) for path in files if path and local_path(path).exists()}
    return found | {name: version(name) for name in _TOKEN_MAKERS}


def keep_date(config: ConfigDict, workdir: str, tokenizer: Any) -> None:
    """Sets data.date to the day on which the run began, where a chat template asks for it and none is set.

    It is kept in WORKDIR/date.txt: a run that goes on next week writes the same tokens. Every process calls this.
    """
    if config.data.date or config.data.template != CHAT or not asks_for_the_date(tokenizer):
        return
    path = at(workdir) / "date.txt"
    if startup.is_main() and not path.exists():
        write_text(path, f"{date.today().isoformat()}\n")
    # The date of process 0 counts: at midnight, and across time zones, machines disagree.
    startup.barrier("date")
    config.data.date = path.read_text().strip()
    if startup.is_main():
        print(
            f"data.date: the chat template is told {config.data.date}, in this run and when it goes on",
            flush=True,
        )


def code_version() -> str:
    """Returns a hash of the package's source files, since the checkout of one machine may be behind the others."""
    root, total = Path(rlhf_jax.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:12]


def _keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache, so that a second start does not compile again.

    Where JAX_COMPILATION_CACHE_DIR names another folder, jax's own settings say what is kept there.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # jax keeps what took a second or more to compile; many programs of a small model take less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
