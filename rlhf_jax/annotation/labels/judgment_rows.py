"""The rows of labels.parquet, made of verdicts: label, ids, provenance and cost; and counts over rows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rlhf_jax import __version__
from rlhf_jax.annotation.answers.answers import LABELLED, NOISE, OK, Answer
from rlhf_jax.annotation.costs.prices import price_usd
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.parsing.contracts import COMPLETION, PAIRWISE, RANKING, RATING, Parsed, is_number
from rlhf_jax.annotation.parsing.parsers import PARSER_VERSION
from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.annotation.kinds.asking import Reply

# What is known of a row only when a judge was asked; None for ties and noise.
_ASKED = """
    order pool_index judge_id annotator provider endpoint_origin api model_requested model_returned
    system_fingerprint prompt_template prompt_template_sha parser parser_version sampling transport
    batch_id request_hash request_hash_swapped request_id created_at latency_ms n_attempts examples_in_request
    preference_first_order preference_swapped position_consistent tokens_in tokens_cached tokens_out
    tokens_reasoning price_usd coverage_mass explanation raw_text raw_text_swapped top_logprobs
    finish_reason refusal_category
"""
ASKED_COLUMNS = tuple(_ASKED.split())
_TOKENS = ("tokens_in", "tokens_cached", "tokens_out", "tokens_reasoning")


def pair_row(row: dict, parsed: Parsed, replies: Sequence[Reply], columns: dict) -> dict:
    """Add its preference to `row`. `columns`: how orders were used (`pairs.judged`), empty when nobody was asked."""
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    outputs = (row["output_1"], row["output_2"])
    preference = parsed.preference
    label = {
        # Sorted: a pair keeps its id when its outputs change places.
        "pair_id": _digest(merged, *sorted(outputs)),
        "preference": preference,
        "p_2": None if preference is None else preference - 1.0,
        "tie": preference == 1.5,
        "strong": parsed.strong,
        "is_noisy": parsed.status == NOISE,
        # Noise replaces the judge before it is asked, so there is no clean label under it.
        "preference_clean": None if parsed.status == NOISE else preference,
    }
    return _row(row, PAIRWISE, parsed, replies, outputs) | label | columns


def rating_row(row: dict, parsed: Parsed, reply: Reply) -> dict:
    """Add to `row`, which has one `output`, its rating and the criteria it is made of."""
    aspects = [{"aspect": name, "rating": value} for name, value in parsed.aspects]
    label = {"rating": parsed.rating, "aspects": aspects or None}
    return _row(row, RATING, parsed, [reply], (row["output"],)) | label


def ranking_row(
    row: dict, parsed: Parsed, reply: Reply, outputs: Sequence[str], shown: Sequence[int]
) -> dict:
    """Add `completions` to `row`: its outputs with their ranks. shown: which output stood at each place."""
    # The judge has ranked places; `shown` says whose they are.
    rank_of = dict(zip(shown, parsed.ranks, strict=True)) if parsed.ranks else {}
    generators = row.get("generators") or [None] * len(outputs)
    ended = row.get("ended") or [None] * len(outputs)
    completions = [
        {"output": output, "generator": generator, "ended": whole}
        | {"rating": None, "rank": rank_of.get(i), "p": None}
        for i, (output, generator, whole) in enumerate(zip(outputs, generators, ended, strict=True))
    ]
    of_outputs = ("output", "outputs", "generators", "ended")
    rest = {name: value for name, value in row.items() if name not in of_outputs}
    shown_order = " ".join(str(i + 1) for i in shown)
    made = _row(rest, RANKING, parsed, [reply], outputs)
    return made | {"completions": completions, "order": shown_order}


def completion_row(row: dict, parsed: Parsed, reply: Reply | None, sample: int) -> dict:
    """Add the model's answer to `row` as `output`, None where it gave none."""
    spec = reply.job.judge.spec if reply else None
    # The number stands where other labels have their outputs: samples without an answer need ids of their own, too.
    made = _row(row, COMPLETION, parsed, [reply] if reply else [], (str(sample),))
    return made | {"output": parsed.text, "generator": spec.name if spec else None, "sample_index": sample}


def _row(row: dict, kind: str, parsed: Parsed, replies: Sequence[Reply], texts: Sequence[str]) -> dict:
    merged = random_choices.merged_instruction(row["instruction"], row["input"])
    # Ties and noise have no request; their status stands for it.
    keys = [reply.job.key for reply in replies] or [parsed.status]
    common = {
        "example_id": _digest(merged),
        "label_id": _digest(kind, merged, *texts, *keys),
        "kind": kind,
        "status": parsed.status,
        "status_detail": parsed.detail or None,
        "library_version": __version__,
    }
    asked = {"coverage_mass": parsed.mass, "explanation": parsed.explanation}
    # None first: a row that is labelled again must not keep columns of its former judge.
    return row | common | dict.fromkeys(ASKED_COLUMNS) | _provenance(replies) | asked


def _digest(*texts: str) -> str:
    """32 hex digits of a SHA-256 over texts, each with its length so that no two lists run together."""
    whole = "".join(f"{len(text)}:{text}" for text in texts)
    # "replace": an id must not fail on a lone surrogate.
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:32]


def _provenance(replies: Sequence[Reply]) -> dict:
    """The columns on where a label is from; of two orders the first's answer, both texts, and the cost of both."""
    if not replies:
        return {}
    job = replies[0].job
    judge, spec = job.judge, job.judge.spec
    asked = {
        "pool_index": replies[0].pool_index,
        "judge_id": judge.id,
        "annotator": spec.name,
        "provider": spec.provider,
        "endpoint_origin": judge.address.origin,
        "api": spec.api,
        "model_requested": spec.model,
        "prompt_template": spec.prompt.name,
        "prompt_template_sha": spec.prompt.sha,
        "parser": spec.parser.name,
        "parser_version": PARSER_VERSION,
        "sampling": judge.settings_json,
        "request_hash": job.key,
        "examples_in_request": len(job.examples),
        "n_attempts": sum(reply.outcome.n_attempts for reply in replies),
    }
    answered = [reply for reply in replies if isinstance(reply.outcome, Answer)]
    if answered:
        asked |= _answered(answered[0]) | _cost(answered)
    if len(replies) == 2:
        asked["request_hash_swapped"] = replies[1].job.key
        other = replies[1].outcome
        asked["raw_text_swapped"] = other.text if isinstance(other, Answer) else None
        # Only the second order was answered: `_answered` put its text where the first's belongs.
        if isinstance(other, Answer) and len(answered) == 1:
            asked["raw_text"] = None
    return asked


def _answered(reply: Reply) -> dict:
    """The columns that need an answer. Of its log-probabilities only the judged token's; the cache keeps all."""
    answer, logprobs = reply.outcome, None
    if answer.top_logprobs:
        position = reply.job.judge.spec.parser.position
        if -len(answer.top_logprobs) <= position < len(answer.top_logprobs):
            logprobs = [{"token": token, "logprob": value} for token, value in answer.top_logprobs[position]]
    return {
        "model_returned": answer.model,
        "transport": answer.transport,
        "batch_id": answer.batch_id,
        "system_fingerprint": answer.system_fingerprint,
        "request_id": answer.request_id,
        "created_at": datetime.fromtimestamp(answer.created_at / 1000, UTC),
        "latency_ms": answer.latency_ms,
        "raw_text": answer.text,
        "top_logprobs": logprobs,
        "finish_reason": answer.finish_reason,
        "refusal_category": answer.refusal,
    }


def _cost(answered: Sequence[Reply]) -> dict:
    """Tokens and dollars of this row: its share of the request's, such that the rows' shares add up to them."""
    cost: dict = {}
    for name in _TOKENS:
        counts = [_share(getattr(reply.outcome, name), reply) for reply in answered]
        known = [count for count in counts if count is not None]
        cost[name] = sum(known) if known else None
    prices = [price_usd(reply.job, reply.outcome) for reply in answered]
    shares = [
        None if price is None else price / len(reply.job.examples)
        for price, reply in zip(prices, answered, strict=True)
    ]
    # The sum of the known prices alone would pass for the whole cost.
    cost["price_usd"] = None if None in shares else math.fsum(shares)
    return cost


def _share(tokens: int | None, reply: Reply) -> int | None:
    if tokens is None:
        return None
    # Whole tokens: the first examples take one more each, so that the rows add up to the request.
    share, left = divmod(tokens, len(reply.job.examples))
    return share + (reply.slot < left)


def status_counts(rows: Sequence[dict]) -> dict[str, int]:
    """Count the rows by status."""
    return dict(Counter(row["status"] for row in rows))


def rows_summary(rows: Sequence[dict]) -> dict:
    """Summarize rows of one kind: counts by status and annotator, and how the judges behaved.

    pairwise: mean_preference; first_shown_wins, over all orders shown; flips, the share of pairs shown in both
    orders whose label moved with it. rating: mean_rating.
    """
    labelled = [row for row in rows if row["status"] in LABELLED]
    counts = {
        "rows": len(rows),
        "labelled": len(labelled),
        "status": status_counts(rows),
        "annotators": dict(Counter(row["annotator"] for row in rows if row["annotator"])),
    }
    # A run without rows is summed up as one of pairs: the same fields, with nothing in them.
    kinds = {row["kind"] for row in rows} or {PAIRWISE}
    if kinds == {PAIRWISE}:
        counts |= _of_pairs(labelled)
    if kinds == {RATING}:
        counts["mean_rating"] = _mean([row["rating"] for row in labelled])
    return counts


def _of_pairs(labelled: Sequence[dict]) -> dict:
    # Whether the first shown won, over decided verdicts: output_1 is first in order 12, output_2 in 21.
    shown = [row["preference"] < 1.5 for row in labelled if row["order"] == "12" and row["preference"] != 1.5]
    shown += [
        row["preference"] > 1.5 for row in labelled if row["order"] == "21" and row["preference"] != 1.5
    ]
    both = [row for row in labelled if row["order"] == "both" and row["status"] == OK]
    shown += [row["preference_first_order"] < 1.5 for row in both if row["preference_first_order"] != 1.5]
    shown += [row["preference_swapped"] > 1.5 for row in both if row["preference_swapped"] != 1.5]
    return {
        "first_shown_wins": _mean(shown),
        "mean_preference": _mean([row["preference"] for row in labelled]),
        "flips": _mean([not row["position_consistent"] for row in both]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


class NothingToWriteError(UserError):
    """No row has what a format needs. The labels themselves are kept; only this export has nothing to hold."""


def is_labelled(row: Mapping) -> bool:
    """Return whether the row has a usable label: a preference in [1, 2], a finite rating, or all ranks."""
    if row["status"] not in LABELLED:
        return False
    # Rows from files: a good status may stand beside NaN or a text.
    if row["kind"] == PAIRWISE:
        return is_number(row["preference"]) and 1 <= row["preference"] <= 2
    if row["kind"] == RATING:
        return is_number(row["rating"])
    if row["kind"] == RANKING:
        return all(is_number(one["rank"]) for one in row["completions"])
    return True
