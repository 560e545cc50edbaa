"""Rules for what an online method learns from: rewards that differ, updates that count, samples that are its own."""

from __future__ import annotations

from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING, Rule, Seen
from rlhf_jax.evaluation.doctor.trends import RunCurves

# Half of the groups without a difference is half of the rollouts for nothing; DAPO (Yu et al. 2025) samples anew then.
_EQUAL, _ALL_EQUAL = 0.5, 0.9
# Healthy runs keep most of the spread that scores start with. A hundredth of it is rounding, or one response.
_SPREAD = 0.01
# Less than a fifth of tokens outside of the range of 0.2 is the usual yardstick of PPO.
_CLIPPED, _MOSTLY_CLIPPED = 0.2, 0.5
# NeMo-RL's alarm: the mean of exp(|difference|) above 1.05. At 0.2 the ratio of a token is where PPO clips it.
_APART, _FAR_APART = 0.05, 0.2


def without_variance(run: RunCurves) -> Seen | None:
    """The rewards of responses that are compared with each other do not differ."""
    whose = {
        "groups/equal": "prompts have responses of equal scores",
        "pairs/ties": "pairs have equal scores",
    }
    for name, what in whose.items():
        equal = run.level(name)
        if equal is not None and equal >= _EQUAL:
            said = f"{equal:.0%} of {what} (last third, to step {run.last_step(name):.0f}){_none_ended(run)}"
            return Seen(PROBLEM if equal >= _ALL_EQUAL else WARNING, said, (name, "objective/scores"))
    spread = run.change("objective/scores_std")
    if spread is None or spread.end > max(_SPREAD * spread.start, 1e-6):
        return None
    said = f"deviation of scores within a rollout {spread.said()}{_none_ended(run)}"
    return Seen(PROBLEM, said, ("objective/scores_std", "objective/scores"))


def _none_ended(run: RunCurves) -> str:
    ended = run.level("completions/ended")
    return f"; {ended:.0%} of responses end" if ended is not None and ended < 0.5 else ""


def updates_are_clipped(run: RunCurves) -> Seen | None:
    """Much of the policy's, or the value model's, update is cut off by the clipping range."""
    clipped, step = run.level("policy/clipfrac"), "policy/clipfrac"
    # GSPO's ratio is that of a sequence and its range a thousandth of PPO's: its paper clips a hundred times as much.
    whole = str(run.setting("ratio") or "").startswith("sequence")
    if clipped is not None and clipped >= (_MOSTLY_CLIPPED if whole else _CLIPPED):
        said = f"{clipped:.0%} of {'responses' if whole else 'tokens'} are clipped (to step {run.last_step(step):.0f})"
        severe = clipped >= _MOSTLY_CLIPPED and not whole
        return Seen(PROBLEM if severe else WARNING, said, ("policy/clipfrac", "policy/approxkl"))
    values = run.level("val/clipfrac")
    if values is None or values < _MOSTLY_CLIPPED:
        return None
    said = f"{values:.0%} of values are clipped (to step {run.last_step('val/clipfrac'):.0f})"
    return Seen(WARNING, f"{said}: rewards are large beside value_clip", ("val/clipfrac",))


def sampler_apart(run: RunCurves) -> Seen | None:
    """The sampler's log-probs are not those of the policy that is trained."""
    name = "sampling/logp_difference"
    apart = run.level(name, f"eval/{name}")
    if apart is None or apart < _APART:
        return None
    said = f"their log-probs differ by {apart:.3g} nats a token"
    staleness, corrected = run.setting("rollout.staleness"), run.setting("rollout.correction")
    if staleness:
        said += f"; the sampler is {staleness} updates behind, as rollout.staleness asks for"
    # What is asked for and weighted for is no surprise, however far.
    if staleness and corrected not in (None, "none"):
        return Seen(NOTE, said, (name,))
    return Seen(PROBLEM if apart >= _FAR_APART else WARNING, said, (name,))


RULES = (
    Rule(
        "rewards without variance",
        "Responses that are compared with each other get the same score, so their advantages are zero or noise.",
        "Prompts that are too easy or too hard, a policy that always says the same, a judge or function that knows few "
        "scores, or no response that ends, all of which get the penalty.",
        ("rollout.samples", "rollout.temperature", "missing_eos_penalty", "filter_groups", "model.reward"),
        without_variance,
        (("groups/equal",), ("pairs/ties",), ("objective/scores_std",)),
    ),
    Rule(
        "updates are clipped",
        "Much of an update lies outside of the clipping range and is cut off.",
        "Too many or too large updates on one rollout; or rewards on a scale for which the value's range is small.",
        (
            "optimizer.learning_rate",
            "epochs",
            "minibatch_size",
            "clip",
            "clip_high",
            "value_clip",
            "whiten_rewards",
        ),
        updates_are_clipped,
        (("policy/clipfrac",),),
    ),
    Rule(
        "sampler and trainer apart",
        "Responses come from a policy that is not the one that learns from them.",
        "Another dtype of the sampling copy, rounding in low precision, or a sampler that is some updates behind.",
        ("rollout.dtype", "model.dtype", "rollout.staleness", "rollout.correction"),
        sampler_apart,
        (("sampling/logp_difference",), ("eval/sampling/logp_difference",)),
    ),
)
