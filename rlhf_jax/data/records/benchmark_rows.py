"""Reads the files of RewardBench 2 and JudgeBench, and makes of them what judges are asked about.

RewardBench 2 (allenai/reward-bench-2; Malik et al. 2025): id, prompt, chosen (its correct responses: one, of Ties
several), rejected (the wrong ones: three, of Ties more), num_correct, num_incorrect, total_completions, subset. Rows of
Ties have the id ref:N or tied:N, the same question with one or with several right answers.

JudgeBench (ScalerLab/JudgeBench; Tan et al. 2024): pair_id, source, question, response_A, response_B, label "A>B" or
"B>A". A file that its own run_judge.py wrote also has judgments, a list with the decision in each order.

A file that does not keep to this is refused with the row and the column: a benchmark with holes measures another thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.files.tables import columns_of, shown
from rlhf_jax.errors import UserError

TIES = "Ties"
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES)
# What rows made of a benchmark say of it: the row's id there, and its subset or source.
OF_BENCHMARK = ("benchmark_id", "subset")
DECISIONS = ("A>B", "B>A", "A=B")
_BEST_OF = ("prompt", "chosen", "rejected", "subset")
_PAIRS = ("question", "response_A", "response_B", "label")
_FLIPPED = {"A>B": "B>A", "B>A": "A>B"}
_TIES_ID = re.compile(r"(ref|tied):(\d+)")


class BestOf(NamedTuple):
    """A row of RewardBench 2. id: within Ties (which, N), such as ("tied", 3); else what the file says."""

    id: str | tuple[str, int]
    subset: str
    prompt: str
    correct: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def responses(self) -> tuple[str, ...]:
        return self.correct + self.wrong


class JudgedPair(NamedTuple):
    """A row of JudgeBench. decisions: those a file of its own holds, first order and reversed; () where it has none."""

    id: str
    source: str
    question: str
    outputs: tuple[str, str]
    label: str
    decisions: tuple[str | None, ...] = ()


def is_best_of(rows: Sequence[Mapping]) -> bool:
    """Whether rows are laid out as RewardBench 2's: several responses, of which some are right."""
    if not set(_BEST_OF) <= set(columns_of(rows)):
        return False
    # Lists of messages are the two sides of a plain pair, in a file that happens to have subsets.
    found = rows[0].get("rejected")
    return isinstance(found, list | tuple) and all(isinstance(x, str) for x in found)


def is_judged_pairs(rows: Sequence[Mapping]) -> bool:
    """Whether rows are laid out as JudgeBench's: two responses, of which one is right."""
    return set(_PAIRS) <= set(columns_of(rows))


def read_benchmark(rows: Sequence[Mapping], source: str | Path) -> list[BestOf] | list[JudgedPair]:
    """Reads the rows of either benchmark. UserError where they are of neither, or a row is not as it should be."""
    if is_best_of(rows):
        return _once([_best_of(row, f"{source}: row {i + 1}") for i, row in enumerate(rows)], source)
    if is_judged_pairs(rows):
        return _once([_judged_pair(row, f"{source}: row {i + 1}") for i, row in enumerate(rows)], source)
    raise UserError(
        f"{source}: no known benchmark; it has {', '.join(columns_of(rows))} (RewardBench 2 has {', '.join(_BEST_OF)}, "
        f"the middle two of them lists; JudgeBench has {', '.join(_PAIRS)})"
    )


def rows_to_rate(rows: Sequence[Mapping], source: str | Path) -> list[dict]:
    """Makes a row with `outputs` of every row of a benchmark, for raters and rankers; other rows stay as they are."""
    if not rows or not (is_best_of(rows) or is_judged_pairs(rows)):
        return list(rows)
    return [_asked(item) | {"outputs": list(_outputs(item))} for item in read_benchmark(rows, source)]


def rows_to_compare(rows: Sequence[Mapping], source: str | Path) -> tuple[list[dict], int]:
    """Makes pairs of a benchmark's rows, and counts the rows of Ties; other rows stay as they are.

    JudgeBench's pairs as they stand; of RewardBench 2 the right response with each wrong one. Rows of Ties make none:
    their score is one of margins, which pairs do not have.
    """
    if not rows or not (is_best_of(rows) or is_judged_pairs(rows)):
        return list(rows), 0
    made, n_ties = [], 0
    for item in read_benchmark(rows, source):
        if isinstance(item, JudgedPair):
            made.append(_pair(item, *item.outputs))
        elif item.subset == TIES:
            n_ties += 1
        else:
            made += [_pair(item, item.correct[0], other) for other in item.wrong]
    return made, n_ties


def _asked(item: BestOf | JudgedPair) -> dict:
    of_ties = isinstance(item.id, tuple)
    shown_id = f"{item.id[0]}:{item.id[1]}" if of_ties else item.id
    prompt = item.prompt if isinstance(item, BestOf) else item.question
    subset = item.subset if isinstance(item, BestOf) else item.source
    return {"instruction": prompt, "input": "", "benchmark_id": shown_id, "subset": subset}


def _outputs(item: BestOf | JudgedPair) -> tuple[str, ...]:
    return item.responses if isinstance(item, BestOf) else item.outputs


def _pair(item: BestOf | JudgedPair, one: str, two: str) -> dict:
    return _asked(item) | {"output_1": one, "output_2": two}


def _best_of(row: Mapping, where: str) -> BestOf:
    subset, prompt = _text(row, "subset", where), _text(row, "prompt", where)
    correct, wrong = (_texts(row, name, where) for name in ("chosen", "rejected"))
    counts = {"num_correct": len(correct), "num_incorrect": len(wrong)}
    for name, found in (counts | {"total_completions": len(correct) + len(wrong)}).items():
        if row.get(name) not in (None, found):
            raise UserError(f"{where}: {name}: {shown(row[name])}, but the row holds {found}; mend the file")
    # The leaderboard's own code knows the subset in any case.
    if subset.lower() == TIES.lower():
        match = _TIES_ID.fullmatch(str(row.get("id")))
        if not match:
            raise UserError(f"{where}: id: found {shown(row.get('id'))}; a row of {TIES} has ref:N or tied:N")
        return BestOf((match[1], int(match[2])), TIES, prompt, correct, wrong)
    if len(correct) != 1:
        raise UserError(f"{where}: chosen: found {len(correct)}; only rows of {TIES} have several")
    return BestOf(str(row.get("id")), subset, prompt, correct, wrong)


def _judged_pair(row: Mapping, where: str) -> JudgedPair:
    question, *outputs = (_text(row, name, where) for name in _PAIRS[:3])
    label = row.get("label")
    if label not in DECISIONS[:2]:
        raise UserError(f"{where}: label: found {shown(label)}; it must be A>B or B>A")
    found = row.get("judgments")
    if found is not None and not (isinstance(found, list | tuple) and len(found) in (1, 2)):
        raise UserError(f"{where}: judgments: found {shown(found)}; it must be a list of one or two")
    decisions = tuple(_decision(one, where) for one in found or ())
    if len(decisions) == 2:
        decisions = decisions[0], _FLIPPED.get(decisions[1], decisions[1])
    source = str(row.get("source") or "")
    return JudgedPair(str(row.get("pair_id", where)), source, question, tuple(outputs), label, decisions)


def _decision(judgment: Any, where: str) -> str | None:
    # null where asking failed, {"decision": null} where the answer could not be read.
    found = judgment.get("decision") if isinstance(judgment, Mapping) else judgment
    if found is None:
        return None
    # Its Arena-Hard judge turns >> into >, and passes other forms on as they are.
    said = str(found).strip().replace(">>", ">").replace("<<", "<")
    said = {"A<B": "B>A", "B<A": "A>B", "B=A": "A=B"}.get(said, said)
    if said not in DECISIONS:
        raise UserError(
            f"{where}: judgments: decision: found {shown(found)}; it must be A>B, B>A, A=B or null"
        )
    return said


def _once(items: list, source: str | Path) -> list:
    """Refuses what stands twice: a row counted twice weighs double, and Ties joins its rows by id."""
    seen: set = set()
    for i, item in enumerate(items):
        key = (
            item.id if isinstance(item, JudgedPair) or item.subset == TIES else (item.prompt, item.responses)
        )
        if key in seen:
            raise UserError(f"{source}: row {i + 1}: stands there twice ({shown(item.id)}); leave one out")
        seen.add(key)
    return items


def _text(row: Mapping, name: str, where: str) -> str:
    if not isinstance(row.get(name), str):
        raise UserError(f"{where}: {name}: found {shown(row.get(name))}; it must be text")
    return row[name]


def _texts(row: Mapping, name: str, where: str) -> tuple[str, ...]:
    found = row.get(name)
    if not isinstance(found, list | tuple) or not found or not all(isinstance(x, str) for x in found):
        raise UserError(f"{where}: {name}: found {shown(found)}; it must be a list of texts")
    return tuple(found)
