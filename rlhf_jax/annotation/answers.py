"""What a judge said, as it is kept in the cache: an `Answer` per request; a `Failure` is never kept."""

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
NOT_ASKED = "not_asked"  # left out on purpose: nothing cached to parse again, or a prompt too long to send
STATUSES = (OK, TIE_IDENTICAL, NOISE, PARSE_ERROR, REFUSED, TRUNCATED, FILTERED, LOW_MASS, API_ERROR)
STATUSES += (EXPIRED, NOT_ASKED)
LABELLED = (OK, TIE_IDENTICAL, NOISE)

# The providers' words for an answer that was cut off, one the model withheld and one a filter removed.
CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"})
WITHHELD = frozenset({"refusal"})
REMOVED = frozenset({"content_filter"})

# One entry per generated token: the alternatives (token, log-probability) the provider showed.
TopLogprobs = tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, raw: everything a parser may need later, what it cost and how it was obtained.

    `finish_reason` is the provider's own word. `refusal` is the provider's category, None when it answered.
    Token counts are None where the provider did not report them; `tokens_in` includes cached ones,
    `tokens_out` includes reasoning. `latency_ms` is that of the attempt that succeeded, `created_at` is
    milliseconds since 1970 in UTC.
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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer after `n_attempts` tries. It is asked again on the next run."""

    reason: str
    n_attempts: int
    status: str = API_ERROR
