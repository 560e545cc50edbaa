"""Loads a reward model with all that its score depends on: tokenizer, template, scored token, mean score."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.batches import Pairs, Sequences, bucket, eval_batches, pad
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.same_tokens import same_tokens
from rlhf_jax.data.tokens.scored_text import closing, default_score_at
from rlhf_jax.data.tokens.special_ids import with_spare_pad
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models.decoder import Params, increasing
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import (
    COMBINE,
    MEAN_MINUS_VARIANCE,
    MINIMUM,
    Model,
    Reading,
    RewardModel,
    combined,
    model_scores,
)
from rlhf_jax.models.placement import planned_params
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather, host_rows, replicate, to_global
from rlhf_jax.training.run import load_models
from rlhf_jax.training.run.ensembles import (
    folder_name,
    planned_stack,
    read_ensemble,
    stacked,
    write_ensemble,
)
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.session import Network, Session, export_model

# In WORKDIR/model of a run that trained a reward model.
DEMONSTRATIONS = "demonstrations.npz"
# Of every job that reads a reward model; "" leaves it to the ensemble's own file.
ranges.own_rows(
    "model",
    combine=ranges.one_of(*COMBINE, or_none=True),
    combine_coef=ranges.number(0),
)
# One function, so that models of one shape compile it once.
_score = jax.jit(model_scores)


def described(
    folder: str,
    model: ConfigDict,
    *,
    field: str,
    template: str,
    adapter: str = "",
    how: Handling | None = None,
) -> RewardModel:
    """Describes a reward model without reading its parameters; raises the errors that loading it would.

    folder: what the page's `field` names, any family's folder, or another run's workdir or checkpoint.
    template: of the text that it is given. how: how conversations are written.
    """
    asked, coef = model.get("combine", ""), model.get("combine_coef", 0.0)
    several = read_ensemble(folder)
    if several is not None:
        about = {"field": field, "template": template, "adapter": adapter, "how": how}
        folders, *own = several
        return _described_ensemble(folder, folders, (asked, coef) if asked else own, model, about)
    path = load_models.resolve_folder(
        folder, "model.reward_adapter" if field == "model.reward" else "model.adapter"
    )
    tokenizer = load_tokenizer(load_models.tokenizer_folder(path), made_by=made_by("reward_model"))
    found = load_models.describe_model(path, model, made_by("reward_model"), tokens=0, adapter=adapter)
    if not found.is_scalar:
        raise UserError(f"{field}: {folder} is a language model; give what reward_model exported")
    # A policy's missing embeddings are made when it is loaded. A reward model is not trained further, and a
    # made-up row would change its scores in silence.
    missing = _without_embedding(tokenizer, found.config.vocab_size)
    if missing:
        raise UserError(
            f"{field}: {folder} has embeddings of {found.config.vocab_size} tokens, but its tokenizer has others too, "
            f"such as {missing!r}; put the tokenizer there that it was trained with"
        )
    # The page's word, else what the model's config.json says, else what is usual for the template.
    score_at = model.score_at or found.score_at or default_score_at(template)
    how = how or Handling()
    behind = closing(tokenizer, template, score_at, how)
    reading = Reading(found.score_as, len(found.thresholds))
    return RewardModel(Model(found.config, {}, reading), tokenizer, path, template, score_at, behind, how)


def _described_ensemble(
    folder: str, members: Sequence[str], how: Sequence[Any], model: ConfigDict, about: dict[str, Any]
) -> RewardModel:
    """Describes an ensemble's reward models as one. how: (combine, combine_coef), the page's before the folder's."""
    if about["adapter"]:
        raise UserError(
            f"{about['field']}: {folder} is an ensemble, over which no adapter can be laid; leave it empty"
        )
    found = [described(member, model, **about) for member in members]
    first = found[0]
    for one in found[1:]:
        alike = one.model == first.model and (one.score_at, one.behind) == (first.score_at, first.behind)
        if not (alike and same_tokens(one.tokenizer, first.tokenizer)):
            raise UserError(
                f"{about['field']}: {one.folder} is another kind of reward model than {first.folder} (its shape, "
                "tokenizer, score_at or score_as); members of an ensemble are alike"
            )
    combine, coef = how
    reading = dataclasses.replace(
        first.model.reading, members=len(members), combine=combine, combine_coef=float(coef)
    )
    if startup.is_main():
        less = f" less {coef:g} times their variance" if combine == MEAN_MINUS_VARIANCE else ""
        what = "the lowest" if combine == MINIMUM else "the mean"
        print(f"reward model: an ensemble of {len(members)}; a score is {what} of theirs{less}", flush=True)
    return dataclasses.replace(first, folder=folder, model=Model(first.model.config, {}, reading))


def planned(model: Model, mesh: Mesh, base_dtype: str = "float32") -> Model:
    """A described reward model with its parameters, of all members, as shapes with shardings."""
    params = stored(planned_params(model.config, mesh, scalar=True), base_dtype)
    if model.reading.thresholds:
        everywhere = NamedSharding(mesh, PartitionSpec())
        shape = (model.reading.thresholds,)
        params["thresholds"] = jax.ShapeDtypeStruct(shape, np.float32, sharding=everywhere)
    if model.reading.members:
        params = planned_stack(params, model.reading.members)
    return dataclasses.replace(model, params=params)


def loaded(
    reward: RewardModel, model: ConfigDict, mesh: Mesh, *, adapter: str = "", base_dtype: str = "float32"
) -> RewardModel:
    """Loads the parameters of a described reward model onto the mesh, merges its adapter, and finds its mean score.

    Of an ensemble the parameters of its members are stacked, and the means are an array.
    """
    reading = reward.model.reading
    if reading.members:
        folders, *_ = read_ensemble(reward.folder)
        alone = Model(reward.model.config, {}, dataclasses.replace(reading, members=0))
        one = dataclasses.replace(reward, model=alone)
        found = [
            loaded(dataclasses.replace(one, folder=folder), model, mesh, base_dtype=base_dtype)
            for folder in folders
        ]
        params = stacked([member.model.params for member in found])
        means = np.array([member.mean for member in found], np.float32)
        return dataclasses.replace(reward, model=Model(reward.model.config, params, reading), mean=means)
    found, params = load_models.load_model(
        reward.folder,
        model,
        mesh,
        made_by("reward_model"),
        tokens=0,
        adapter=adapter,
        base_dtype=base_dtype,
    )
    # Merged in float32 and rounded once, at the end.
    params = stored(load_models.merged_params(found.config, params), base_dtype)
    if found.thresholds:
        params["thresholds"] = replicate(np.array(found.thresholds, np.float32), mesh)
    whole = Model(reward.model.config, params, reading)
    mean = found.reward_mean
    if mean is None:
        mean = _mean_of_checkpoint(reward, whole, mesh)
    return dataclasses.replace(reward, model=whole, mean=mean)


def mean_score(model: Model, found: Sequences, batch_size: int, mesh: Mesh) -> float:
    """The mean score of demonstrations: what an average human answer is worth.

    Only differences of scores are learnt, so their zero is arbitrary. Readers subtract this mean, as Stiennon et al.
    (2020) do with reference summaries, so that 0 means the same for every reward model.
    """
    total = 0.0
    for scores_B, weight_B in _batches_of_scores(model, found, batch_size, mesh):
        # The rows that fill up the last batch have weight 0.
        total += float(np.dot(scores_B, weight_B))
    mean = total / len(found)
    if startup.is_main():
        print(f"mean score of {len(found)} demonstrations: {mean:.4f} (subtracted by readers)", flush=True)
    return mean


def all_scores(model: Model, found: Sequences, batch_size: int, mesh: Mesh) -> np.ndarray:
    """The score of every sequence [n], on every process; no mean is subtracted."""
    parts = [scores_B for scores_B, _ in _batches_of_scores(model, found, batch_size, mesh)]
    return np.concatenate(parts)[: len(found)]


def _batches_of_scores(
    model: Model, found: Sequences, batch_size: int, mesh: Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(scores, weights) of all sequences, a batch at a time; the weights are 0 where the last one is filled up."""
    T = bucket(int(found.lengths.max()), 8)
    for index_B, weight_B in eval_batches(len(found), batch_size):
        batch = to_global(pad(found, index_B, T, 0, host_rows(batch_size, mesh)), mesh)
        yield gather(_score(model, batch["tokens"], batch["lengths"], 0.0)), weight_B


def export_rewards(
    session: Session,
    network: Network,
    models: Sequence[Callable[[], Params]],
    *,
    demonstrations: Sequences | None,
    pairs: Pairs | None,
    reading: Reading | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Writes WORKDIR/export, each model with its mean score of the demonstrations; of several also what makes them one.

    models: give the parameters of each, one at a time. reading: how several are combined, None of a single model.
    Returns the rewards of both sides of the pairs [n], as readers of the export will find them.
    """
    config, rewards = session.config, []
    exported = exported_tokenizer(
        session.tokenizer, session.tokenizer_from, session.ends, network.config.vocab_size
    )
    with exported as (tokenizer, folder):
        for number, params_of in enumerate(models):
            params = params_of()
            about = {"tokenizer": tokenizer, "tokenizer_from": folder}
            # Measured on the weights that are exported, which need not be the last ones.
            model = Model(network.config, _as_exported(params), Reading(network.score_as))
            mean = 0.0
            if demonstrations is not None:
                mean = mean_score(model, demonstrations, config.batch_size, session.mesh)
            member = "" if reading is None else folder_name(number)
            export_model(session, network, params, reward_mean=mean, member=member, **about)
            if pairs is not None:
                rewards.append([all_scores(model, x, config.batch_size, session.mesh) - mean for x in pairs])
    if reading is not None:
        write_ensemble(session.workdir, len(models), reading.combine, reading.combine_coef)
    if pairs is None:
        return None
    # Each [models, pairs].
    chosen, rejected = (jnp.asarray(np.stack(x)) for x in zip(*rewards, strict=True))
    if reading is None:
        return np.asarray(chosen[0]), np.asarray(rejected[0])
    return np.asarray(combined(chosen, reading)), np.asarray(combined(rejected, reading))


def _as_exported(params: Params) -> Params:
    if "thresholds" not in params:
        return params
    # Trained are a first threshold and the steps above it; a reader gets the thresholds themselves.
    return params | {"thresholds": increasing(params["thresholds"])}


def keep(demonstrations: Sequences, file: Any) -> None:
    """Writes the demonstrations of a reward model's run, so that the mean score of every checkpoint can be found."""
    np.savez(
        file,
        tokens=demonstrations.tokens,
        offsets=demonstrations.offsets,
        prompt_lengths=demonstrations.prompt_lengths,
    )


@contextmanager
def exported_tokenizer(
    tokenizer: Any, folder: str, ends: tuple[int, ...], vocab_size: int
) -> Iterator[tuple[Any, str]]:
    """A context with the tokenizer to export with a reward model, and the folder that it lies in.

    transformers scores the last token that is not `pad_token_id`. Where that may be a text's last token (PAD = EOS) it
    would score another one, so the export gets a PAD that never occurs. Without any it gets none, which
    transformers then asks for: rows one at a time are scored right, several at once are refused.
    """
    had = tokenizer.pad_token_id
    # A PAD of its own is never a text's last token, so transformers finds the right one.
    if had is not None and had not in ends:
        yield tokenizer, folder
        return
    changed = with_spare_pad(load_tokenizer(folder), ends, vocab_size)
    with tempfile.TemporaryDirectory() as made:
        target = Path(made) / "tokenizer"
        changed, said = (
            (load_tokenizer(folder), "no token is to spare: transformers will take one row at a time")
            if changed is None
            else (changed, f"PAD is {changed.pad_token!r} there, which no text holds")
        )
        if changed.pad_token_id in ends:
            changed.pad_token = None
        if startup.is_main():
            print(f"export: the tokenizer has no PAD token of its own; {said}", flush=True)
        # The export copies tokenizer and generation_config.json from this folder while the context is open.
        changed.save_pretrained(str(target))
        for settings in Path(folder).glob("generation_config.json"):
            shutil.copyfile(settings, target / settings.name)
        yield changed, str(target)


def _mean_of_checkpoint(reward: RewardModel, model: Model, mesh: Mesh) -> float:
    """The mean score of a run's checkpoint over the demonstrations that the run kept; 0 where it kept none."""
    # Exports have their mean in config.json and do not come here.
    there = load_models.described_in(reward.folder)
    if there is None:
        return 0.0
    if (there / DEMONSTRATIONS).is_file():
        with np.load(there / DEMONSTRATIONS) as kept:
            found = Sequences(kept["tokens"], kept["offsets"], kept["prompt_lengths"])
        # About eight rows at a time, rounded so that the mesh divides them.
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        return mean_score(model, found, ways * max(1, 8 // ways), mesh)
    page = there.parent / "config.json"
    if page.is_file() and json.loads(page.read_text()).get("center_on"):
        raise UserError(
            f"{reward.folder}: its run had center_on but did not keep the demonstrations, so the mean of its scores is "
            f"not known; give {there.parent / 'export'}"
        )
    return 0.0


def _without_embedding(tokenizer: Any, rows: int) -> str:
    """A token that text may hold, or that ends it, and that the model has no embedding for; else ""."""
    never = {*tokenizer.all_special_tokens, tokenizer.pad_token} - {tokenizer.bos_token, tokenizer.eos_token}
    beyond = (token for token, i in tokenizer.get_vocab().items() if i >= rows and token not in never)
    return next(beyond, "")
