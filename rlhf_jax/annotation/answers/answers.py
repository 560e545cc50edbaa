"""The result of a request: an `Answer`, which the cache keeps, or a `Failure`, which it never returns.

Beside them stand the statuses of labelled rows and the providers' words for how an answer ended.
"""

from dataclasses import dataclass

# Status of a row. Only the first three carry a preference.
OK = "ok"
TIE_IDENTICAL = "tie_identical"
NOISE = "noise"
PARSE_ERROR = "parse_error"
REFUSED = "refused"  # by the model; the detail is the provider's category
TRUNCATED = "truncated"
FILTERED = "filtered"  # by the provider's content filter
LOW_MASS = "low_mass"
API_ERROR = "api_error"
EXPIRED = "expired"  # a batch ended before the request was answered
NOT_RECORDED = "not_recorded"  # only recorded answers were wanted, and there is none
NOT_ASKED = "not_asked"  # left out on purpose: a prompt too long to send
STATUSES = (OK, TIE_IDENTICAL, NOISE, PARSE_ERROR, REFUSED, TRUNCATED, FILTERED, LOW_MASS, API_ERROR)
STATUSES += (EXPIRED, NOT_RECORDED, NOT_ASKED)
LABELLED = (OK, TIE_IDENTICAL, NOISE)


def _words(*words: str) -> frozenset[str]:
    """The spellings of words among providers: lower case, capitals, and Google's FINISH_REASON_ prefix."""
    forms = [(word, word.upper(), word.title(), f"FINISH_REASON_{word.upper()}") for word in words]
    return frozenset(form for several in forms for form in several)


# Finish reasons: cut off at a limit, declined by the model, removed by a content filter, and broken off by a
# fault of the server. Only the last is worth another attempt: the others would end in the same way.
CUT_OFF = _words(
    *("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "token_limit", "incomplete"),
    *("model_context_window_exceeded", "context_length_exceeded", "pause_turn"),
)
WITHHELD = _words("refusal", "refused")
REMOVED = _words(
    *(
        "content_filter",
        "content_filtered",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
    ),
    *("image_safety", "guardrail_intervened", "sensitive", "moderation", "flagged", "error_toxic"),
)
BROKEN_OFF = _words(
    *(
        "error",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
        "timeout",
        "failed",
        "network_error",
        "error_limit",
    ),
    *(
        "insufficient_system_resource",
        "malformed_function_call",
        "malformed_response",
        "unexpected_tool_call",
    ),
    # Handed over before it was whole.
    *("queued", "in_progress"),
)

# One entry per generated token: the alternatives (token, log-probability) the provider showed.
TopLogprobs = tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, raw: everything a parser may need later, what it cost and how it was obtained.

    `finish_reason` is the provider's own word. `refusal` is the provider's category, None when it answered.
    Token counts are None where the provider did not report them; `tokens_in` includes cached ones,
    `tokens_out` includes reasoning; `tokens_cached` were read from the provider's prompt cache and
    `tokens_cache_write` written to it. `latency_ms` is that of the attempt that succeeded, `created_at` is
    milliseconds since 1970 in UTC. `transport` is "online" or "batch", `batch_id` the provider's name of it.
    """

    text: str
    finish_reason: str = "stop"
    refusal: str | None = None
    top_logprobs: TopLogprobs | None = None
    model: str = ""
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_reasoning: int | None = None
    system_fingerprint: str | None = None
    request_id: str | None = None
    latency_ms: float = 0.0
    n_attempts: int = 1
    created_at: int = 0
    tokens_cache_write: int | None = None
    transport: str = "online"
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer after `n_attempts` tries. It is asked again on the next run.

    `status`: API_ERROR; EXPIRED when the provider's batch ran out of time; NOT_RECORDED when only recorded
    answers were wanted.
    """

    reason: str
    n_attempts: int
    status: str = API_ERROR


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one attempt as the provider reported them; the names are those of `Answer`."""

    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    tokens_cache_write: int | None = None
