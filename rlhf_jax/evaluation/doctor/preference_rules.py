"""Rules for runs that learn from fixed rows: likelihoods of preferred responses, reward models, held-out loss."""

from __future__ import annotations

import math

from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING, Rule, Seen
from rlhf_jax.evaluation.doctor.trends import FEWEST_EVALUATIONS, RunCurves

# Nats of a whole response. Below half a nat, or a twentieth of what it had, nobody asks about it.
_FALL, _FALL_SHARE = 0.5, 0.05
# A response that has lost half of its log-prob again: its perplexity has gone to the power of 1.5. Where probability
# goes then, to responses of neither kind, Pal et al. 2024 (Smaug) and Razin et al. 2024 describe.
_FALL_MUCH = 0.5
# Losses whose rewards/* are beta times a difference of sums to a reference, which is 0 before the first step.
_SUMMED = ("sigmoid", "robust", "hinge", "ipo_sum")
# Of the lowest held-out loss, and of what it had fallen by: less is what another seed makes of it. A tenth of the loss
# and all that it had fallen by is far outside of where more epochs still help (Ouyang et al. 2022: SFT, 16 epochs).
_RISE, _RISE_SHARE, _RISE_MUCH = 0.01, 0.1, 0.1
# Held-out pairs; over fewer nothing can be said of an accuracy: the standard error is above 7 points.
FEWEST_PAIRS = 50


def chosen_falls(run: RunCurves) -> Seen | None:
    """Chosen responses become less likely although margins rise."""
    fall = _fall(run)
    if fall is None:
        return None
    end, down, step = fall
    start = end + down
    if down < max(_FALL, _FALL_SHARE * abs(start)):
        return None
    rising = _margins_rise(run)
    if rising is None:
        return None
    much = down >= _FALL_MUCH * abs(start)
    beside = "while margins rise" if rising else "and margins do not rise"
    said = f"log-prob of chosen responses {start:.3g} to {end:.3g} nats (step {step:.0f}), {beside}"
    rejected = run.change("eval/logps/rejected", "logps/rejected")
    if rejected is not None:
        said += f"; rejected ones {rejected.said()}"
    return Seen(WARNING if much or not rising else NOTE, said, ("logps/chosen", "rewards/margins"))


def _fall(run: RunCurves) -> tuple[float, float, float] | None:
    """(log-prob of chosen responses at the end, by how much it fell, at which step) in nats of a response."""
    beta = run.setting("beta")
    # Compared with the reference response by response, which is exact from the first step on; the log-prob itself is
    # that of other rows at every step, and was first evaluated when it had moved already.
    if beta and run.setting("loss") in (*_SUMMED, None) and run.setting("reference") != "none":
        for prefix in ("eval/", ""):
            logps, ratio = run.level(f"{prefix}logps/chosen"), run.level(f"{prefix}rewards/chosen")
            if logps is not None and ratio is not None:
                return logps, -ratio / beta, run.last_step(f"{prefix}logps/chosen")
    moved = run.change("eval/logps/chosen", "logps/chosen")
    if moved is None or not moved.sure:
        return None
    return moved.end, -moved.difference, moved.last_step


def _margins_rise(run: RunCurves) -> bool | None:
    """Whether chosen responses gained on rejected ones; None where that is not logged."""
    for prefix in ("eval/", ""):
        chosen, rejected = (run.level(f"{prefix}rewards/{side}") for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            return chosen > rejected
    return None


def no_better_than_longer(run: RunCurves) -> Seen | None:
    """A reward model in training ranks held-out pairs no better than the rule "longer wins", or a coin."""
    accuracies, longer = run.series("eval/rewards/accuracies").values, run.level("eval/longer_wins")
    pairs = run.setting("data.eval_rows") or 0
    if len(accuracies) < FEWEST_EVALUATIONS or longer is None or not pairs:
        return None
    # While it still gets better, by a standard error from one evaluation to the next but one, it has not failed yet.
    if accuracies[-1] - accuracies[-3] > math.sqrt(0.25 / pairs):
        return None
    accuracy = float(accuracies[-2:].mean())
    step = run.last_step("eval/rewards/accuracies")
    curves = ("eval/rewards/accuracies", "eval/longer_wins")
    return below_longer(100 * accuracy, 100 * longer, pairs, f"held-out pairs (step {step:.0f})", curves)


def below_longer(
    accuracy: float, longer: float, n: int, of: str, curves: tuple[str, ...] = ()
) -> Seen | None:
    """The same of any accuracy. accuracy, longer: in percent of n pairs, the latter that of "longer wins"."""
    if n < FEWEST_PAIRS or math.isnan(accuracy) or math.isnan(longer):
        return None
    # One standard error and not two: a reward model has to be better than the rule, and not only not worse.
    error = 100 * math.sqrt(0.25 / n)
    said = f'{accuracy:.1f} % of {n} {of} ranked as labelled, "longer wins" {longer:.1f} %'
    if accuracy - 50 < error:
        return Seen(PROBLEM, f"{said}, a coin 50 %", curves)
    # A rule that ranks them the wrong way round is no rival, however wrong.
    if longer > 50 and accuracy - longer < error:
        return Seen(WARNING, f"{said} (standard error {error:.1f})", curves)
    return None


def held_out_loss_rises(run: RunCurves) -> Seen | None:
    """The loss on held-out rows rises again while that of training falls."""
    held, trained = run.series("eval/loss"), run.change("loss")
    if len(held.steps) < FEWEST_EVALUATIONS or trained is None or trained.difference > 0:
        return None
    at = int(held.values.argmin())
    lowest, fell = float(held.values[at]), float(held.values[0] - held.values[at])
    # Both of the last two evaluations have to be above, so that one bad one is no rise.
    rise = float(min(held.values[-2:])) - lowest
    if at >= len(held.steps) - 2 or rise < max(_RISE * abs(lowest), _RISE_SHARE * fell):
        return None
    said = (
        f"loss of held-out rows {lowest:.4g} (step {held.steps[at]:.0f}) to {held.values[-1]:.4g} "
        f"(step {held.steps[-1]:.0f}), of training {trained.said()}"
    )
    return Seen(WARNING if rise >= max(_RISE_MUCH * abs(lowest), fell) else NOTE, said, ("loss",))


RULES = (
    Rule(
        "chosen log-probs fall",
        "The preferred responses become less likely than they were, although the gap to the rejected ones grows.",
        "The loss sees only the difference, so both may fall as long as the rejected one falls faster, most where "
        "the two are alike or the model was tuned on the chosen ones. A small fall is normal; a large one moves "
        "probability to responses of neither kind.",
        ("sft_coef", "beta", "optimizer.learning_rate", "epochs", "desirable_weight"),
        chosen_falls,
        (("logps/chosen", "rewards/chosen"), ("eval/logps/chosen", "eval/rewards/chosen")),
    ),
    Rule(
        'reward model no better than "longer wins"',
        "It ranks pairs as labelled no more often than the rule that the longer response wins, or than a coin.",
        "Labels of judges that like length, too few or contradicting labels, or a learning rate at which it learns "
        "nothing. A policy that is trained on it will grow longer.",
        ("data.train", "optimizer.learning_rate", "epochs", "batch_size"),
        no_better_than_longer,
        (("eval/rewards/accuracies", "eval/longer_wins"),),
    ),
    Rule(
        "held-out loss rises",
        "The loss on held-out rows rises again while that on the training rows still falls.",
        "More passes over the rows than they bear. For SFT a slight rise is usual and responses may still get better; "
        "a reward model or DPO with it knows its pairs by heart.",
        ("epochs", "optimizer.learning_rate", "best_metric"),
        held_out_loss_rises,
        (("eval/loss", "loss"),),
    ),
)
