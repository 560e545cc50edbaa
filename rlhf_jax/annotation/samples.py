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

    rows: dicts with `instruction`, optionally `input`, and `output` or `outputs`: a text or a list of texts. Rows
        with the same prompt belong together. Repeated outputs of a prompt count once.
    Each output is `output_1` once, with another of the same prompt as `output_2` (a seeded derangement);
    `one_pair_per_prompt` keeps the first of these (AlpacaFarm's default). `sample_id` is the place of output_1
    among the prompt's distinct outputs.

    Returns the pairs and {"prompts", "samples", "repeated_samples", "prompts_without_pair"}.
    Errors: UserError naming the row and the column.
    """
    prompts: dict[tuple[str, str], dict] = {}
    samples = 0
    for i, row in enumerate(rows):
        outputs, _ = outputs_of(row, i)
        samples += len(outputs)
        kept = {name: value for name, value in row.items() if name not in ("output", "outputs", "generators")}
        rest = kept | {"input": row.get("input") or ""}
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
        made = [
            {"sample_id": k, **prompt["rest"], "output_1": output, "output_2": outputs[j]}
            for k, (output, j) in enumerate(kept)
        ]
        pairs += made[:1] if one_pair_per_prompt else made
    distinct = sum(len(prompt["outputs"]) for prompt in prompts.values())
    counts = {
        "prompts": len(prompts),
        "samples": samples,
        "repeated_samples": samples - distinct,
        "prompts_without_pair": without,
    }
    return pairs, counts


def outputs_of(row: Mapping, i: int) -> tuple[list[str], list]:
    """The outputs of `rows[i]`, from `output` or `outputs`, a text or a list of texts; and its `generators`.

    Errors: UserError naming the row and the column.
    """
    column = "outputs" if row.get("outputs") is not None else "output"
    for wanted in ("instruction", column):
        if row.get(wanted) is None:
            raise UserError(f"rows[{i}]: {wanted}: missing; the row has {', '.join(map(repr, row))}")
    outputs = [row[column]] if isinstance(row[column], str) else list(row[column])
    wrong = next((output for output in outputs if not isinstance(output, str)), None)
    if wrong is not None:
        raise UserError(f"rows[{i}]: {column}: found {wrong!r}; it must be text or a list of texts")
    for name in ("instruction", "input"):
        if not isinstance(row.get(name) or "", str):
            raise UserError(f"rows[{i}]: {name}: found {row[name]!r}; it must be text")
    generators = list(row.get("generators") or [])
    if generators and len(generators) != len(outputs):
        raise UserError(
            f"rows[{i}]: generators: found {len(generators)} for {len(outputs)} outputs; give one for each"
        )
    return outputs, generators


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
