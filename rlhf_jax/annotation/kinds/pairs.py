"""`annotate_pairs`: rows with two outputs in, the same rows with a preference and its provenance out.

`annotate_samples` makes the pairs first, of rows with several sampled outputs to a prompt. Below them stand the orders
in which a judge is shown a pair, and the reading of rows with one output or several, which other kinds use too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_jax.annotation.answers.answers import NOISE, OK, TIE_IDENTICAL
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.asking import Annotations, Ask, Options, Reply, annotate, pool_of_kind
from rlhf_jax.annotation.labels.judgment_rows import pair_row
from rlhf_jax.annotation.labels.labels_file import check_columns
from rlhf_jax.annotation.parsing.contracts import BOTH_AGREE, BOTH_TWO_GAMES, PAIRWISE, SEEDED, Parsed
from rlhf_jax.data.files.tables import shown, valid_values
from rlhf_jax.errors import UserError


def annotate_pairs(
    rows: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    seed: int = 0,
    p_label_flip: float = 0.0,
    **options: object,
) -> Annotations:
    """Ask the pool which output of each row is better.

    rows: dicts with `instruction`, `output_1`, `output_2` and optionally `input`; other columns are kept.
    pool: a PoolSpec, or the path of a pool or judge file.
    seed, p_label_flip: order, pool choice and noise as AlpacaFarm's (`random_choices`); a share p_label_flip in
        [0, 0.5] of the labels is flipped, without asking.
    options: how to ask, see `asking.Options`.

    Returns rows with `preference` in [1, 2] (1: output_1 is better, 1.5: identical outputs or a tie) or None,
    `status` (see `answers`) and the columns of `labels_file.schema`; and a summary. A judge whose order is
    both_two_games gives two rows per pair, one for each order.
    Errors: UserError for a bad row, file or setting, a refused key, an endpoint that cannot be reached. The
    answers until then are in the cache, and the same call continues.
    """
    pool = pool_of_kind(pool, PAIRWISE)
    how = Options(**options)
    if not 0.0 <= p_label_flip <= 0.5:
        raise UserError(
            f"p_label_flip: found {p_label_flip}; give a share between 0 and 0.5 (0.5 is all noise)"
        )
    # All rows are checked before the first request: a bad one at the end must not cost a run.
    rows = [checked(row, i, ("output_1", "output_2")) for i, row in enumerate(rows)]
    check_columns(rows, PAIRWISE)
    plans = [plan for row in rows for plan in _plans(row, pool, seed, p_label_flip)]

    def label(replies: Mapping[Ask, Reply]) -> list[dict]:
        return [_labelled(plan, replies, pool) for plan in plans]

    asks = [plan.asks for plan in plans]
    return annotate(asks, pool, seed, how, label, p_label_flip=p_label_flip)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will become of a row: a label that needs no judge (`parsed`), or questions to one."""

    row: dict
    parsed: Parsed | None = None
    asks: tuple[Ask, ...] = ()


def _plans(row: dict, pool: PoolSpec, seed: int, p_label_flip: float) -> list[_Plan]:
    # Equal outputs are a tie without asking, as in AlpacaEval, and whatever the noise would be.
    if row["output_1"] == row["output_2"]:
        return [_Plan(row, Parsed(1.5, TIE_IDENTICAL))]
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    text = random_choices.seed_text(row["instruction"], row["input"])
    # Drawn before asking, as AlpacaFarm does: a label that is noise anyway costs no request.
    noise = random_choices.noisy_preference(text, p_label_flip, seed)
    if noise is not None:
        return [_Plan(row, Parsed(float(noise), NOISE))]
    index = random_choices.pool_index(text, pool.weights, seed)
    policy = pool.judges[index].order
    asks = [
        Ask(index, order, (merged, *(row[name] for name in SHOWN[order])))
        for order in orders_of(policy, merged, seed)
    ]
    # Arena-Hard counts the two orders as two games; the other policies make one label of both.
    if policy == BOTH_TWO_GAMES:
        return [_Plan(row, None, (ask,)) for ask in asks]
    return [_Plan(row, None, tuple(asks))]


def _labelled(plan: _Plan, replies: Mapping[Ask, Reply], pool: PoolSpec) -> dict:
    if not plan.asks:
        return pair_row(plan.row, plan.parsed, [], {})
    found = [replies[ask] for ask in plan.asks]
    policy = pool.judges[plan.asks[0].pool_index].order
    parsed, columns = judged(found, [ask.order for ask in plan.asks], policy)
    return pair_row(plan.row, parsed, found, columns)


# The orders in which a pair is shown: seeded is one, drawn by the prompt (AlpacaEval); both_average the mean of both;
# both_agree the label both give, a tie where they differ (FastChat, sparse_feedback); both_two_games each a judgment
# of its own (Arena-Hard).

# The outputs of a row in the order they are shown in.
SHOWN = {"12": ("output_1", "output_2"), "21": ("output_2", "output_1")}


def orders_of(policy: str, merged: str, seed: int) -> tuple[str, ...]:
    """Return the orders in which a pair is shown; `merged` is its instruction and input."""
    if policy == SEEDED:
        return ("21",) if random_choices.is_switched(merged, seed) else ("12",)
    return ("12", "21")


def in_rows_order(parsed: Parsed, order: str) -> Parsed:
    """Turn a label for the order shown into one for the row's own order of outputs."""
    if parsed.preference is None or order == "12":
        return parsed
    # 3 - x swaps the two ends of [1, 2].
    return replace(parsed, preference=3.0 - parsed.preference)


def judged(replies: Sequence[Reply], orders: Sequence[str], policy: str) -> tuple[Parsed, dict]:
    """Make one label of the reply to one order or to both, and the columns that say how.

    One of two orders without an answer leaves the pair without a label, with the status of that order.
    """
    said = [in_rows_order(reply.parsed, order) for reply, order in zip(replies, orders, strict=True)]
    if len(said) == 1:
        return said[0], {"order": orders[0]}
    first, swapped = (one.preference for one in said)
    known = first is not None and swapped is not None
    columns = {
        "order": "both",
        "preference_first_order": first,
        "preference_swapped": swapped,
        "position_consistent": side(first) == side(swapped) if known else None,
    }
    # One order alone would carry the very position bias that the other should cancel.
    if not known:
        return next(one for one in said if one.status != OK), columns
    masses = [one.mass for one in said if one.mass is not None]
    mean = (first + swapped) / 2
    if policy == BOTH_AGREE and side(first) != side(swapped):
        mean = 1.5
    # The label is only as sure as the less sure of the two answers. There is room for one explanation, and that of
    # the first order stands beside its raw_text.
    return Parsed(mean, OK, mass=min(masses, default=None), explanation=said[0].explanation), columns


def side(preference: float) -> int:
    """Return 1 or 2 for the better output, 0 for a tie."""
    return 0 if preference == 1.5 else 1 if preference < 1.5 else 2


# Pairs made of the samples of a prompt.


def annotate_samples(
    rows: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    seed: int = 0,
    one_pair_per_prompt: bool = True,
    **options: object,
) -> Annotations:
    """Pair the outputs of each prompt (`pair_samples`) and annotate the pairs; options as `annotate_pairs`.

    The summary also holds the counts of `pair_samples`. Errors: UserError, also when no prompt has two
    different outputs.
    """
    pairs, counts = pair_samples(rows, seed=seed, one_pair_per_prompt=one_pair_per_prompt)
    # Here, too, where the rows have the numbers that the caller knows them by.
    check_columns(rows, PAIRWISE)
    if rows and not pairs:
        raise UserError(
            f"rows: none of {counts['prompts']} prompts has two different outputs; sample more of each"
        )
    annotated, summary = annotate_pairs(pairs, pool, seed=seed, **options)
    return Annotations(annotated, summary | counts)


def pair_samples(
    rows: Sequence[Mapping], *, seed: int = 0, one_pair_per_prompt: bool = True
) -> tuple[list[dict], dict]:
    """Pair different outputs to the same prompt.

    rows: dicts with `instruction`, optionally `input`, and `output` or `outputs`: a text or a list of texts. Rows
        with the same prompt belong together. Repeated outputs of a prompt count once. `ended`, whether each
        output ended by itself, becomes `ended_1` and `ended_2`.
    Each output is `output_1` once, with another of the same prompt as `output_2` (a seeded derangement);
    `one_pair_per_prompt` keeps the first of these (AlpacaFarm's default). `sample_id` is the place of output_1
    among the prompt's distinct outputs.

    Returns the pairs and {"prompts", "samples", "repeated_samples", "prompts_without_pair"}.
    Errors: UserError naming the row and the column.
    """
    prompts: dict[tuple[str, str], dict] = {}
    samples = 0
    for i, row in enumerate(map(valid_values, rows)):
        outputs, _ = outputs_of(row, i)
        samples += len(outputs)
        rest = beside(row)
        # One row per sample or one row with a list: both come together here, wherever they stand in the file.
        prompt = prompts.setdefault((row["instruction"], rest["input"]), {"rest": rest, "outputs": {}})
        for output, ended in zip(outputs, ended_of(row, len(outputs), i), strict=True):
            # Of equal texts, one that ended by itself shows that the text is whole.
            prompt["outputs"][output] = ended or prompt["outputs"].get(output, ended)
    pairs, without = [], 0
    for (instruction, input_text), prompt in prompts.items():
        outputs = list(prompt["outputs"])
        if len(outputs) < 2:
            without += 1
            continue
        partners = random_choices.derangement(
            len(outputs), random_choices.seed_text(instruction, input_text), seed
        )
        kept = zip(outputs, partners, strict=True)
        made = [
            {"sample_id": k, **prompt["rest"], "output_1": output, "output_2": outputs[j]}
            | ended_sides(prompt["outputs"][output], prompt["outputs"][outputs[j]])
            for k, (output, j) in enumerate(kept)
        ]
        # AlpacaFarm labels one pair per prompt; with all, prompts with many samples weigh more in training.
        pairs += made[:1] if one_pair_per_prompt else made
    distinct = sum(len(prompt["outputs"]) for prompt in prompts.values())
    counts = {
        "prompts": len(prompts),
        "samples": samples,
        "repeated_samples": samples - distinct,
        "prompts_without_pair": without,
    }
    return pairs, counts


# Input rows, checked and read.

_LISTS = (list, tuple)
_OF_OUTPUTS = ("output", "outputs", "generators", "ended")


def checked(row: Mapping, i: int, outputs: Sequence[str]) -> dict:
    """Check that the columns that matter hold text and return a copy; a missing or null input becomes ""."""
    row = dict(row)
    row["input"] = row.get("input") if row.get("input") is not None else ""
    for column in ("instruction", *outputs, "input"):
        if column not in row:
            there = ", ".join(map(repr, row))
            raise UserError(f"rows[{i}]: {column}: missing; the row has {there}")
        if not isinstance(row[column], str):
            raise UserError(f"rows[{i}]: {column}: found {shown(row[column])}; it must be text")
    # Neither a request nor a file can hold a lone surrogate, in whatever column it stands.
    return valid_values(row)


def outputs_of(row: Mapping, i: int) -> tuple[list[str], list]:
    """Return the outputs of `rows[i]`, from `output` or `outputs`, a text or a list of texts; and its `generators`.

    Errors: UserError naming the row and the column.
    """
    # A table has every column in every row: in files of both kinds of rows one of the two is null.
    column = "outputs" if row.get("outputs") is not None else "output"
    for wanted in ("instruction", column):
        if row.get(wanted) is None:
            raise UserError(f"rows[{i}]: {wanted}: missing; the row has {', '.join(map(repr, row))}")
    found = row[column]
    outputs = [found] if isinstance(found, str) else found
    wrong = [x for x in outputs if not isinstance(x, str)] if isinstance(outputs, _LISTS) else [found]
    if wrong:
        raise UserError(f"rows[{i}]: {column}: found {shown(wrong[0])}; it must be text or a list of texts")
    for name in ("instruction", "input"):
        if not isinstance(row[name] if name == "instruction" else row.get(name) or "", str):
            raise UserError(f"rows[{i}]: {name}: found {shown(row[name])}; it must be text")
    generators = row.get("generators") or []
    if not isinstance(generators, _LISTS):
        raise UserError(f"rows[{i}]: generators: found {shown(generators)}; it must be a list")
    if generators and len(generators) != len(outputs):
        raise UserError(
            f"rows[{i}]: generators: found {len(generators)} for {len(outputs)} outputs; give one for each"
        )
    return list(outputs), list(generators)


def beside(row: Mapping) -> dict:
    """Return the columns of a row that are not about single outputs; a null `input` becomes ""."""
    return {name: value for name, value in row.items() if name not in _OF_OUTPUTS} | {
        "input": row.get("input") or ""
    }


def ended_of(row: Mapping, count: int, i: int) -> list[bool | None]:
    """Return whether each of the `count` outputs of `rows[i]` ended by itself; None where the row does not say.

    Errors: UserError naming the row.
    """
    found = row.get("ended")
    if found is None:
        return [None] * count
    ended = [found] if isinstance(found, bool) else list(found) if isinstance(found, Sequence) else [found]
    if len(ended) != count or not all(x is None or isinstance(x, bool) for x in ended):
        raise UserError(f"rows[{i}]: ended: found {found!r}; give true or false for each of {count} outputs")
    return ended


def ended_sides(one: bool | None, two: bool | None) -> dict[str, bool | None]:
    """Make the columns that say whether a pair's outputs ended; none where nothing is known."""
    return {} if one is None and two is None else {"ended_1": one, "ended_2": two}
