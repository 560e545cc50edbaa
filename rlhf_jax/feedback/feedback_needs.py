"""What reward sources and the win rate ask for before a run begins: rows and checks for a method's NEEDS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.annotation.judges.addresses import resolve_address
from rlhf_jax.annotation.judges.specs import load_pool
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.judging import LOCAL
from rlhf_jax.feedback.running_judge import cache_path, judges_of
from rlhf_jax.rollout.function_rewards import function_at
from rlhf_jax.settings.source_texts import FIELD, FUNCTION, JUDGE, folders_in, names_model_reward, sources_of
from rlhf_jax.training.run.missing_inputs import (
    TABLE,
    WIN_RATE_READS,
    WITHIN,
    Needs,
    Read,
    made_by,
    model_reads,
    train_and_eval,
)

_BASELINE = made_by("generate", "outputs/sft")
READS = (
    *(
        row._replace(when=names_model_reward)
        for row in model_reads("model.reward", made_by("reward_model"), adapter="model.reward_adapter")
    ),
    Read(FIELD, WITHIN, made_by("reward_model"), paths=folders_in),
    Read("reward.baseline", TABLE, _BASELINE),
    *WIN_RATE_READS,
)


def check_feedback(config: ConfigDict, workdir: str, prefix: str = "") -> None:
    """Raises UserError for sources or a win rate that cannot be; `prefix`: of a study's stage."""
    try:
        _check(config.to_dict(), workdir)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def judges_read(page: Mapping[str, Any]) -> Any:
    """What else decides a run's result and is no file that its page names: the ids of its judges."""
    files = [text.what for text in sources_of(page) if text.kind == JUDGE]
    files += [page["win_rate"]["judges"]] if page["win_rate"]["judges"] else []
    return [judges_of(file) for file in files] or None


def _check(page: Mapping[str, Any], workdir: str) -> None:
    for text in sources_of(page):
        if text.kind == JUDGE:
            check_judge(text.what, page["reward"], workdir, FIELD, "reward")
        elif text.kind == FUNCTION:
            function_at(text.what, FIELD)
    group = page["win_rate"]
    if group["judges"]:
        check_judge(group["judges"], group, workdir, "win_rate.judges", "win_rate")
    elif page["best_metric"] == "eval/win_rate":
        raise UserError("best_metric: eval/win_rate, but win_rate.judges names no judge; give its file")


def check_judge(file: str, asking: Mapping[str, Any], workdir: str, field: str, group: str) -> None:
    """Raises UserError for a judge's file that is none, and for a key that will be wanted and is not there."""
    try:
        pool = load_pool(file)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    # Where answers are kept already nobody may have to be asked.
    if not cache_path(asking, workdir, group).exists():
        for judge in pool.judges:
            if judge.base_url != LOCAL:
                resolve_address(judge, {}).key()


# What a method asks for that trains `model.policy` on its own responses, scored by the page's reward sources.
SCORED_POLICY = Needs(
    reads=(
        *train_and_eval(made_by("make_data", "data")),
        *model_reads("model.policy", made_by("sft")),
        *READS,
    ),
    remote=True,
    also=check_feedback,
    reads_too=judges_read,
)
