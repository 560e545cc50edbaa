"""Rules for what becomes of a policy that samples while it trains: lengths, ends, entropy, KL, and what it is worth."""

from __future__ import annotations

import math
from itertools import pairwise

from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING, Rule, Seen
from rlhf_jax.evaluation.doctor.trends import RunCurves

# Responses that grow by a quarter are common where better ones are longer. AlpacaFarm's PPO doubled them (396 to 803
# characters), and of its lead over SFT (41.2 to 26.5 %) little was left at equal length (29.8 to 26.3 %).
_LONGER, _MUCH_LONGER = 1.3, 2.0
# Of a PPO run that is well more than 95 % of responses end; a tenth that do not is more than a bad batch.
_ENDED, _HARDLY_ENDED = 0.9, 0.5
# Policies that learn lose entropy: half of it in healthy runs. At a quarter the samples of a prompt begin to be one.
_COLLAPSED, _ALL_GONE = 0.25, 0.1
# Nats of a response: less than one is what a rollout of some dozens of responses measures beside its noise.
_KL_GREW = 1.0
# Of the deviation of scores within a rollout: healthy runs gain one of it while the KL grows by a nat or two.
_GAIN = 0.25
_LONG = 40  # logged steps
# Nats of a token. PPO on summaries of some 50 tokens ends at 5 to 30 nats, at most 0.6 a token; at 1 each token is e
# times as likely as under the reference.
_KL_A_TOKEN = 1.0
# The win rate's fall that over-optimisation makes in AlpacaFarm, figure 4: .551 to .510 and .466 to .430.
_WIN_RATE_FELL = 0.03


def length_drifts(run: RunCurves) -> Seen | None:
    """Responses become much longer or shorter."""
    both = [run.change(f"{prefix}completions/mean_length") for prefix in ("eval/", "")]
    known = [one for one in both if one is not None and min(one.start, one.end) > 0]
    if not known or not all(one.sure for one in known):
        return None
    # Where both are known both have to say it: an evaluation may be of a handful of prompts.
    moved = min(known, key=lambda one: abs(math.log(one.end / one.start)))
    ratio = moved.end / moved.start
    size = max(ratio, 1 / ratio)
    if size < _LONGER:
        return None
    said = f"mean length {moved.said()} tokens, {100 * (ratio - 1):+.0f} %"
    return Seen(
        PROBLEM if size >= _MUCH_LONGER else WARNING,
        said,
        ("completions/mean_length", "objective/scores"),
    )


def responses_do_not_end(run: RunCurves) -> Seen | None:
    """Many responses are cut off at the longest that may be sampled."""
    ended = run.level("eval/completions/ended", "completions/ended")
    if ended is None or ended >= _ENDED:
        return None
    moved = run.change("eval/completions/ended", "completions/ended")
    since = f", after {moved.start:.0%} at step {moved.first_step:.0f}" if moved is not None else ""
    room = run.setting("rollout.max_new_tokens")
    within = f" within {room} tokens" if room else ""
    said = f"{ended:.0%} of responses end{within}{since}"
    # A teacher that reads every token needs no end: pages without a penalty are of methods that learn from parts, too.
    if room and run.setting("missing_eos_penalty") is None:
        return Seen(NOTE, said, ("completions/ended",))
    return Seen(PROBLEM if ended < _HARDLY_ENDED else WARNING, said, ("completions/ended",))


def entropy_collapses(run: RunCurves) -> Seen | None:
    """The policy hardly chooses any more."""
    moved = run.change("objective/entropy")
    if moved is None or not moved.sure or moved.start <= 0 or moved.end > _COLLAPSED * moved.start:
        return None
    severe = moved.end <= _ALL_GONE * moved.start
    said = f"entropy of a token {moved.said()} nats"
    return Seen(PROBLEM if severe else WARNING, said, ("objective/entropy",))


def kl_without_reward(run: RunCurves) -> Seen | None:
    """The policy moves away from the reference and gains nothing by it, in the whole run or in its second half."""
    whole, spread = run.change("objective/scores"), run.level("objective/scores_std")
    if whole is None:
        return None
    # What a gain is measured by: how far responses of one rollout are apart; else the gain of the whole run, which
    # leaves only a fall to be told of it.
    unit = spread if spread is not None else abs(whole.difference)
    # Half of a short run is its start, where KL and scores have only begun to move.
    halves = ((0.5, 0.5),) if len(run.series("objective/kl").steps) >= _LONG else ()
    for since, grown in ((0.0, 0.25), *halves):
        kl, scores = (run.change(f"objective/{name}", since=since) for name in ("kl", "scores"))
        if kl is None or scores is None or not kl.sure:
            continue
        if kl.difference < max(_KL_GREW, grown * kl.end):
            continue
        # The gain has to be known to be small: what is noisy may rise.
        if scores.difference + 2 * scores.error < _GAIN * unit:
            fell = scores.sure and scores.difference < 0
            said = f"KL {kl.said()} nats, scores {scores.said()}"
            return Seen(PROBLEM if fell else WARNING, said, ("objective/kl", "objective/scores"))
    return None


def kl_explodes(run: RunCurves) -> Seen | None:
    """The policy is nowhere near the reference any more."""
    kl, tokens = run.level("objective/kl"), run.level("completions/mean_length")
    if kl is None or not tokens or kl < _KL_A_TOKEN * tokens:
        return None
    step = run.last_step("objective/kl")
    said = f"KL {kl:.3g} nats of responses of {tokens:.3g} tokens (to step {step:.0f})"
    return Seen(PROBLEM, f"{said}, {kl / tokens:.2g} nats a token", ("objective/kl", "objective/scores"))


def kl_below_zero(run: RunCurves) -> Seen | None:
    """An estimate of the KL stays negative, which that of what the policy samples cannot be."""
    series = run.series("objective/kl")
    kl = run.level("objective/kl")
    if kl is None or kl > -0.5:
        return None
    late = series.values[-max(3, len(series.values) // 3) :]
    # The mean over many responses is negative by chance only while the KL itself is near 0.
    error = float(late.std()) / math.sqrt(len(late))
    if float(late.mean()) > -3 * error:
        return None
    said = f"KL {kl:.3g} nats over the last {len(late)} rollouts (to step {series.steps[-1]:.0f})"
    return Seen(PROBLEM, said, ("objective/kl", "sampling/logp_difference"))


def reward_up_judge_down(run: RunCurves) -> Seen | None:
    """The reward that is trained on rises, and what it stands for falls."""
    scores = run.series("eval/scores")
    for name in ("eval/utility", "eval/win_rate"):
        worth = run.series(name)
        at = {step: i for i, step in enumerate(scores.steps)}
        both = [
            (step, x, scores.values[at[step]])
            for step, x in zip(worth.steps, worth.values, strict=True)
            if step in at
        ]
        # The best two in a row and the last two have to be four different evaluations.
        if len(both) < 4:
            continue
        worths = [(a[1] + b[1]) / 2 for a, b in pairwise(both)]
        rewards = [(a[2] + b[2]) / 2 for a, b in pairwise(both)]
        best = max(range(len(worths)), key=worths.__getitem__)
        fell, rose = worths[best] - worths[-1], rewards[-1] - rewards[best]
        prompts = run.setting("win_rate.max_instructions") or run.setting("data.eval_rows") or 100
        # Of the same prompts with the same noise, so its error is below that of independent ones, 2 of which are sure.
        error = math.sqrt(0.25 / prompts) if name == "eval/win_rate" else 0.0
        if best + 2 > len(worths) - 1 or fell < max(_WIN_RATE_FELL, 1.5 * error) or rose <= 0:
            continue
        steps = both[best + 1][0], both[-1][0]
        said = (
            f"{name} {worths[best]:.3f} (to step {steps[0]:.0f}) to {worths[-1]:.3f} (to step {steps[1]:.0f}), "
            f"while the reward rose from {rewards[best]:.3g} to {rewards[-1]:.3g}"
        )
        return Seen(PROBLEM, said, (name, "eval/scores"))
    return None


_PULL = ("kl_coef", "beta", "optimizer.learning_rate")
RULES = (
    Rule(
        "length drifts",
        "Responses become much longer or shorter than at the start.",
        "The reward likes length (its labels do, or it saw few long responses), so length is the cheapest way to a "
        "higher score; or a loss that weighs long responses less makes long bad ones cheap.",
        ("model.reward", "kl_coef", "beta", "aggregation", "missing_eos_penalty", "rollout.max_new_tokens"),
        length_drifts,
        (("completions/mean_length",), ("eval/completions/mean_length",)),
    ),
    Rule(
        "responses do not end",
        "Many responses are cut off at the longest that may be sampled.",
        "The model was never taught to end: responses that were cut, an end token that is masked or padding; or the "
        "room is too small, or nothing is taken from the score of what does not end.",
        ("rollout.max_new_tokens", "missing_eos_penalty", *_PULL[:2], "model.policy"),
        responses_do_not_end,
        (("completions/ended",), ("eval/completions/ended",)),
    ),
    Rule(
        "entropy collapses",
        "The policy hardly chooses any more: the samples of a prompt become one response.",
        "A learning rate or a reward scale that is too high for the pull to the reference, or many updates on one "
        "rollout. Then there is nothing left to learn from.",
        ("kl_coef", "beta", "entropy_coef", "optimizer.learning_rate", "epochs", "clip_high"),
        entropy_collapses,
        (("objective/entropy",),),
    ),
    Rule(
        "KL without reward",
        "The policy moves away from the reference, and its scores do not rise.",
        "Updates follow noise: rewards that hardly differ, a value model that knows nothing yet, a learning rate "
        "that is too high.",
        ("optimizer.learning_rate", "kl_coef", "beta", "value_learning_rate", "rollout.batch_size"),
        kl_without_reward,
        (("objective/kl", "objective/scores"),),
    ),
    Rule(
        "KL explodes",
        "The policy is nowhere near the model it started from: a nat or more for every token.",
        "No or too small a weight of the KL, or a learning rate that is too high. The reward model knows nothing of "
        "responses so far away.",
        ("kl_coef", "beta", "adaptive_kl", "target_kl", "optimizer.learning_rate", "steps"),
        kl_explodes,
        (("objective/kl", "completions/mean_length"),),
    ),
    Rule(
        "KL below zero",
        "The estimate of the KL stays negative, which that of the policy's own samples cannot be.",
        "Responses come from another distribution than the log-probs: another temperature, top-k or top-p, or a "
        "sampler whose weights are older or rounded otherwise.",
        ("rollout.temperature", "rollout.staleness", "rollout.dtype", "kl_estimator"),
        kl_below_zero,
        (("objective/kl",),),
    ),
    Rule(
        "reward up, worth down",
        "The reward that is trained on still rises while the judge's win rate, or the true utility, falls.",
        "Over-optimisation: the policy has found what the reward model takes for good and people do not (Gao et al. "
        "2023). Earlier checkpoints are better.",
        ("kl_coef", "beta", "steps", "best_metric", "model.reward", "optimizer.learning_rate"),
        reward_up_judge_down,
        (("eval/scores", "eval/win_rate"), ("eval/scores", "eval/utility")),
    ),
)
