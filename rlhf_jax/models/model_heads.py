"""What a folder says of its head: a language model's, its own or the embedding table; or a reward model's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families import FAMILIES, Family
from rlhf_jax.models.name_map import Shapes, stored_names, table_of
from rlhf_jax.models.tensor_files import Tensors
from rlhf_jax.parallel import notices

SCORE = "score.weight"
SCORE_AT = ("eos", "last", "template")  # what each means is in `data.scored_text`
_OTHER_TASKS = ("ForTokenClassification", "ForQuestionAnswering")
_CLASSIFIER = "ForSequenceClassification"


def check(path: Path, raw: dict[str, Any], shapes: Shapes, family: Family) -> None:
    """UserError where `architectures` and the tensors speak of different heads; a notice of another family's name."""
    found = raw.get("architectures") or []
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list):
        raise UserError(f"{path}: architectures is {found!r}; a list with the name of a class is needed")
    labels = shapes[SCORE][0] if SCORE in shapes else 0
    for name in map(str, names):
        if name.endswith(_OTHER_TASKS):
            fix = f"only {family.classes[0]} and {family.classes[1]} of one label are"
            raise UserError(f"{path}: architectures is {name!r}, which is not supported; {fix}")
        if name.endswith(_CLASSIFIER) and not labels:
            raise _disagree(path, name, f"the weights hold no {SCORE}")
        if name == family.classes[0] and labels:
            raise _disagree(path, name, f"the weights hold {SCORE}, a reward model's head")
        trunk = family.classes[0].split("For")[0].split("LMHead")[0]
        if not name.lower().startswith(trunk.lower()):
            notices.once(f"{path}: architectures names {name}; computed as its model_type says, as {trunk}")
    if labels > 1:
        raise UserError(
            f"{path}: {SCORE} has {labels} rows, so this is a classifier of {labels} labels; "
            "give a reward model, which has one"
        )


def has_own(config: ModelConfig, tensors: Tensors) -> bool:
    """Whether a model that calls itself tied has a head with other numbers than its embedding table."""
    family = FAMILIES[config.family]
    stored = stored_names(config, tensors.shapes)
    names = [stored.get(name) for name in (table_of(family), family.head)]
    if None in names:
        return False
    table, head = names
    if tensors.shapes[table] != tensors.shapes[head]:
        return True
    return not np.array_equal(*(tensors.read(name).astype(np.float32) for name in (table, head)))


def reading(path: Path, raw: dict[str, Any]) -> tuple[float, str]:
    """What readers subtract from a reward model's scores, and at which token they read; "" where it is not said."""
    mean, score_at = raw.get("reward_mean"), raw.get("score_at")
    if score_at not in (None, *SCORE_AT):
        raise UserError(f"{path}: score_at is {score_at!r}; use one of {', '.join(SCORE_AT)}, or take it out")
    if mean is None:
        notices.once(f"{path}: no reward_mean, so scores are taken as they are")
        return 0.0, score_at or ""
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not math.isfinite(mean):
        raise UserError(f"{path}: reward_mean is {mean!r}; a number is needed")
    return float(mean), score_at or ""


def _disagree(path: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{path}: architectures is {name!r}, but {what}; copy config.json and weights of one model"
    )
