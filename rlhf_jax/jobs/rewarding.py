"""A reward model as one thing: settings, parameters, tokenizer, template, where its score is read, and its mean."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, eval_batches, pad
from rlhf_jax.data.handling import Handling
from rlhf_jax.data.scored_text import closing, default_score_at
from rlhf_jax.data.tokenization import Sequences
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, hints, loading
from rlhf_jax.models.lora import stored
from rlhf_jax.models.model import Model
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import gather, host_rows, to_global
from rlhf_jax.rollout.rewards import RewardModel, model_scores

DEMONSTRATIONS = "demonstrations.npz"  # in WORKDIR/model


def described(
    folder: str,
    model: ConfigDict,
    *,
    field: str,
    template: str,
    adapter: str = "",
    how: Handling | None = None,
) -> RewardModel:
    """A reward model without its parameters; raises the errors that loading it would.

    folder: what the page's `field` names, any family's folder, or another run's workdir or checkpoint.
    template: of the text that it is given. how: how conversations are written.
    """
    path = loading.resolve(folder, "model.reward_adapter" if field == "model.reward" else "model.adapter")
    tokenizer = load_tokenizer(loading.tokenizer_folder(path), made_by=hints.REWARD_MODEL)
    found = loading.describe_model(path, model, hints.REWARD_MODEL, tokens=0, adapter=adapter)
    if not found.is_scalar:
        raise UserError(f"{field}: {folder} is a language model; give what reward_model exported")
    missing = _without_embedding(tokenizer, found.config.vocab_size)
    if missing:
        raise UserError(
            f"{field}: {folder} has embeddings of {found.config.vocab_size} tokens, but its tokenizer has others too, "
            f"such as {missing!r}; put the tokenizer there that it was trained with"
        )
    score_at = model.score_at or found.score_at or default_score_at(template)
    how = how or Handling()
    behind = closing(tokenizer, template, score_at, how)
    return RewardModel(Model(found.config, {}), tokenizer, path, template, score_at, behind, how)


def loaded(
    reward: RewardModel, model: ConfigDict, mesh: Mesh, *, adapter: str = "", base_dtype: str = "float32"
) -> RewardModel:
    """The same with its parameters on the mesh, an adapter merged, and with the mean of its scores."""
    found, params = loading.load_model(
        reward.folder,
        model,
        mesh,
        hints.REWARD_MODEL,
        tokens=0,
        adapter=adapter,
        base_dtype=base_dtype,
    )
    params = stored(adapters.plain(found.config, params), base_dtype)
    whole = Model(reward.model.config, params)
    mean = found.reward_mean
    if mean is None:
        mean = _mean_of_checkpoint(reward, whole, mesh)
    return dataclasses.replace(reward, model=whole, mean=mean)


def mean_score(model: Model, found: Sequences, batch_size: int, mesh: Mesh) -> float:
    """The mean score of demonstrations: what an average human answer is worth (rule M8)."""
    T = bucket(int(found.lengths.max()), 8)
    score = jax.jit(model_scores)
    total = 0.0
    for index_B, weight_B in eval_batches(len(found), batch_size):
        batch = to_global(pad(found, index_B, T, 0, host_rows(batch_size, mesh)), mesh)
        total += float(np.dot(gather(score(model, batch["tokens"], batch["lengths"], 0.0)), weight_B))
    mean = total / len(found)
    if startup.is_main():
        print(f"mean score of {len(found)} demonstrations: {mean:.4f} (subtracted by readers)", flush=True)
    return mean


def keep(demonstrations: Sequences, file: Any) -> None:
    """Writes the demonstrations of a run's reward model, so that every checkpoint's mean can be found."""
    np.savez(
        file,
        tokens=demonstrations.tokens,
        offsets=demonstrations.offsets,
        prompt_lengths=demonstrations.prompt_lengths,
    )


def _mean_of_checkpoint(reward: RewardModel, model: Model, mesh: Mesh) -> float:
    """Of a run's checkpoint the mean over the run's demonstrations; 0 where it has none."""
    there = loading.described_in(reward.folder)
    if there is None:
        return 0.0
    if (there / DEMONSTRATIONS).is_file():
        with np.load(there / DEMONSTRATIONS) as kept:
            found = Sequences(kept["tokens"], kept["offsets"], kept["prompt_lengths"])
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
