"""JudgeBench's rule: two decisions on a pair, each for or against the label, and the pair by what is left."""

import itertools

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.benchmarks.judge_bench import Decided, judge_bench

ALL = ("A>B", "B>A", "A=B", None)


@pytest.mark.parametrize("decisions", list(itertools.product(ALL, ALL)))
@pytest.mark.parametrize("label", ["A>B", "B>A"])
def test_every_two_decisions(label, decisions):
    """Each of the sixteen, beside a pair that has both, as a pair that lacks one cannot be measured alone."""
    right = decisions.count(label)
    wrong = decisions.count("B>A" if label == "A>B" else "A>B")
    pairs = [Decided("mmlu-pro-law", label, decisions), Decided("mmlu-pro-law", label, (label, label))]
    part, overall = judge_bench("mine", pairs, min_coverage=0.5).parts
    assert part.name == "knowledge" and part.n == overall.n == 2
    assert (overall.n_correct - 1, overall.n_incorrect) == (right > wrong, wrong > right)
    assert overall.n_tied == (right == wrong)
    assert overall.accuracy == 50 * (1 + (right > wrong))
    assert overall.n_both - 1 == (decisions == (label, label))
    assert overall.n_inconsistent == (decisions[0] != decisions[1])
    assert overall.n_missing == (None in decisions)


def test_parts_by_source_and_what_is_of_none():
    sources = ["mmlu-pro-physics", "livebench-reasoning", "livebench-math", "livecodebench", "riddles"]
    pairs = [Decided(source, "A>B", ("A>B", "A>B" if k else "B>A")) for k, source in enumerate(sources)]
    found = judge_bench("mine", pairs)
    names = ["knowledge", "reasoning", "math", "coding", "other: riddles", "overall"]
    assert [part.name for part in found.parts] == names and found.n_orders == 2
    assert [part.accuracy for part in found.parts] == [0, 100, 100, 100, 100, 80]
    low, high = found.parts[-1].interval
    assert low == pytest.approx(37.55, abs=0.01) and high == pytest.approx(96.38, abs=0.01)  # Wilson, 4 of 5


def test_one_order_alone():
    pairs = [Decided("", "A>B", ("A>B",)), Decided("", "B>A", ("A=B",)), Decided("", "B>A", ("A>B",))]
    found = judge_bench("rm", pairs)
    assert found.n_orders == 1
    overall = found.parts[-1]
    assert (overall.n_correct, overall.n_tied, overall.n_incorrect, overall.n_inconsistent) == (1, 1, 1, 0)


def test_too_few_decisions_are_refused():
    pairs = [Decided("", "A>B", ("A>B", "A>B")), Decided("", "A>B", ("A>B", None)), Decided("", "A>B", ())]
    with pytest.raises(UserError, match="1 of 3 pairs have a decision in each order"):
        judge_bench("mine", pairs)
    with pytest.raises(UserError, match="0 of 1 pairs"):
        judge_bench("mine", [Decided("", "A>B", ())])
