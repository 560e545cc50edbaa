"""Loads a reward model with all that its score depends on: tokenizer, template, scored token, mean score."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Sequences, bucket, eval_batches, pad
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.scored_text import closing, default_score_at
from rlhf_jax.data.tokens.special_ids import with_spare_pad
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model, RewardModel, model_scores
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather, host_rows, to_global
from rlhf_jax.training.run import load_models
from rlhf_jax.training.run.missing_inputs import made_by

# In WORKDIR/model of a run that trained a reward model.
DEMONSTRATIONS = "demonstrations.npz"


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
    return RewardModel(Model(found.config, {}), tokenizer, path, template, score_at, behind, how)


def loaded(
    reward: RewardModel, model: ConfigDict, mesh: Mesh, *, adapter: str = "", base_dtype: str = "float32"
) -> RewardModel:
    """Loads the parameters of a described reward model onto the mesh, merges its adapter, and finds its mean score."""
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
    whole = Model(reward.model.config, params)
    mean = found.reward_mean
    if mean is None:
        mean = _mean_of_checkpoint(reward, whole, mesh)
    return dataclasses.replace(reward, model=whole, mean=mean)


def mean_score(model: Model, found: Sequences, batch_size: int, mesh: Mesh) -> float:
    """The mean score of demonstrations: what an average human answer is worth.

    Only differences of scores are learnt, so their zero is arbitrary. Readers subtract this mean, as Stiennon et al.
    (2020) do with reference summaries, so that 0 means the same for every reward model.
    """
    T = bucket(int(found.lengths.max()), 8)
    score = jax.jit(model_scores)
    total = 0.0
    for index_B, weight_B in eval_batches(len(found), batch_size):
        batch = to_global(pad(found, index_B, T, 0, host_rows(batch_size, mesh)), mesh)
        # The rows that fill up the last batch have weight 0.
        total += float(np.dot(gather(score(model, batch["tokens"], batch["lengths"], 0.0)), weight_B))
    mean = total / len(found)
    if startup.is_main():
        print(f"mean score of {len(found)} demonstrations: {mean:.4f} (subtracted by readers)", flush=True)
    return mean


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
