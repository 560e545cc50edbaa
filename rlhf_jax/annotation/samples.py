"""`annotate_samples`: rows with several sampled outputs in, compared pairs out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation import seeding
from rlhf_jax.annotation.pairs import Annotations, annotate_pairs
from rlhf_jax.annotation.specs import PoolSpec
from rlhf_jax.errors import UserError


def pair_samples(
    rows: Sequence[Mapping], *, seed: int = 0, one_pair_per_prompt: bool = True
) -> tuple[list[dict], dict]:
    """Pairs of different outputs to the same prompt.

    rows: dicts with `instruction`, optionally `input`, and `output`: a text or a list of texts. Rows with the
        same prompt belong together. Repeated outputs of a prompt count once.
    Each output is `output_1` once, with another of the same prompt as `output_2` (a seeded derangement);
    `one_pair_per_prompt` keeps the first of these (AlpacaFarm's default).

    Returns the pairs and {"prompts", "samples", "repeated_samples", "prompts_without_pair"}.
    Errors: UserError naming the row and the column.
    """
    prompts: dict[tuple[str, str], dict] = {}
    samples = 0
    for i, row in enumerate(rows):
        outputs = _outputs(row, i)
        samples += len(outputs)
        rest = {name: value for name, value in row.items() if name != "output"} | {
            "input": row.get("input") or ""
        }
        prompt = prompts.setdefault((row["instruction"], rest["input"]), {"rest": rest, "outputs": {}})
        prompt["outputs"].update(dict.fromkeys(outputs))
    pairs, without = [], 0
    for (instruction, input_text), prompt in prompts.items():
        outputs = list(prompt["outputs"])
        if len(outputs) < 2:
            without += 1
            continue
        partners = seeding.derangement(len(outputs), seeding.seed_text(instruction, input_text), seed)
        kept = zip(outputs, partners, strict=True)
        made = [{**prompt["rest"], "output_1": output, "output_2": outputs[j]} for output, j in kept]
        pairs += made[:1] if one_pair_per_prompt else made
    distinct = sum(len(prompt["outputs"]) for prompt in prompts.values())
    counts = {
        "prompts": len(prompts),
        "samples": samples,
        "repeated_samples": samples - distinct,
        "prompts_without_pair": without,
    }
    return pairs, counts


def _outputs(row: Mapping, i: int) -> list[str]:
    for column in ("instruction", "output"):
        if row.get(column) is None:
            raise UserError(f"rows[{i}]: {column}: missing; the row has {', '.join(map(repr, row))}")
    outputs = [row["output"]] if isinstance(row["output"], str) else list(row["output"])
    wrong = next((output for output in outputs if not isinstance(output, str)), None)
    if wrong is not None:
        raise UserError(f"rows[{i}]: output: found {wrong!r}; it must be text or a list of texts")
    return outputs


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
