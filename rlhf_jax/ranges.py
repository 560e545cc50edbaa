"""The allowed values of every field of every config page, one row per field, checked before anything else is done.

A new field needs a row in `RANGES`. A row's name is the end of a field's dotted name, with or without the job in front:
`temperature` is that of any job, `rollout.temperature` that of a rollout, `ppo.epochs` that of one job. The longest
name that fits decides.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError

# The kinds of ranges that a field of a config page can have.

_LARGEST = 2**31 - 1  # Counts are 32-bit integers on the devices.


class Range(NamedTuple):
    """fits(value): whether a value is allowed. says: what is, to be read after "use". words: the words it may be."""

    fits: Callable[[Any], bool]
    says: str
    words: tuple[str, ...] = ()


def whole(least: int, most: int = _LARGEST, says: str = "") -> Range:
    """The range of whole numbers from `least` to `most`."""
    limits = f"of at least {least}" if most == _LARGEST else f"from {least} to {most}"

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Range(fits, says or f"a whole number {limits}")


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    says: str = "",
) -> Range:
    """A range of finite numbers; above, below: whether `least` or `most` itself is left out."""
    limits = [f"{'above' if above else 'of at least'} {least:g}"] if least > -math.inf else []
    limits += [f"{'below' if below else 'at most'} {most:g}"] if most < math.inf else []

    def fits(value: Any) -> bool:
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not abs(value) <= sys.float_info.max
        ):
            return False
        return (least < value if above else least <= value) and (value < most if below else value <= most)

    return Range(fits, says or f"a {'' if most < math.inf else 'finite '}number {' and '.join(limits)}")


def one_of(*names: str, or_none: bool = False) -> Range:
    """A choice of one of these words; or_none: or of none, as an empty text."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) and (value in names or (or_none and not value))

    return Range(fits, f"one of {', '.join(names)}{', or nothing' if or_none else ''}", names)


def some_of(*names: str, all_named: str = "") -> Range:
    """A choice of several words: a tuple, or text with commas between them; all_named: the word for all of them."""

    def fits(value: Any) -> bool:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        return isinstance(words, tuple | list) and (set(words) <= set(names) or words == [all_named])

    return Range(fits, f"{all_named + ', or ' if all_named else ''}some of {','.join(names)}", names)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


TEXT = Range(is_text, "text in UTF-8")  # A name, a title, or a path.
FLAG = Range(lambda value: isinstance(value, bool), "true or false")
SHARE = number(0, 1)
COUNT = whole(1)
ALL_OR_COUNT = whole(0, says="a whole number of at least 1: how many, or 0 for all")
NEVER_OR_EVERY = whole(0, says="a whole number of at least 1: every how many steps, or 0 for never")
PER_MINUTE = number(0, says="how many in a minute, or 0 for no limit of your own")
DTYPE = one_of("float32", "bfloat16")
AXIS = Range(
    lambda value: whole(1).fits(value) or (whole(-1, -1).fits(value)),
    "a whole number of at least 1, or -1 for the devices that are left",
)
FSDP = Range(lambda value: value == "auto" or AXIS.fits(value), f"auto, {AXIS.says}", ("auto",))
# From 1e-6 on, because logits are divided by it.
TEMPERATURE = Range(
    lambda value: number(1e-6, 100).fits(value) or (number(0, 0).fits(value)),
    "0 for greedy, or a number of at least 1e-06 and at most 100",
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
    *("rlhf_reward", "scores", "scores_std", "raw_scores", "kl", "entropy", "sampling/logp_difference"),
    *("completions/mean_length", "completions/ended", "completions/unscored", "win_rate"),
)
# What the evaluations of each trainer measure.
_EVALUATED = {
    "sft": ("eval/loss", "eval/entropy", "eval/win_rate"),
    "reward_model": _PAIRS,
    "dpo": (*_PAIRS, "eval/logps/chosen", "eval/logps/rejected", "eval/win_rate"),
    "ppo": tuple(f"eval/{name}" for name in _ROLLOUTS),
}
# Schedules that fall to nothing at the end of the run, so that its length is part of them.
FALLING = ("linear", "cosine")


def _all(kind: Range, *fields: str) -> dict[str, Range]:
    """A row for each of some fields that may be the same things, such as any text: a path, a name, a title."""
    return dict.fromkeys(fields, kind)


RANGES: dict[str, Range] = {
    "job": TEXT,
    "seed": whole(0, 2**32 - 1),
    "distributed": one_of("auto", "on", "off"),
    **_all(AXIS, "mesh.data", "mesh.tensor"),
    "mesh.fsdp": FSDP,
    # Data.
    **_all(TEXT, "data.train", "data.eval", "data.path", "data.responses"),
    **_all(TEXT, "data.chat_template", "prompts", "tokenizer"),
    "data.kind": one_of("auto", "instruction", "pair", "prompt"),
    "data.template": one_of("alpaca", "brief", "human_assistant", "chat"),
    **_all(ALL_OR_COUNT, "data.rows", "data.train_rows", "max_instructions"),
    "data.eval_rows": COUNT,
    "data.max_length": COUNT,
    "max_prompt_length": COUNT,
    "data.packing": one_of("auto", "on", "off"),
    "data.not_ended": one_of("keep", "drop"),
    "data.too_long": one_of("drop", "cut_response", "cut_prompt"),
    "ppo.data.too_long": one_of("drop", "cut_prompt"),
    "generate.data.too_long": one_of("drop", "cut_prompt"),
    "inspect_data.data.too_long": one_of("drop", "cut_response", "cut_prompt", or_none=True),
    "data.thoughts": one_of("keep", "drop", "last"),
    "data.generation_prompt": one_of("template", "training", "sampling"),
    "data.date": Range(_is_date, "a date such as 2026-11-29, or nothing for that of the run's first start"),
    "examples": whole(0),
    "bins": COUNT,
    # Models.
    **_all(
        COUNT, "model.width", "model.layers", "model.heads", "model.kv_heads", "model.ff", "logprob_chunk"
    ),
    **_all(
        TEXT,
        "model.init",
        "model.path",
        "model.policy",
        "model.reward",
        "model.reward_adapter",
        "model.adapter",
        "model.name",
        "model.tokenizer",
        "model.pad_token",
    ),
    "model.reward_template": one_of("", "alpaca", "brief", "human_assistant", "chat"),
    "model.score_by": one_of("reward", "logprob"),
    "model.score_at": one_of("", "eos", "last", "template"),
    "model.value_from": one_of("auto", "reward", "policy"),
    "vocab_size": whole(259, says="a whole number of at least 259: 256 bytes and three special tokens"),
    "make_data.rows": whole(0),
    "make_data.scale": number(0, 2, above=True),
    "stages": Range(_is_stages, "one or more (NAME, GROUP, 'FIELD=VALUE', ...), all of them text"),
    "report": TEXT,
    "model.tie_embeddings": FLAG,
    "model.dtype": DTYPE,
    "model.remat": one_of("none", "dots", "full"),
    "model.attention": one_of("auto", "xla", "cudnn", "splash"),
    "lora.rank": whole(0, says="a small whole number such as 16, or 0 to train all parameters"),
    "lora.alpha": number(0, above=True, says="a positive number, such as twice the rank"),
    "lora.targets": some_of("q", "k", "v", "o", "gate", "up", "down", all_named="all"),
    "lora.base_dtype": one_of("float32", "bfloat16", "float16"),
    # Training.
    **_all(NEVER_OR_EVERY, "eval_every", "save_every"),
    **_all(
        COUNT,
        "batch_size",
        "microbatches",
        "rollout.microbatches",
        "minibatch_size",
        "steps",
        "log_every",
        "keep_checkpoints",
        "keep_best",
        "ppo.epochs",
        "center_rows",
    ),
    "epochs": number(0, above=True),
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
    **{f"{job}.best_metric": one_of(*names, or_none=True) for job, names in _EVALUATED.items()},
    "best_metric": Range(
        lambda value: is_text(value) and value[:5] in ("", "eval/"), "a name as eval/loss, or nothing"
    ),
    "best_mode": one_of("min", "max"),
    "tensorboard": FLAG,
    "wandb_project": TEXT,
    **_all(TEXT, "center_on", "reward.sources"),
    # DPO.
    "beta": number(0, above=True),
    "label_smoothing": number(0, 0.5, below=True),  # Half of the labels flipped would say nothing.
    "reference": one_of("cached", "step"),
    **_all(TEXT, "reference_cache", "token_cache"),
    # PPO.
    **_all(FLAG, "adaptive_kl", "whiten_rewards"),
    **_all(number(0, above=True), "clip", "value_clip", "target_kl"),
    **_all(SHARE, "gamma", "lam"),
    "kl_coef": number(0),
    "kl_estimator": one_of("k1", "k2", "k3"),
    "kl_horizon": number(1, says="a number of responses of at least 1, such as ten times rollout.batch_size"),
    "missing_eos_penalty": number(
        most=0,
        says="0 or a negative number: it takes the place of a score. TRL subtracts it, so for TRL's 1 write -1",
    ),
    "value_coef": number(0),
    # Sampling.
    "temperature": TEMPERATURE,
    "rollout.temperature": number(0.01, 100),  # PPO samples, and takes log-probs at this temperature.
    "rollout.dtype": DTYPE,
    "rollout.samples": COUNT,
    "rollout.correction": one_of("none", "token", "sequence"),
    "rollout.correction_cap": number(1),
    "rollout.staleness": whole(0, 64, "a whole number of steps, 0 for none; each keeps a policy in memory"),
    "rollout.tensor": whole(0, says="a whole number that divides the devices, or 0 for mesh.tensor"),
    "rollout.offload": one_of("none", "models", "optimizer", "all"),
    "top_p": number(0, 1, above=True),
    "top_k": whole(0, says="a whole number of at least 1: how many tokens, or 0 for all"),
    "samples": COUNT,
    "beams": whole(0, says="a whole number of at least 1: how many beams, or 0 to sample"),
    "beam_groups": COUNT,
    "diversity_penalty": number(0),
    "max_new_tokens": COUNT,
    # Judges.
    **_all(PER_MINUTE, "requests_per_minute", "tokens_per_minute"),
    **_all(COUNT, "n_samples", "max_prompt_words", "max_prompt_chars", "max_concurrency"),
    **_all(FLAG, "ordered", "one_pair_per_prompt", "reparse", "dry_run"),
    **_all(
        TEXT,
        "annotate.samples",
        "pairs",
        "outputs",
        "outputs_1",
        "outputs_2",
        "ratings",
        "rankings",
        "instructions",
        "feedback",
        "judges",
        "cache",
        "import_answers",
        "export_answers",
    ),
    "feedback_format": one_of(*_FORMATS, or_none=True),
    "formats": some_of(*_FORMATS),
    "transport": one_of("online", "batch", "replay", "cancel"),
    "max_usd": number(0, says="dollars, or 0 for no limit"),
    "timeout_s": number(0, above=True),
    # Evaluation.
    **_all(whole(0), "n_bootstrap", "min_per_generator"),
    **_all(SHARE, "min_coverage", "p_label_flip"),
    **_all(FLAG, "length_control", "utility"),
    **_all(
        TEXT,
        "baseline",
        "baseline_name",
        "judged",
        "difficulty",
        "regulariser",
        "published",
        "reference_method",
        "labels",
        "scored",
        "runs",
        "title",
        "games",
        "anchor",
        "annotators",
        "gold",
    ),
    "clear_margin": number(0),
    # Weight differences.
    **_all(TEXT, "base", "target", "diff"),
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
