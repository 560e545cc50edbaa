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
NOT_RECORDED = "not_recorded"  # only recorded answers were wanted, and there is none
NOT_ASKED = "not_asked"  # left out on purpose: a prompt too long to send
STATUSES = (OK, TIE_IDENTICAL, NOISE, PARSE_ERROR, REFUSED, TRUNCATED, FILTERED, LOW_MASS, API_ERROR)
STATUSES += (EXPIRED, NOT_RECORDED, NOT_ASKED)
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
