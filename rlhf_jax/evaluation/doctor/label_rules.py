"""Rules for label files: pairs that are labelled both ways, preferences that go in a circle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING, Rule, Seen
from rlhf_jax.evaluation.doctor.trends import share_interval
from rlhf_jax.evaluation.measures.pair_order import one_way_round, pair_of

# Of pairs with several labels, in percent. MT-bench's judges contradict themselves on 12.9 % when outputs are
# exchanged; two people on 34 % (AlpacaFarm: agreement 66 %); coins on 50 %.
_SOME, _AS_PEOPLE, _AS_COINS = 15.0, 34.0, 45.0
# Of three outputs of a prompt with all three labels, in percent; coins make a circle of a quarter of them.
_CIRCLES, _MANY_CIRCLES = 10.0, 20.0
_FEWEST = 20  # A share of fewer has an interval as wide as the difference between people and coins.


class Contradictions(NamedTuple):
    """How often labels of a file contradict each other.

    repeated: pairs with two or more decided labels. both_ways: those of them that are labelled both ways.
    triples: three outputs of a prompt with a decided label on each two. circles: those in which each output is
    preferred to one of the others. noise: labels that are left out, as they are noise that was asked for.
    """

    repeated: int
    both_ways: int
    triples: int
    circles: int
    noise: int = 0


def count_contradictions(rows: Sequence[Mapping]) -> Contradictions:
    """Counts over label rows: instruction, input, output_1, output_2, preference in [1, 2].

    Ties and missing labels are left out, and labels that the annotate job drew as noise (is_noisy): AlpacaFarm's noise
    is the same for all pairs of a prompt, so its labels of three outputs are a circle nearly always.
    """
    labelled = [row for row in rows if row.get("preference") not in (None, 1.5)]
    decided = [row for row in labelled if not row.get("is_noisy")]
    labels: dict[tuple, list[bool]] = defaultdict(list)
    for row in one_way_round(decided).rows:
        labels[pair_of(row)].append(row["preference"] > 1.5)
    repeated = [some for some in labels.values() if len(some) > 1]
    beaten: dict[tuple, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (*prompt, one, two), some in labels.items():
        votes = sum(some) * 2 - len(some)
        if votes and one != two:
            better, worse = (two, one) if votes > 0 else (one, two)
            beaten[tuple(prompt)][better].add(worse)
    counts = [_circles(graph) for graph in beaten.values()]
    return Contradictions(
        repeated=len(repeated),
        both_ways=sum(len(set(some)) > 1 for some in repeated),
        triples=sum(triples for triples, _ in counts),
        circles=sum(circles for _, circles in counts),
        noise=len(labelled) - len(decided),
    )


def _circles(beaten: Mapping[str, set[str]]) -> tuple[int, int]:
    """(triples with all three labels, circles among them) of one prompt: output -> outputs that it was preferred to."""
    ordered = circles = 0
    for better, worse in beaten.items():
        for middle in worse:
            # a > b > c with a > c is counted once, at its ends; a circle from each of its three outputs.
            beyond = beaten.get(middle, set())
            ordered += len(beyond & worse)
            circles += sum(better in beaten.get(last, ()) for last in beyond)
    return ordered + circles // 3, circles // 3


def labels_contradict(found: Contradictions) -> Seen | None:
    """Pairs are labelled both ways, or preferences go in a circle."""
    said, grades = [], []
    if found.repeated >= _FEWEST:
        low = share_interval(found.both_ways / found.repeated, found.repeated)[0]
        grades.append((low > _SOME) + (low > _AS_PEOPLE) + (low > _AS_COINS))
        if grades[-1]:
            share = found.both_ways / found.repeated
            said.append(
                f"{found.both_ways} of {found.repeated} pairs with several labels both ways ({share:.0%})"
            )
    if found.triples >= _FEWEST:
        low = share_interval(found.circles / found.triples, found.triples)[0]
        grades.append((low > _CIRCLES) + (low > _MANY_CIRCLES))
        if grades[-1]:
            share = found.circles / found.triples
            said.append(f"{found.circles} of {found.triples} triples of outputs in a circle ({share:.0%})")
    if not said:
        return None
    beside = f"; beside {found.noise} labels of the noise that was asked for" if found.noise else ""
    return Seen((NOTE, WARNING, PROBLEM)[max(grades) - 1], "; ".join(said) + beside)


LABEL_RULES = (
    Rule(
        "labels contradict each other",
        "The same pair is labelled both ways, or three outputs of a prompt beat each other in a circle.",
        "Label noise, annotators of different tastes, or a judge whose verdict moves with the order. Two people "
        "contradict each other on a third of pairs, coins on half; coins make circles of a quarter of triples.",
        ("p_label_flip", "judges", "label_smoothing"),
        labels_contradict,
    ),
)
