"""From a page's reward.sources to what scores a rollout: reward models, judges, functions, and their weighted sum.

`describe_sources` comes before any weight is read: it checks each source, says what a judge will cost, and describes
the reward models, which are all that the memory of the devices has to hold. `open_rewards` reads these, and makes one
source of all, which the rollout calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.annotation.parsing.contracts import PAIRWISE, RANKING, RATING
from rlhf_jax.data.records.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.asked_rows import baseline_outputs, check_pool, prompt_key, questions
from rlhf_jax.feedback.running_judge import RunningJudge, asking_of
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel import startup
from rlhf_jax.rollout.function_rewards import FunctionScores, source_file
from rlhf_jax.rollout.host_rewards import HostRewards, Judgment, Verdicts
from rlhf_jax.rollout.rewards import Rewards
from rlhf_jax.rollout.summed_rewards import Component, SummedRewards
from rlhf_jax.settings.source_texts import (
    FIELD,
    FUNCTION,
    REWARD_MODEL,
    SourceText,
    sources_of,
)
from rlhf_jax.training.run import actor_networks
from rlhf_jax.training.run.actor_networks import RewardSource
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online_models import Scorer
from rlhf_jax.training.run.session import Session

# So many prompts stand for all of them when the price of a run is estimated.
_ESTIMATED = 32
# What a token of a response is taken to be in text, before any response is there.
_CHARACTERS_PER_TOKEN = 4


class RewardSources(NamedTuple):
    """All sources of a page, before any weight is read.

    Attributes:
      texts: what the page says of each.
      models: the reward models among them, by the source's name, without their parameters.
      judgments: the judges and functions among them, by the source's name.
      files: what the run reads for them; it does not go on with others.
      unsaid: the metrics that evaluations, which sample one response of a prompt, cannot have of these sources.
    """

    texts: tuple[SourceText, ...]
    models: dict[str, RewardSource]
    judgments: dict[str, Judgment]
    files: tuple[str, ...]
    unsaid: tuple[str, ...] = ()

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The reward models as the memory plan sees them."""
        return tuple(
            Scorer(found.reward.model, found.closing, found.text_length) for found in self.models.values()
        )

    @property
    def first_model(self) -> RewardSource | None:
        """The reward model whose trunk a value model may start from."""
        return next(iter(self.models.values()), None)


def describe_sources(
    session: Session, rows: list[dict], held: list[dict], *, beside: int = 0
) -> RewardSources:
    """Describes the page's sources. rows, held: the records of the prompts for training and for evaluation.

    beside: the most responses to a training prompt that are scored beside those that are sampled.
    """
    c, prompts = session.config, [*rows, *held]
    # Its evaluations choose the checkpoint, so a run does not go on with another baseline either.
    texts, files = sources_of(c), [c.win_rate.judges, c.win_rate.baseline]
    asking, baseline = asking_of(c.reward), c.reward.baseline
    models: dict[str, RewardSource] = {}
    judgments: dict[str, Judgment] = {}
    for text in texts:
        if text.kind == REWARD_MODEL:
            models[text.name] = actor_networks.reward_source_of(session, prompts, text.what)
            files += actor_networks.source_files(session, models[text.name], text.what)
        elif text.kind == FUNCTION:
            judgments[text.name] = FunctionScores(text.what, FIELD)
            files.append(source_file(text.what, FIELD))
        else:
            judgments[text.name] = _judge(session, text, asking, rows, held, beside)
            files += [text.what, baseline]
    compared = [x for x in texts if getattr(judgments.get(x.name), "compares", False)]
    return RewardSources(texts, models, judgments, tuple(filter(None, files)), _unsaid(c, compared))


def open_rewards(session: Session, sources: RewardSources, pad_id: int) -> tuple[Rewards, Params]:
    """Reads the reward models' weights and opens all sources.

    Returns the one source that a rollout calls, and the parameters of the first reward model, {} without one. A reward
    model alone with weight 1 is called as it is.
    """
    made: dict[str, Component] = {}
    first: Params = {}
    for text in sources.texts:
        if text.name in sources.models:
            described = sources.models[text.name]
            reward = actor_networks.read_reward(session, described, text.what)
            rewards: Rewards = actor_networks.rewards_of(session, described, reward, pad_id)
            first = first or reward.model.params
        else:
            judgment = sources.judgments[text.name]
            rewards = HostRewards(text.name, judgment, session.tokenizer, session.mesh)
        made[text.name] = Component(rewards, text.weight)
    [text, *others] = sources.texts
    if not others and text.name in sources.models and text.weight == 1.0:
        return made[text.name].rewards, first
    return SummedRewards(made), first


class JudgeScores:
    """What a judge says of responses, see `asked_rows`. baseline: its response by prompt, where there is one."""

    def __init__(self, judge: RunningJudge, baseline: Mapping[tuple[str, str], str] | None) -> None:
        self._judge, self._baseline = judge, baseline
        # The responses to one prompt with each other: then one alone has no score.
        self.compares = judge.kind != RATING and baseline is None

    def __call__(self, records: list[dict], responses: list[str]) -> Verdicts:
        asked = questions(self._judge.kind, records, responses, self._baseline)
        found = self._judge.ask(asked, len(responses))
        return Verdicts(found.scores, found.readable, {"usd": found.usd} if self._judge.priced else {})


def _unsaid(c: ConfigDict, compared: list[SourceText]) -> tuple[str, ...]:
    """What evaluations leave out, and a notice of it, where sources compare the responses to one prompt."""
    if not compared:
        return ()
    names = ("scores", "scores_std", "raw_scores", "rlhf_reward")
    why = f"{compared[0].what} compares responses to one prompt, of which an evaluation samples one"
    if c.best_metric in [f"eval/{name}" for name in names]:
        raise UserError(
            f"best_metric: {c.best_metric}, but {why}; use eval/win_rate with win_rate.judges, or '' for the last"
        )
    startup.notice_once(
        f"{FIELD}: {why}, so there is no eval/scores; win_rate.judges measures evaluations, and reward.baseline=FILE "
        "gives each response something to be compared with"
    )
    return (*names, "completions/unscored", *(f"rewards/{source.name}" for source in compared))


def _judge(
    session: Session,
    text: SourceText,
    asking: Mapping[str, Any],
    rows: list[dict],
    held: list[dict],
    beside: int,
) -> JudgeScores:
    c = session.config
    path = c.reward.baseline
    judge = RunningJudge(text.what, asking, session.workdir, group="reward", seed=c.seed)
    kind = check_pool(judge.pool, f"{FIELD}: {text.what}", RATING, PAIRWISE, RANKING)
    baseline = None
    if path and kind == PAIRWISE:
        baseline = read_baseline(path, "reward.baseline", [*rows, *held])
    samples = c.rollout.get("samples", 1) + beside
    if kind != RATING and baseline is None and samples < 2:
        fix = " or reward.baseline=FILE, which each response is compared with" if kind == PAIRWISE else ""
        raise UserError(
            f"{FIELD}: {text.what} compares responses to a prompt, and there is one of each; give a judge of kind "
            f"{RATING}, a method that samples several{fix}"
        )
    if startup.is_main():
        _tell_price(c, judge, text, rows, held, baseline, samples)
    return JudgeScores(judge, baseline)


def _tell_price(
    c: ConfigDict,
    judge: RunningJudge,
    text: SourceText,
    rows: list[dict],
    held: list[dict],
    baseline: Mapping[tuple[str, str], str] | None,
    samples: int,
) -> None:
    """Prints what the questions of the whole run would cost, before the first is asked."""
    # As long as responses may become; no two alike, since equal ones are a tie without asking.
    width = c.rollout.max_new_tokens * _CHARACTERS_PER_TOKEN
    few = [dict(row) for row in rows[:_ESTIMATED]]
    records = [row for row in few for _ in range(samples)]
    texts = [f"{i} ".ljust(width, "x") for i in range(len(records))]
    prompts = c.steps * c.rollout.batch_size
    # An evaluation samples one response to a prompt, which has no other to be compared with.
    alone = judge.kind == RATING or baseline is not None
    evaluations = 2 + (c.steps - 1) // c.eval_every if c.eval_every else 2
    times = (prompts + (evaluations * len(held) / samples if alone else 0)) / len(few)
    told = judge.estimate(questions(judge.kind, records, texts, baseline), times)
    print(
        f"{FIELD}: {text.name} {judge.pool.name}: for {prompts * samples:,} responses and the evaluations {told}"
    )


def read_baseline(path: str, field: str, prompts: list[dict]) -> dict[tuple[str, str], str]:
    """A baseline's output to each of the prompts; UserError where some have none."""
    found, repeated = baseline_outputs(
        read_table(path, made_by=made_by("generate", "outputs/sft")), field, path
    )
    missing = [row for row in prompts if prompt_key(row) not in found]
    if missing:
        raise UserError(
            f"{field}: {path} has no output to {len(missing)} of {len(prompts)} prompts, such as "
            f"{prompt_key(missing[0])[0][:60]!r}; write one to every prompt with generate"
        )
    if repeated and startup.is_main():
        print(
            f"{field}: {repeated} rows of {path} repeat a prompt; the first output to each counts", flush=True
        )
    return found
