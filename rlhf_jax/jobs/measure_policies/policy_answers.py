"""What several language models say of the same prompts and pairs, read one model after the other.

A policy samples, and reads its own responses and the pairs. A reference reads the responses of all policies and the
pairs. Reward models and models with another tokenizer read text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, Prompts, Sequences, flattened
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.joining import end_to_end
from rlhf_jax.data.records.records import read_pairs, read_prompts
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import decode, encode_labelled_pairs, encode_prompts
from rlhf_jax.data.tokens.special_ids import fill_id, without_end
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.generate import drawn_tokens, open_generator
from rlhf_jax.jobs.score import ResponseScorer, logprob_sums, scored_responses
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import startup
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.training.run import encoded_rows, load_models
from rlhf_jax.training.run.missing_inputs import made_by


class Described(NamedTuple):
    """A language model before its weights are read: its folder, its tokenizer, and its settings."""

    path: str
    tokenizer: Any
    config: ModelConfig


class Asked(NamedTuple):
    """The prompts and the pairs as one model reads them."""

    prompts: Prompts
    pairs: Pairs | None


class Answers(NamedTuple):
    """The responses of one policy, as tokens and as texts, and whether each ended by itself."""

    tokens: list[np.ndarray]
    texts: list[str]
    ended: list[bool]


def described_policy(config: ConfigDict, folder: str, field: str) -> Described:
    path = load_models.resolve_folder(folder)
    tokenizer = load_tokenizer(load_models.tokenizer_folder(path), made_by=made_by("sft"))
    found = load_models.describe_model(path, config.model, made_by("sft"), tokens=len(tokenizer))
    if found.is_scalar:
        raise UserError(f"{field}: {folder} is a reward model; give a language model")
    return Described(path, tokenizer, found.config)


def asked_of_all(config: ConfigDict, models: list[Described]) -> tuple[list[dict], list[Asked]]:
    """(The prompts' records, prompts and pairs as each model reads them): the same ones for all."""
    data, chat = config.data, config.data.template == CHAT
    rows, skipped = read_prompts(data.prompts, made_by=made_by("make_data", "data"), chat=chat)
    encoded_rows.say(f"data.prompts: {len(rows)} rows read from {data.prompts}", skipped)
    how, rows = handling_of(data), rows[: data.rows or None]
    rows = _kept_by_all("data.prompts", rows, models, encode_prompts, data.max_prompt_length, data)
    pairs: list[dict] = []
    if data.pairs:
        pairs, skipped = read_pairs(data.pairs, made_by=made_by("annotate", "labels"), chat=chat)
        encoded_rows.say(f"data.pairs: {len(pairs)} rows read from {data.pairs}", skipped)
        pairs = pairs[: data.pair_rows or None]
        pairs = _kept_by_all("data.pairs", pairs, models, encode_labelled_pairs, data.max_length, data)

    def read_by(model: Described) -> Asked:
        prompts = encode_prompts(rows, model.tokenizer, data.template, data.max_prompt_length, how)[0]
        if not pairs:
            return Asked(prompts, None)
        return Asked(
            prompts, encode_labelled_pairs(pairs, model.tokenizer, data.template, data.max_length, how)[0]
        )

    return rows, [read_by(model) for model in models]


def _kept_by_all(
    name: str, rows: list[dict], models: list[Described], encode: Any, limit: int, data: ConfigDict
) -> list[dict]:
    """The rows that every model can read. What is left out is counted once, whichever of them cannot."""
    kept, dropped = set(range(len(rows))), Counter()
    for model in models:
        _, counts, found = encode(rows, model.tokenizer, data.template, limit, handling_of(data))
        kept &= set(found.tolist())
        dropped |= counts
    encoded_rows.say(f"{name}: {len(kept)} are used", dropped)
    if not kept:
        raise UserError(f"{name}: no row can be read by all models; see what was left out above")
    return [rows[i] for i in sorted(kept)]


def acted(config: ConfigDict, mesh: Mesh, model: Described, asked: Asked) -> tuple[Answers, np.ndarray]:
    """Samples with a policy, and reads with it: (its answers, log-probs and tokens of answers and pairs [n, 2])."""
    tokenizer = model.tokenizer
    checkpoint, params = load_models.load_model(
        model.path, config.model, mesh, made_by("sft"), tokens=len(tokenizer)
    )
    sampling = Sampling(config.temperature)
    generator = open_generator(config, model.path, mesh, checkpoint.config, tokenizer, sampling)
    generator.load(params)
    drawn = list(drawn_tokens(config, generator, model.path, mesh, asked.prompts, fill_id(tokenizer)))
    generator.close()
    tokens, ended = [x for x, _ in drawn], [x for _, x in drawn]
    texts = [decode(tokenizer, without_end(x, done)) for x, done in drawn]
    read = end_to_end([_joined(asked.prompts, tokens), *(asked.pairs or ())])
    return Answers(tokens, texts, ended), logprob_sums(config, mesh, checkpoint.config, params, read)


def read_by_reference(
    config: ConfigDict,
    mesh: Mesh,
    reference: Described,
    asked: Asked,
    models: Mapping[str, Described],
    answers: Mapping[str, Answers],
) -> dict[str, np.ndarray]:
    """The same of the reference, for the answers of each policy. NaN where a policy's tokens mean others to it."""
    able = [name for name in answers if _means_the_same(models[name], reference, answers[name])]
    checkpoint, params = load_models.load_model(
        reference.path, config.model, mesh, made_by("sft"), tokens=len(reference.tokenizer)
    )
    n = len(asked.prompts)
    parts = [_joined(asked.prompts, answers[name].tokens) for name in able]
    found = np.zeros((0, 2), np.float32)
    if parts or asked.pairs:
        read = end_to_end([*parts, *(asked.pairs or ())])
        found = logprob_sums(config, mesh, checkpoint.config, params, read)
    pairs = found[len(able) * n :]
    mine = {name: found[i * n : (i + 1) * n] for i, name in enumerate(able)}
    for name in [name for name in answers if name not in mine]:
        mine[name] = np.full((n, 2), np.nan, np.float32)
        if startup.is_main():
            print(f"kl: {name} has tokens that the reference does not know, so there is none", flush=True)
    return {name: np.concatenate([one, pairs]) for name, one in mine.items()}


def _means_the_same(policy: Described, reference: Described, answers: Answers) -> bool:
    """Whether all tokens that a policy sampled are the same tokens to the reference."""
    # Of these tokens only: a policy may know markers in front of its prompts that its reference never saw.
    used = sorted({int(x) for tokens in answers.tokens for x in tokens})
    if used and used[-1] >= min(reference.config.vocab_size, len(reference.tokenizer)):
        return False
    mine, theirs = (model.tokenizer.convert_ids_to_tokens(used) for model in (policy, reference))
    return mine == theirs


def _joined(prompts: Prompts, responses: list[np.ndarray]) -> Sequences:
    whole = [np.concatenate([prompts[i], tokens]) for i, tokens in enumerate(responses)]
    return Sequences(*flattened(whole), prompts.lengths)


def text_scores(
    config: ConfigDict, field: str, scorer: ResponseScorer, rows: list[dict], answers: Mapping[str, Answers]
) -> dict[str, list[Any]]:
    """What a scorer says of each policy's answers, None where it cannot read one; it reads their text."""
    flat = [
        row | {"output": text, "ended": done}
        for one in answers.values()
        for row, text, done in zip(rows, one.texts, one.ended, strict=True)
    ]
    scores, _ = scored_responses(scorer, flat, config.data, field)
    return {name: scores[i * len(rows) : (i + 1) * len(rows)] for i, name in enumerate(answers)}
