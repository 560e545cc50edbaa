"""`annotate_samples`: rows with several sampled outputs in, compared pairs out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.pairs import Annotations, annotate_pairs
from rlhf_jax.data.files.tables import shown, valid_values
from rlhf_jax.errors import UserError


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


_LISTS = (list, tuple)
_OF_OUTPUTS = ("output", "outputs", "generators", "ended")


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


def outputs_of(row: Mapping, i: int) -> tuple[list[str], list]:
    """Return the outputs of `rows[i]`, from `output` or `outputs`, a text or a list of texts; and its `generators`.

    Errors: UserError naming the row and the column.
    """
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
    if rows and not pairs:
        raise UserError(
            f"rows: none of {counts['prompts']} prompts has two different outputs; sample more of each"
        )
    annotated, summary = annotate_pairs(pairs, pool, seed=seed, **options)
    return Annotations(annotated, summary | counts)
