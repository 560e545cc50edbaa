"""`annotate_completions`: instructions in, a model's answers out: demonstrations for SFT, outputs to evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.answers.answers import NOT_ASKED, OK
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.judges.specs import PoolSpec
from rlhf_jax.annotation.kinds.asking import Annotations, Ask, Options, Reply, annotate, pool_of_kind
from rlhf_jax.annotation.kinds.pairs import checked
from rlhf_jax.annotation.labels.judgment_rows import completion_row
from rlhf_jax.annotation.labels.labels_file import check_columns
from rlhf_jax.annotation.parsing.contracts import COMPLETION, failed
from rlhf_jax.errors import UserError


def annotate_completions(
    rows: Sequence[Mapping],
    pool: PoolSpec | str | Path,
    *,
    seed: int = 0,
    n_samples: int = 1,
    max_prompt_words: int = 2000,
    max_prompt_chars: int = 8000,
    **options: object,
) -> Annotations:
    """Ask models to follow each instruction.

    rows: dicts with `instruction` and optionally `input`; other columns are kept, an `output` is replaced.
    n_samples: answers to each, every one asked for anew and cached by itself.
    max_prompt_words, max_prompt_chars: prompts this long or longer are not sent (dpo-rlaif's limits).
    seed: of the choice among the pool's models. options: how to ask, see `asking.Options`.

    Returns a row per answer with `output`, None where there is none (status says why: an answer that did not
    end by itself is truncated), `generator`, the judge file's name, and `sample_index`; and a summary.
    Errors: as `annotate_pairs`.
    """
    pool = pool_of_kind(pool, COMPLETION)
    how = Options(**options)
    for name, value in (
        ("n_samples", n_samples),
        ("max_prompt_words", max_prompt_words),
        ("max_prompt_chars", max_prompt_chars),
    ):
        if value < 1:
            raise UserError(f"{name}: found {value}; give at least 1")
    plans = []
    rows = [checked(row, i, ()) for i, row in enumerate(rows)]
    check_columns(rows, COMPLETION)
    for row in rows:
        # A prompt that is too long keeps its rows, with a status, so that no input is lost in silence.
        long = _too_long(row, max_prompt_words, max_prompt_chars)
        # Drawn per prompt, not per sample: all samples of a prompt are by one model.
        index = random_choices.pool_index(
            random_choices.seed_text(row["instruction"], row["input"]), pool.weights, seed
        )
        data = (row["instruction"], row["input"])
        # The number of a sample is part of its request's hash: the cache has an answer to each.
        plans += [(row, k, long, None if long else Ask(index, "", data, k)) for k in range(n_samples)]

    def label(replies: Mapping[Ask, Reply]) -> list[dict]:
        return [
            completion_row(row, replies[ask].parsed, replies[ask], k)
            if ask
            else completion_row(row, failed(long, NOT_ASKED), None, k)
            for row, k, long, ask in plans
        ]

    return annotate([() if ask is None else (ask,) for *_, ask in plans], pool, seed, how, label)


def _too_long(row: Mapping, max_words: int, max_chars: int) -> str:
    """Why a prompt is not sent, "" when it is."""
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    if len(merged) >= max_chars:
        return f"the prompt has {len(merged)} characters, not below {max_chars}"
    words = len(merged.split())
    return f"the prompt has {words} words, not below {max_words}" if words >= max_words else ""


def model_outputs(rows: Sequence[Mapping]) -> list[dict]:
    """Turn completed rows into model outputs, which are demonstrations too; rows without an answer are left out.

    Columns: instruction, input, output, generator and, where known, dataset and datasplit.
    """
    kept = ("instruction", "input", "output", "generator")
    # An answer that was cut off is left out, too: as a demonstration it would teach to stop in the middle.
    return [
        {name: row[name] for name in kept} | {n: row[n] for n in ("dataset", "datasplit") if row.get(n)}
        for row in rows
        if row["status"] == OK
    ]
