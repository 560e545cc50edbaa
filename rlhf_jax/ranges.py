"""The allowed values of every field of every config page, one row per field, checked before anything else is done.

A new field needs a row in `RANGES`. A row's name is the end of a field's dotted name, with or without the job in front:
`temperature` is that of any job, `rollout.temperature` that of a rollout, `ppo.epochs` that of one job. The longest
name that fits decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.range_kinds import (
    ALL_OR_COUNT,
    AXIS,
    COUNT,
    DTYPE,
    FLAG,
    NEVER_OR_EVERY,
    PER_MINUTE,
    SHARE,
    TEMPERATURE,
    TEXT,
    Range,
    is_text,
    number,
    one_of,
    some_of,
    whole,
)


def _is_stages(value: Any) -> bool:
    found = isinstance(value, tuple | list) and all(isinstance(stage, tuple | list) for stage in value)
    return bool(found and value) and all(len(stage) > 1 and all(map(is_text, stage)) for stage in value)


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and (not value or bool(date.fromisoformat(value)))
    except ValueError:
        return False


_FORMATS = (
    "alpaca_farm",
    "alpaca_eval",
    "trl",
    "trl_conversational",
    "ultrafeedback",
    "rrhf",
    "sparse_ratings",
    "sparse_rankings",
)

_PAIRS = ("eval/loss", *(f"eval/rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")))
_ROLLOUTS = (
    *("rlhf_reward", "scores", "raw_scores", "kl", "entropy", "sampling/logp_difference"),
    *("completions/mean_length", "completions/ended", "completions/unscored"),
)
# What the evaluations of each trainer measure.
_EVALUATED = {
    "sft": ("eval/loss", "eval/entropy"),
    "reward_model": _PAIRS,
    "dpo": (*_PAIRS, "eval/logps/chosen", "eval/logps/rejected"),
    "ppo": tuple(f"eval/{name}" for name in _ROLLOUTS),
}
# Schedules that fall to nothing at the end of the run, so that its length is part of them.
FALLING = ("linear", "cosine")

RANGES: dict[str, Range] = {
    "job": TEXT,
    "seed": whole(0, 2**32 - 1),
    "distributed": one_of("auto", "on", "off"),
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    # Data.
    "data.train": TEXT,
    "data.eval": TEXT,
    "data.path": TEXT,
    "data.prompts": TEXT,
    "data.responses": TEXT,
    "data.kind": one_of("auto", "instruction", "pair", "prompt"),
    "data.template": one_of("alpaca", "brief", "human_assistant", "chat"),
    "data.rows": ALL_OR_COUNT,
    "data.train_rows": ALL_OR_COUNT,
    "data.eval_rows": COUNT,
    "data.max_length": COUNT,
    "data.max_prompt_length": COUNT,
    "data.packing": FLAG,
    "data.not_ended": one_of("keep", "drop"),
    "data.too_long": one_of("drop", "cut_response", "cut_prompt"),
    "ppo.data.too_long": one_of("drop", "cut_prompt"),
    "generate.data.too_long": one_of("drop", "cut_prompt"),
    "inspect_data.data.too_long": one_of("drop", "cut_response", "cut_prompt", or_none=True),
    "data.thoughts": one_of("keep", "drop", "last"),
    "data.generation_prompt": one_of("template", "training", "sampling"),
    "data.chat_template": TEXT,
    "data.date": Range(_is_date, "a date such as 2026-11-29, or nothing for that of the run's first start"),
    "tokenizer": TEXT,
    "examples": whole(0),
    "bins": COUNT,
    # Models.
    "model.init": TEXT,
    "model.path": TEXT,
    "model.policy": TEXT,
    "model.reward": TEXT,
    "model.reward_adapter": TEXT,
    "model.reward_template": one_of("", "alpaca", "brief", "human_assistant", "chat"),
    "model.score_at": one_of("", "eos", "last", "template"),
    "model.value_from": one_of("auto", "reward", "policy"),
    "model.adapter": TEXT,
    "model.name": TEXT,
    "model.tokenizer": TEXT,
    "model.pad_token": TEXT,
    "model.vocab_size": whole(259, says="a whole number of at least 259: 256 bytes and three special tokens"),
    "make_data.vocab_size": whole(
        259, says="a whole number of at least 259: 256 bytes and three special tokens"
    ),
    "make_data.rows": whole(0),
    "make_data.scale": number(0, 2, above=True),
    # Studies.
    "stages": Range(_is_stages, "one or more (NAME, GROUP, 'FIELD=VALUE', ...), all of them text"),
    "report": TEXT,
    "model.width": COUNT,
    "model.layers": COUNT,
    "model.heads": COUNT,
    "model.kv_heads": COUNT,
    "model.ff": COUNT,
    "model.tie_embeddings": FLAG,
    "model.dtype": DTYPE,
    "model.remat": one_of("none", "dots", "full"),
    "model.attention": one_of("auto", "xla", "cudnn", "splash"),
    "lora.rank": whole(0, says="a small whole number such as 16, or 0 to train all parameters"),
    "lora.alpha": number(0, above=True, says="a positive number, such as twice the rank"),
    "lora.targets": some_of("q", "k", "v", "o", "gate", "up", "down", all_named="all"),
    "lora.base_dtype": one_of("float32", "bfloat16", "float16"),
    "logprob_chunk": COUNT,
    # Training.
    "batch_size": COUNT,
    "microbatches": COUNT,
    "minibatch_size": COUNT,
    "steps": COUNT,
    "epochs": number(0, above=True),
    "ppo.epochs": COUNT,
    "optimizer.name": one_of("adamw", "adamw_tf", "adafactor", "rmsprop", "lion", "sgd"),
    "optimizer.schedule": one_of("constant", "linear", "cosine", "inverse_sqrt"),
    "optimizer.learning_rate": number(0, 10),
    "value_learning_rate": number(0, 10),
    "optimizer.warmup_steps": whole(0),
    "optimizer.weight_decay": number(0, 100),
    "optimizer.b1": number(0, 1, below=True),
    "optimizer.b2": number(0, 1, below=True),
    "optimizer.eps": number(0, 1, above=True),
    "optimizer.max_grad_norm": number(0, says="a positive number, or 0 for no clipping"),
    "optimizer.ema": number(0, 1, below=True, says="a decay below 1, such as 0.999, or 0 for no average"),
    "log_every": COUNT,
    "eval_every": NEVER_OR_EVERY,
    "save_every": NEVER_OR_EVERY,
    "keep_checkpoints": COUNT,
    "keep_best": COUNT,
    **{f"{job}.best_metric": one_of(*names, or_none=True) for job, names in _EVALUATED.items()},
    "best_metric": Range(
        lambda value: is_text(value) and value[:5] in ("", "eval/"), "a name as eval/loss, or nothing"
    ),
    "best_mode": one_of("min", "max"),
    "tensorboard": FLAG,
    "wandb_project": TEXT,
    "center_on": TEXT,
    "center_rows": COUNT,
    # DPO.
    "beta": number(0, above=True),
    "label_smoothing": number(0, 0.5, below=True),  # Half of the labels flipped would say nothing.
    "reference": one_of("cached", "step"),
    "reference_cache": TEXT,
    # PPO.
    "kl_coef": number(0),
    "kl_estimator": one_of("k1", "k2", "k3"),
    "adaptive_kl": FLAG,
    "target_kl": number(0, above=True),
    "kl_horizon": number(1, says="a number of responses of at least 1, such as ten times rollout.batch_size"),
    "missing_eos_penalty": number(
        most=0,
        says="0 or a negative number: it takes the place of a score. TRL subtracts it, so for TRL's 1 write -1",
    ),
    "gamma": SHARE,
    "lam": SHARE,
    "clip": number(0, above=True),
    "value_clip": number(0, above=True),
    "value_coef": number(0),
    "whiten_rewards": FLAG,
    # Sampling.
    "temperature": TEMPERATURE,
    "rollout.temperature": number(0.01, 100),  # PPO samples, and takes log-probs at this temperature.
    "rollout.dtype": DTYPE,
    "top_p": number(0, 1, above=True),
    "top_k": whole(0, says="a whole number of at least 1: how many tokens, or 0 for all"),
    "samples": COUNT,
    "max_new_tokens": COUNT,
    # Judges.
    "annotate.samples": TEXT,
    "pairs": TEXT,
    "outputs": TEXT,
    "outputs_1": TEXT,
    "outputs_2": TEXT,
    "ordered": FLAG,
    "one_pair_per_prompt": FLAG,
    "ratings": TEXT,
    "rankings": TEXT,
    "instructions": TEXT,
    "feedback": TEXT,
    "feedback_format": one_of(*_FORMATS, or_none=True),
    "formats": some_of(*_FORMATS),
    "n_samples": COUNT,
    "max_prompt_words": COUNT,
    "max_prompt_chars": COUNT,
    "judges": TEXT,
    "reparse": FLAG,
    "p_label_flip": SHARE,
    "max_concurrency": COUNT,
    "cache": TEXT,
    "transport": one_of("online", "batch", "replay", "cancel"),
    "max_usd": number(0, says="dollars, or 0 for no limit"),
    "dry_run": FLAG,
    "requests_per_minute": PER_MINUTE,
    "tokens_per_minute": PER_MINUTE,
    "timeout_s": number(0, above=True),
    "import_answers": TEXT,
    "export_answers": TEXT,
    # Evaluation.
    "baseline": TEXT,
    "baseline_name": TEXT,
    "judged": TEXT,
    "length_control": FLAG,
    "utility": FLAG,
    "max_instructions": ALL_OR_COUNT,
    "min_coverage": SHARE,
    "difficulty": TEXT,
    "regulariser": TEXT,
    "published": TEXT,
    "reference_method": TEXT,
    "labels": TEXT,
    "scored": TEXT,
    "clear_margin": number(0),
    "runs": TEXT,
    "title": TEXT,
    "games": TEXT,
    "anchor": TEXT,
    "n_bootstrap": whole(0),
    "annotators": TEXT,
    "gold": TEXT,
    "min_per_generator": whole(0),
    # Weight differences.
    "base": TEXT,
    "target": TEXT,
    "diff": TEXT,
    "new_rows": one_of("mean", "zero"),
    "weight_diff.dtype": one_of("float32", "float16", "bfloat16"),
}


def own_rows(job: str, **rows: Range) -> None:
    """Adds rows for settings that one method alone has. Its file calls this, once, where it is imported."""
    RANGES.update({f"{job}.{name}": row for name, row in rows.items()})


def range_of(job: str, field: str) -> Range | None:
    """Finds the range of a field of a job's page; None when there is no row for it."""
    parts = [job, *field.split(".")]
    names = (".".join(parts[i:]) for i in range(len(parts)))
    return next((RANGES[name] for name in names if name in RANGES), None)


def check_ranges(page: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for the first field that cannot be right, as it is written on the page.

    page: nested, as `ConfigDict.to_dict` gives it. A group with a job of its own (of a study's stage) is a page.
    """
    stages = {}
    for field, value in _fields(page):
        if isinstance(value, Mapping):
            stages[field] = value  # After the page's own fields: what they share is named as the page's.
            continue
        row = range_of(str(page.get("job", "")), field)
        if row is None:
            raise UserError(f"{prefix}{field}: no job has such a field{_closest(field, RANGES)}")
        if not row.fits(value):
            raise UserError(f"{prefix}{field}: {value!r}; use {row.says}{_closest(value, row.words)}")
    if "optimizer" in page and "steps" in page:
        check_warmup(page["optimizer"], page["steps"], prefix)
    for name, stage in stages.items():
        check_ranges(stage, f"{prefix}{name}.")


def value_at(page: Mapping[str, Any], name: str) -> Any:
    """The value of a field by its dotted name."""
    for part in name.split("."):
        page = page[part]
    return page


def check_warmup(optimizer: Mapping[str, Any], steps: int, prefix: str = "") -> None:
    """Raises UserError when the rate would fall to 0 at the end of a run that never comes to its peak."""
    warmup = optimizer["warmup_steps"]
    if warmup > steps and optimizer["schedule"] in FALLING:
        raise UserError(
            f"{prefix}optimizer.warmup_steps: {warmup}; the run has {steps} steps, so the learning rate would never "
            f"come to its peak; use at most {steps}"
        )


def _fields(page: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field; a page within the page is one value."""
    for name, value in page.items():
        if isinstance(value, Mapping) and "job" not in value:
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _closest(value: Any, known: Any) -> str:
    found = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
