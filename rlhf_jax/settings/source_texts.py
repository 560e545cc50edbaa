"""Reads what a page says of its reward sources: `reward.sources`, one text that names each with its weight.

    reward_model                                                      model.reward alone, which is the default
    reward_model * 1.0, function=my_rewards:length * 0.1, judge=FILE.yaml * 0.5

An entry is KIND, or KIND=WHAT, and * WEIGHT where that is not 1. Jobs without jax read it, too.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError

FIELD = "reward.sources"
# What an entry of each kind names behind its "=".
REWARD_MODEL, JUDGE, FUNCTION = "reward_model", "judge", "function"
KINDS = {
    REWARD_MODEL: "a reward model's folder, or nothing for model.reward",
    JUDGE: "a judge's or pool's YAML file",
    FUNCTION: "MODULE:FUNCTION",
}
_EXAMPLE = "reward_model*1.0,function=my_rewards:length*0.1"


class SourceText(NamedTuple):
    """One entry.

    Attributes:
      name: what its scores are logged as: its kind, with a number from the second of a kind on.
      kind: one of KINDS.
      what: the folder, file or function; "" for the reward model that model.reward names.
      weight: of its scores in the sum.
    """

    name: str
    kind: str
    what: str
    weight: float


def sources_of(page: Any) -> tuple[SourceText, ...]:
    """The entries of a page's reward.sources, if it has any; UserError names the one that cannot be read.

    page: nested, a ConfigDict or a mapping.
    """
    if "reward" not in page:
        return ()
    text, seen = page["reward"]["sources"], Counter()
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        said, star, weight = (part.strip() for part in entry.rpartition("*"))
        kind, equals, what = (part.strip() for part in (said if star else entry).partition("="))
        if kind not in KINDS:
            raise UserError(
                f"{FIELD}: {entry!r}: the kind {kind!r} is none; use one of {', '.join(KINDS)}, as in {_EXAMPLE}"
            )
        if not what and (equals or kind != REWARD_MODEL):
            raise UserError(f"{FIELD}: {entry!r} names nothing; write {kind}={KINDS[kind]}, as in {_EXAMPLE}")
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"
        found.append(SourceText(name, kind, what, _weight(weight, entry) if star else 1.0))
    if not found:
        raise UserError(f"{FIELD}: names no source; write for example {_EXAMPLE}")
    _check_once(found)
    return tuple(found)


def names_model_reward(page: Any) -> bool:
    """Whether the page's reward sources read model.reward."""
    return any(source.kind == REWARD_MODEL and not source.what for source in sources_of(page))


def folders_in(text: str) -> tuple[str, ...]:
    """The reward models' folders that a page's reward.sources names by themselves."""
    found = sources_of({"reward": {"sources": text}})
    return tuple(x.what for x in found if x.kind == REWARD_MODEL and x.what)


def asks_judges(page: Any) -> bool:
    """Whether a judge is among the page's reward sources."""
    return any(source.kind == JUDGE for source in sources_of(page))


def reads_models(page: Any) -> bool:
    """Whether a reward model is among the page's reward sources."""
    return any(source.kind == REWARD_MODEL for source in sources_of(page))


def _weight(text: str, entry: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise UserError(
            f"{FIELD}: {entry!r}: the weight {text!r}; use a finite number other than 0, behind the last *"
        )
    return weight


def _check_once(found: list[SourceText]) -> None:
    for source, times in Counter((source.kind, source.what) for source in found).items():
        if times > 1:
            kind, what = source
            raise UserError(
                f"{FIELD}: {kind}{f'={what}' if what else ''} is named {times} times; give it one weight"
            )
