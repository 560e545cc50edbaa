"""From a judged pair to the row that is kept: label, identity, provenance, cost; and the counts over rows."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rlhf_jax import __version__
from rlhf_jax.annotation import seeding
from rlhf_jax.annotation.answers import NOISE, Answer, Failure
from rlhf_jax.annotation.costs import price_usd
from rlhf_jax.annotation.judges import Job
from rlhf_jax.annotation.parsing import PARSER_VERSION, Parsed, parse

# What is known of a row only when a judge was asked; None for ties and noise.
ASKED_COLUMNS = (
    *("order", "pool_index", "judge_id", "annotator", "provider", "endpoint_origin", "api"),
    *("model_requested", "model_returned", "system_fingerprint", "prompt_template", "prompt_template_sha"),
    *(
        "parser",
        "parser_version",
        "sampling",
        "transport",
        "batch_id",
        "request_hash",
        "request_id",
        "created_at",
    ),
    *(
        "latency_ms",
        "n_attempts",
        "tokens_in",
        "tokens_cached",
        "tokens_out",
        "tokens_reasoning",
        "price_usd",
    ),
    *("coverage_mass", "raw_text", "top_logprobs", "finish_reason", "refusal_category"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will become of a row: a label that needs no judge (`parsed`), or a job."""

    parsed: Parsed | None
    switched: bool = False
    pool_index: int | None = None
    job: Job | None = None


def labelled_row(row: dict, plan: Plan, outcome: Answer | Failure | None) -> dict:
    """`row` with where its label is from and its label, for its own order of outputs, not the order shown."""
    if plan.job is None:
        parsed = plan.parsed
    elif isinstance(outcome, Answer):
        parsed = parse(outcome, plan.job.judge.spec.parser)
    else:
        parsed = Parsed(None, outcome.status, outcome.reason)
    preference = parsed.preference
    if preference is not None and plan.switched:
        preference = 3.0 - preference
    label = {
        "kind": "pairwise",
        "preference": preference,
        "p_2": None if preference is None else preference - 1.0,
        "tie": preference == 1.5,
        "status": parsed.status,
        "status_detail": parsed.detail or None,
        "is_noisy": parsed.status == NOISE,
        "library_version": __version__,
    }
    asked = dict.fromkeys(ASKED_COLUMNS) | _provenance(plan, outcome) | {"coverage_mass": parsed.mass}
    return row | _identity(row, plan, parsed.status) | label | asked


def _identity(row: dict, plan: Plan, status: str) -> dict:
    merged = seeding.merged_instruction(row["instruction"], row["input"])
    outputs = (row["output_1"], row["output_2"])
    return {
        "example_id": _digest(merged),
        "pair_id": _digest(merged, *sorted(outputs)),
        "label_id": _digest(merged, *outputs, plan.job.key if plan.job else status),
    }


def _digest(*texts: str) -> str:
    """32 hex digits of a SHA-256 over texts, each with its length so that no two lists run together."""
    whole = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:32]


def _provenance(plan: Plan, outcome: Answer | Failure | None) -> dict:
    if plan.job is None:
        return {}
    judge, spec = plan.job.judge, plan.job.judge.spec
    asked = {
        "order": "21" if plan.switched else "12",
        "pool_index": plan.pool_index,
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
        "request_hash": plan.job.key,
        "n_attempts": outcome.n_attempts,
    }
    return asked | _answered(plan.job, outcome) if isinstance(outcome, Answer) else asked


def _answered(job: Job, answer: Answer) -> dict:
    """What only an answer can tell. Only the judged token's log-probabilities; the cache has all."""
    logprobs = None
    if answer.top_logprobs:
        position = job.judge.spec.parser.position
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
        "tokens_in": answer.tokens_in,
        "tokens_cached": answer.tokens_cached,
        "tokens_out": answer.tokens_out,
        "tokens_reasoning": answer.tokens_reasoning,
        "price_usd": price_usd(job, answer),
        "raw_text": answer.text,
        "top_logprobs": logprobs,
        "finish_reason": answer.finish_reason,
        "refusal_category": answer.refusal,
    }


def status_counts(rows: Sequence[dict]) -> dict[str, int]:
    """How many rows have which status."""
    return dict(Counter(row["status"] for row in rows))


def summary(rows: Sequence[dict]) -> dict:
    """Counts over rows: statuses, annotators, how often the output shown first won, mean preference."""
    labelled = [row for row in rows if row["preference"] is not None]
    judged = [row for row in labelled if row["order"] is not None]
    first_wins = sum((row["preference"] < 1.5) == (row["order"] == "12") for row in judged)
    total = math.fsum(row["preference"] for row in labelled)
    return {
        "rows": len(rows),
        "labelled": len(labelled),
        "status": status_counts(rows),
        "annotators": dict(Counter(row["annotator"] for row in rows if row["annotator"])),
        "first_shown_wins": first_wins / len(judged) if judged else None,
        "mean_preference": total / len(labelled) if labelled else None,
    }
