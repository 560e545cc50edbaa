"""Notices for settings that were given but have no effect because of another setting, one row per rule in `ROWS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rlhf_jax.settings.page_fields import inner_pages, leaves
from rlhf_jax.settings.source_texts import asks_judges, names_model_reward, reads_models

# What describes a model that is made from scratch.
_SHAPE = ["tokenizer", "vocab_size", "width", "layers", "heads", "kv_heads", "ff", "tie_embeddings"]


class Idle(NamedTuple):
    """Fields of some jobs that are not read under a condition; `why` completes "FIELD has no effect: ...".

    jobs: () is every job that has the field, so that a new method is covered without being named.
    """

    jobs: tuple[str, ...]
    fields: tuple[str, ...]
    when: Callable[[Any], bool]
    why: str


# How a judge is asked while a run trains.
_LIMITS = ("max_usd", "max_concurrency", "cache", "requests_per_minute", "tokens_per_minute", "timeout_s")
# What evaluations sample, of a method that trains on fixed rows.
_SAMPLED = ("prompts", "max_prompt_length", "max_new_tokens", "temperature")

ROWS = (
    Idle(
        (),
        ("data.thoughts", "data.generation_prompt", "data.chat_template"),
        lambda c: c.data.template != "chat",
        "data.template is not chat",
    ),
    Idle(
        (),
        ("data.date",),
        # PPO's reward model may read a chat template of its own.
        lambda c: "chat" not in (c.data.template, c.model.get("reward_template") if "model" in c else ""),
        "data.template is not chat",
    ),
    Idle(
        (),
        ("model.reward", "model.reward_adapter"),
        lambda c: "reward" in c and not names_model_reward(c),
        "reward.sources names no reward_model by itself",
    ),
    Idle(
        (),
        ("model.reward_template", "model.score_at"),
        lambda c: "reward" in c and not reads_models(c),
        "reward.sources names no reward model",
    ),
    Idle(
        (),
        ("reward.baseline", *(f"reward.{name}" for name in _LIMITS)),
        lambda c: not asks_judges(c),
        "reward.sources names no judge",
    ),
    Idle(
        (),
        tuple(f"win_rate.{name}" for name in ("baseline", "max_instructions", *_LIMITS, *_SAMPLED)),
        lambda c: not c.win_rate.judges,
        "win_rate.judges is not set",
    ),
    Idle(
        (),
        ("rollout.correction_cap",),
        lambda c: c.rollout.correction == "none",
        "rollout.correction is none",
    ),
    Idle(
        ("rrhf",),
        ("data.not_ended",),
        lambda c: "provided" in c.data and not c.data.provided,
        "data.provided is not set",
    ),
    Idle((), ("target_kl", "kl_horizon"), lambda c: not c.adaptive_kl, "adaptive_kl is false"),
    Idle(
        (),
        ("lora.alpha", "lora.targets", "lora.base_dtype"),
        lambda c: not c.lora.rank,
        "lora.rank is 0",
    ),
    Idle(
        (),
        tuple(f"model.{name}" for name in _SHAPE),
        lambda c: bool(c.model.init),
        "model.init brings its own",
    ),
    Idle((), ("model.pad_token",), lambda c: not c.model.init, "model.init is not set"),
    Idle((), ("model.vocab_size",), lambda c: bool(c.model.tokenizer), "model.tokenizer brings its own"),
    Idle((), ("center_rows",), lambda c: not c.center_on, "center_on is not set"),
    Idle(
        ("reward_model",),
        ("margin", "margin_scale", "centre_coef", "group_by_prompt", "data.share_prompts"),
        lambda c: c.loss != "bradley_terry",
        "loss is of ratings",
    ),
    Idle(
        ("reward_model",),
        ("rating_low", "rating_high"),
        lambda c: c.loss == "bradley_terry",
        "loss is of pairs",
    ),
    Idle(("reward_model",), ("margin_scale",), lambda c: not c.margin, "margin is not set"),
    Idle(
        ("reward_model",),
        ("member_order", "combine", "combine_coef"),
        lambda c: c.members == 1,
        "members is 1",
    ),
    Idle(
        (),
        ("model.combine_coef",),
        lambda c: c.model.combine != "mean_minus_variance",
        "model.combine is not mean_minus_variance",
    ),
    Idle((), ("best_mode", "keep_best"), lambda c: not c.best_metric, "best_metric is not set"),
    Idle((), ("reference_cache",), lambda c: c.reference == "step", "reference is step"),
    Idle(("dpo",), ("reference_cache",), lambda c: c.reference == "none", "reference is none"),
    Idle(
        ("dpo",),
        ("reference", "reference_cache"),
        lambda c: c.loss in ("simpo", "orpo"),
        "this loss has no reference",
    ),
    Idle(
        ("dpo", "online_dpo"),
        ("label_smoothing",),
        lambda c: c.loss in ("hinge", "ipo_sum", "ipo_mean", "orpo"),
        "this loss has none",
    ),
    Idle(("dpo",), ("simpo_gamma",), lambda c: c.loss != "simpo", "loss is not simpo"),
    Idle(("dpo",), ("sft_coef", "sft_nll"), lambda c: c.loss == "orpo", "orpo has its own NLL"),
    Idle(("dpo",), ("sft_nll",), lambda c: c.loss != "orpo" and not c.sft_coef, "sft_coef is 0"),
    Idle(
        ("dpo", "online_dpo"),
        ("loss",),
        lambda c: c.loss == "robust" and not c.label_smoothing,
        "robust is sigmoid where label_smoothing is 0",
    ),
    Idle(
        (),
        ("optimizer.eps",),
        lambda c: c.optimizer.name in ("sgd", "lion", "adafactor"),
        "this optimizer has none",
    ),
    Idle((), ("optimizer.b2",), lambda c: c.optimizer.name == "sgd", "sgd has no second moment"),
    Idle(("generate",), ("top_p", "top_k", "seed"), lambda c: c.temperature == 0, "temperature 0 is greedy"),
    Idle(
        ("generate",),
        ("temperature", "top_p", "top_k", "seed"),
        lambda c: bool(c.beams),
        "beams draws nothing",
    ),
    Idle(("generate",), ("beam_groups", "diversity_penalty"), lambda c: not c.beams, "beams is 0"),
    Idle(("generate",), ("diversity_penalty",), lambda c: c.beam_groups == 1, "beam_groups is 1"),
    Idle(
        ("score",), ("model.score_at",), lambda c: c.model.score_by == "logprob", "model.score_by is logprob"
    ),
    Idle(("annotate",), ("feedback_format",), lambda c: not c.feedback, "feedback is not set"),
    Idle(("annotate",), ("ordered",), lambda c: not c.outputs_2, "outputs_2 is not set"),
    Idle(("annotate",), ("one_pair_per_prompt",), lambda c: not c.samples, "samples is not set"),
    Idle(
        ("annotate",),
        ("n_samples", "max_prompt_words", "max_prompt_chars"),
        lambda c: not c.instructions,
        "instructions is not set",
    ),
    Idle(
        ("annotate",), ("judges", "p_label_flip"), lambda c: bool(c.feedback), "feedback is labelled already"
    ),
    Idle(
        ("evaluate",),
        ("reference_method", "labels", "scored", "clear_margin"),
        lambda c: not c.utility,
        "utility is false",
    ),
    Idle(
        ("evaluate",),
        ("difficulty", "regulariser"),
        lambda c: not c.length_control,
        "length_control is false",
    ),
    Idle(("measure",), ("anchor", "n_bootstrap"), lambda c: not c.games, "games is not set"),
    Idle(("measure",), ("gold", "min_per_generator"), lambda c: not c.annotators, "annotators is not set"),
    Idle(("measure",), ("baseline", "baseline_name"), lambda c: not c.ratings, "ratings is not set"),
)


def given(argv: Iterable[str]) -> set[str]:
    """Returns the names of the fields that a command line sets."""
    # Only what a user asked for: a page's own values wait for the other setting to change.
    names = (argument.lstrip("-").split("=", 1)[0] for argument in argv if argument.startswith("-"))
    fields = (name.removeprefix("noconfig.").removeprefix("config.") for name in names if "config." in name)
    return set(fields)


def notices(page: Any, fields: set[str]) -> Iterator[str]:
    """Yields one line for each of the fields that has no effect on this page; pages within a study have a prefix."""
    there = fields & set(leaves(page))
    for row in ROWS:
        for name in row.fields:
            if name in there and (not row.jobs or page.job in row.jobs) and row.when(page):
                yield f"{name} has no effect: {row.why}"
    # A study's stages take their settings from groups that are pages, so each group is looked at as one.
    for group, inner in inner_pages(page):
        below = {field.removeprefix(f"{group}.") for field in fields if field.startswith(f"{group}.")}
        yield from (f"{group}.{line}" for line in (*notices(inner, below), *_unused(page, group, below)))


def _unused(study: Any, group: str, fields: set[str]) -> Iterator[str]:
    """Yields one line for each of the fields of a group that no stage of the study takes from there."""
    stages = [overrides for _, of, *overrides in study.stages if of == group]
    for name in sorted(fields):
        if not stages:
            yield f"{name} has no effect: no stage is of the group {group}"
        elif all(any(text.startswith(f"{name}=") for text in overrides) for overrides in stages):
            yield f"{name} has no effect: every stage of this group sets its own"
