"""Loads a model onto the mesh: from a Hugging Face folder, a GGUF file, or the checkpoint of another trainer."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax.data.tokens.tokenizer_files import highest_id
from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models import lora, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, trunk
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.huggingface.import_folder import Checkpoint
from rlhf_jax.models.lora import Lora, joined
from rlhf_jax.models.placement import grow, planned_params
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import replicate
from rlhf_jax.training.checkpoints.checkpoint import Chosen, chosen_checkpoint, params_shapes, restore_params
from rlhf_jax.training.progress import Progress

ADAPTER = "adapter.json"  # in WORKDIR/model
# From so many parameters on, reading takes long enough to be worth a progress line.
_LARGE = 10**8


def resolve_folder(folder: str, adapter_field: str = "model.adapter") -> str:
    """Returns the model folder that a page's path stands for.

    A trainer's workdir stands for the checkpoint that its export is made of, which is printed; a GGUF file for the
    folder made of it; any other folder for itself. UserError for an adapter's folder, which belongs into
    `adapter_field`.
    """
    import_folder.check_no_adapter(folder, adapter_field)
    if import_folder.is_gguf(Path(folder)):
        with told(f"writing {folder} as a Hugging Face folder") as tell:
            folder = import_folder.gguf_importer().as_folder(folder, tell)
    path = Path(folder)
    found = _chosen(path)
    if found is None:
        _tell_old(path)
        return folder
    if startup.is_main():
        print(f"{folder}: checkpoint {found.folder.name} is taken, {found.why}", flush=True)
    return str(found.folder)


def _chosen(workdir: Path) -> Chosen | None:
    # Only a trainer's workdir has model/config.json; `checkpoints` alone may be somebody else's folder.
    return chosen_checkpoint(workdir) if (workdir / "model" / "config.json").is_file() else None


def _tell_old(export: Path) -> None:
    """Prints a notice where an export is older than the checkpoint that it would be made of now.

    That happens when a finished run was continued and then stopped before it exported again.
    """
    made = export / "config.json"
    later = _chosen(export.parent) if export.name == "export" and made.is_file() else None
    if later is not None and later.folder.stat().st_mtime > made.stat().st_mtime:
        startup.notice_once(
            f"{export}: older than checkpoint {later.folder.name} of its run, {later.why}; "
            f"give {export.parent} to take that"
        )


def is_plain(folder: str) -> bool:
    """Whether a model folder is an ordinary one, not a trainer's, an ensemble's or a GGUF file."""
    trained = (Path(folder) / "model" / "config.json").is_file() or described_in(folder) is not None
    several = (Path(folder) / import_folder.ENSEMBLE).is_file()
    return Path(folder).is_dir() and not trained and not several


def tokenizer_folder(folder: str) -> str:
    """Returns the folder of a model's tokenizer: the model folder itself, or of a checkpoint WORKDIR/model."""
    described = described_in(folder)
    return folder if described is None else str(described)


def base_of(folder: str) -> str:
    """Returns the model folder that a checkpoint's adapter was trained over; any other folder as it is."""
    found = _adapter_in(folder)
    return folder if found is None else found["base"]


def sources(folder: str, adapter: str = "") -> tuple[str, ...]:
    """Lists all folders that a model is read from, so that a run notices when one has changed."""
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
) -> tuple[import_folder.Checkpoint, Params]:
    """Loads a model folder or a trainer's checkpoint onto the mesh: (its description, the sharded parameters).

    Of a checkpoint only the parameters are read, or their average where one was kept; of PPO's the policy.
    Where only an adapter was trained, it lies over the model that it was trained on.
    made_by: the command that makes the folder, for the error when it is not there.
    tokens: of the tokenizer. A model with fewer gets embeddings for the others (see `models.placement.grow`).
    adapter: a folder in PEFT's format that is laid over the model, or "". One with a score head makes a reward
        model of a language model.
    base_dtype: of a model that stays as it is while an adapter is trained, see `lora.stored`.
    """
    found = describe_model(folder, model, made_by, tokens=tokens, adapter=adapter)
    own = _own_shape(folder, model, made_by)
    params = _read(folder, own, model, mesh, base_dtype)
    # Machines read at different speeds, and the collectives that follow do not wait for so long.
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
            # A score head takes the place of the language head.
            params = {**trunk(params), "score": replicate(laid.score, mesh)}
        params = joined(params, laid.adapter)
    return found, params


def describe_model(
    folder: str, model: ConfigDict, made_by: str, *, tokens: int, adapter: str = ""
) -> import_folder.Checkpoint:
    """Returns the description that `load_model` returns, without reading any weight."""
    found = _own_shape(folder, model, made_by)
    # Others of the tokenizer's tokens may be added here; this one the model would have to know already.
    if (needed := highest_id(Path(tokenizer_folder(folder)))) >= found.config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer puts token {needed} in front of every prompt, and the model has embeddings of "
            f"{found.config.vocab_size} tokens; put the tokenizer there that it was trained with"
        )
    config = dataclasses.replace(found.config, vocab_size=max(tokens, found.config.vocab_size))
    found = dataclasses.replace(found, config=config)
    if not adapter:
        return found
    if found.adapter is not None:
        raise UserError(
            f"model.adapter: {adapter}, but {folder} is the checkpoint of an adapter itself; "
            f"leave it empty, or start from {base_of(folder)}"
        )
    settings, scalar = peft.describe_adapter(adapter, config, base=folder)
    config = dataclasses.replace(config, adapter_scale=settings.scale)
    return dataclasses.replace(found, config=config, is_scalar=found.is_scalar or scalar, adapter=settings)


def _own_shape(folder: str, model: ConfigDict, made_by: str) -> import_folder.Checkpoint:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder; make it with: {made_by}")
    described = described_in(folder)
    if described is None:
        return import_folder.describe_folder(folder, **_computed_as(model))
    config, raw = import_folder.read_config(described)
    config = computed_as(config, model)
    found, settings = _adapter_in(folder), None
    if found is not None:
        settings = Lora(found["rank"], found["alpha"], tuple(found["targets"]))
        config = dataclasses.replace(config, adapter_scale=settings.scale)
        # Said here rather than after an hour of encoding, when the weights are read.
        if not Path(found["base"]).is_dir():
            raise UserError(f"{folder}: trained over {found['base']}, which is no longer there; put it back")
    shapes = params_shapes(folder)
    scalar = "score" in shapes
    # How members are stacked and thresholds kept is known to the run itself alone; its export is plain models.
    if scalar and (len(shapes["score"]) > 1 or "thresholds" in shapes):
        raise UserError(
            f"{folder}: the checkpoint of {'an ensemble' if len(shapes['score']) > 1 else 'ordinal ratings'}, "
            f"from which only its own run goes on; give {described.parent / 'export'}"
        )
    # The mean of a checkpoint's scores is not known before its weights are read, see `reward_models.loaded`.
    return import_folder.Checkpoint(
        config,
        is_scalar=scalar,
        reward_mean=None,
        adapter=settings,
        score_at=raw.get("score_at", ""),
        score_as=raw.get("score_as", "logit"),
    )


def _read(
    folder: str, own: import_folder.Checkpoint, model: ConfigDict, mesh: Mesh, base_dtype: str
) -> Params:
    """Reads the parameters of a folder, with as many embeddings as it has."""
    if described_in(folder) is None:
        with told(f"reading {folder}") as tell:
            return import_folder.load(folder, mesh, base_dtype=base_dtype, tell=tell, **_computed_as(model))[
                1
            ]
    if own.adapter is None:
        # In the wanted dtype from the start: Orbax casts while it reads, so no float32 copy exists whole.
        return _restored(
            folder, lora.stored(planned_params(own.config, mesh, scalar=own.is_scalar), base_dtype)
        )
    # A checkpoint of an adapter holds only what was trained. Its base is read from its own folder, which may
    # be such a checkpoint again.
    trained = planned_start(own.config, own.adapter, mesh, scalar=own.is_scalar).trained
    tokens = own.config.vocab_size
    base = load_model(base_of(folder), model, mesh, "", tokens=tokens, base_dtype=base_dtype)[1]
    return joined(trunk(base) if own.is_scalar else base, _restored(folder, trained))


def _restored(checkpoint: str, like: Params) -> Params:
    # An online method's state holds several networks; what other runs start from is the policy.
    if "policy" in params_shapes(checkpoint):
        return restore_params(checkpoint, {"policy": like})["policy"]
    return restore_params(checkpoint, like)


def _adapter_in(folder: str) -> dict[str, Any] | None:
    """What `session.write_model_folder` wrote of a checkpoint's adapter; None where it holds a whole model."""
    described = described_in(folder)
    path = None if described is None else described / ADAPTER
    return read_object(path) if path is not None and path.is_file() else None


def described_in(folder: str) -> Path | None:
    """WORKDIR/model of a folder WORKDIR/checkpoints/STEP; None of any other."""
    path = Path(folder).absolute()
    described = path.parent.parent / "model"
    is_step = path.parent.name == "checkpoints" and path.name.isdigit() and (path / "state").is_dir()
    return described if is_step and described.is_dir() else None


def computed_as(config: ModelConfig, model: ConfigDict) -> ModelConfig:
    """A model computed as a page's group `model` says: its dtype, remat and attention."""
    return dataclasses.replace(config, **_computed_as(model))


def _computed_as(model: ConfigDict) -> dict[str, str]:
    defaults = {"remat": "none", "attention": "auto"}
    return {"dtype": model.dtype} | {name: model.get(name, value) for name, value in defaults.items()}


@contextmanager
def told(what: str) -> Iterator[Callable[[int, int], None]]:
    """A context that yields a function (parameters done, of how many), which shows the progress of a large model."""
    lines: list[Progress] = []
    # Taken now, because `tell` is first called when a part of the model, often the largest, is done already.
    began = time.time()

    def tell(done: int, total: int) -> None:
        if total >= _LARGE and not lines:
            lines.append(Progress(total // 10**6, unit=f"{what}, million parameters", began=began))
        for line in lines:
            line.update(done // 10**6)

    yield tell
    for line in lines:
        line.close()


# What a run trains of a model: all of it, or, with `lora.rank`, an adapter beside the frozen rest.


class Start(NamedTuple):
    """A model before its training: arrays, or shapes with shardings.

    Attributes:
      frozen: what stays; empty without LoRA.
      trained: what is trained: an adapter and, of a scalar model, its score head; without LoRA everything.
    """

    frozen: Params
    trained: Params

    @property
    def whole(self) -> Params:
        """The whole model as training finds it, which is also the reference model: a fresh adapter adds exactly 0.

        It holds the frozen arrays themselves, not copies of them.
        """
        return joined(self.frozen, self.trained)


def lora_settings(group: ConfigDict) -> Lora:
    """Makes adapter settings of a page's group `lora`, whose ranges have been checked."""
    found = Lora(**group.to_dict())
    targets = tuple(name.strip() for name in found.targets.split(","))
    # Without an adapter all weights are trained, and what is trained is kept in float32.
    return found._replace(targets=targets, base_dtype=found.base_dtype if found.rank else "float32")


def model_of(checkpoint: Checkpoint, found: Lora) -> ModelConfig:
    """Settings of the model that is trained; UserError where it has an adapter of other settings already."""
    if not found.rank:
        return checkpoint.config
    _check_rank(found, checkpoint.config)
    if checkpoint.adapter is not None:
        _check_same(found, checkpoint.adapter, checkpoint.config)
    return dataclasses.replace(checkpoint.config, adapter_scale=found.scale)


def planned_start(
    config: ModelConfig, found: Lora, mesh: Mesh, *, scalar: bool = False, thresholds: int = 0
) -> Start:
    """What `start_network` will make, as shapes with shardings. thresholds: of a model of ordinal ratings."""
    base = planned_params(config, mesh, scalar=scalar)
    if thresholds:
        everywhere = NamedSharding(mesh, PartitionSpec())
        base["thresholds"] = jax.ShapeDtypeStruct((thresholds,), jnp.float32, sharding=everywhere)
    if not found.rank:
        return Start({}, base)
    return _divided(lora.stored(base, found.base_dtype), lora.planned_adapter(config, found, mesh))


def start_network(config: ModelConfig, params: Params, found: Lora, mesh: Mesh, seed: int) -> Start:
    """Divides a model, with or without an adapter already, into what is frozen and what is trained.

    config: of `model_of`. params: loaded with the adapter's base_dtype, or made so here.
    """
    base, adapter = lora.split_adapter(params)
    if not found.rank:
        return Start({}, merged_params(config, params))
    base = lora.stored(base, found.base_dtype)
    return _divided(base, adapter or lora.init_adapter(config, found, mesh, seed))


def merged_params(config: ModelConfig, params: Params) -> Params:
    """Merges a model's adapter into it, on the mesh; a model without one is returned as it is."""
    base, adapter = lora.split_adapter(params)
    if not adapter:
        return params
    # Said explicitly, because XLA is free to leave the sums on every device whole.
    where = jax.tree.map(lambda x: x.sharding, base)
    return jax.jit(lambda params: lora.merged(config, params), out_shardings=where)(params)


def _divided(base: Params, adapter: Params) -> Start:
    trained = dict(adapter)
    # A score head has one number per feature and nothing to factor: it is trained whole, as PEFT does.
    whole = {name for name in ("score", "thresholds") if name in base}
    trained |= {name: base[name] for name in base if name in whole}
    return Start({name: x for name, x in base.items() if name not in whole}, trained)


def _check_rank(found: Lora, config: ModelConfig) -> None:
    """Refuses a rank that is above that of every kernel, and prints a notice where it is above that of some."""
    # The rank of a kernel is at most its smaller side; a product of larger factors can do no more.
    sides = {
        "".join(site.kernels): min(math.prod(site.inputs), sum(map(math.prod, site.outputs)))
        for site in lora.chosen_sites(config, found.targets)
    }
    low, high = min(sides.values()), max(sides.values())
    if found.rank > high:
        raise UserError(
            f"lora.rank: {found.rank}; no kernel of this model has a rank above {high}; use a small number such as "
            f"{min(16, low)}, or 0 to train all parameters"
        )
    if found.rank > low:
        names = ", ".join(name for name, side in sides.items() if side < found.rank)
        startup.notice_once(
            f"lora.rank: {found.rank} is more than the rank of {names} itself ({low}); less does the same"
        )


def _check_same(wanted: Lora, there: Lora, config: ModelConfig) -> None:
    targets = tuple(kernel for site in lora.chosen_sites(config, wanted.targets) for kernel in site.kernels)
    for field, asked, found in (
        ("rank", wanted.rank, there.rank),
        ("alpha", wanted.alpha, there.alpha),
        ("targets", ",".join(targets), ",".join(there.targets)),
    ):
        if asked != found:
            raise UserError(
                f"lora.{field}: {asked}, but model.adapter has {found}; use its values to train it further, or "
                "lora.rank=0 to train the merged model"
            )
