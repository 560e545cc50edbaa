"""What an error of an endpoint means: that this request, the whole endpoint, or only this attempt has failed.

Providers report the same error in many forms, under different status codes, and some under status 200. Their words
are kept for the message; what they mean is decided here, once for online requests and for the lines of a batch.
"""

import re
from collections.abc import Callable, Mapping

from rlhf_jax.annotation.answers.answers import FILTERED
from rlhf_jax.annotation.calls.rates import retry_after
from rlhf_jax.annotation.calls.retries import EndpointError, Rejected, Retryable

# The error code and the message out of the body of an error, in the forms that providers give it.


_NESTED = ("error", "errors", "detail", "base_resp")
_CODE_NAMES = ("code", "type", "status", "Code", "error_code", "status_code")
_WORD_NAMES = ("message", "msg", "Message", "detail", "title", "error_msg", "status_msg", "error_message")


def unwrapped(body: object) -> object:
    """Return what a list of one mapping holds: Gemini's OpenAI-compatible endpoint wraps its error in one."""
    alone = isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict)
    return body[0] if alone else body


def said(body: object) -> tuple[str, str]:
    """Return (code, message) of an error's body, whatever its form; empty texts for what it does not say."""
    body = unwrapped(body)
    if isinstance(body, list):
        body = body[0] if body else ""
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if not isinstance(body, dict):
        return "", _page_text(str(body or ""))
    # OpenAI and Anthropic nest it under `error`, servers made with FastAPI (vLLM) under `detail`, MiniMax `base_resp`.
    inner = next((body[name] for name in _NESTED if body.get(name)), None)
    if inner is None or isinstance(inner, dict):
        return _of_mapping(inner or body)
    if isinstance(inner, list) and inner and isinstance(inner[0], dict):
        return _of_validation(inner)
    code, words = _of_mapping({name: value for name, value in body.items() if value is not inner})
    return code, str(inner) if not words else f"{inner} {words}"


def _of_mapping(told: dict) -> tuple[str, str]:
    code = next((told[name] for name in _CODE_NAMES if told.get(name)), "")
    # Many repeat the HTTP status as the code; the word beside it says more.
    if str(code).isdigit() or code == "error":
        code = next((told[n] for n in ("type", "status") if told.get(n) and told[n] != "error"), code)
    inner = told.get("innererror")
    words = str(next((told[n] for n in _WORD_NAMES if told.get(n)), ""))
    # Azure says in `innererror` that it was its content filter.
    if isinstance(inner, dict) and inner.get("code"):
        words += f" ({inner['code']})"
    # OpenRouter keeps the words of the provider behind it, and the reasons of a filter, in `metadata`.
    more = told.get("metadata")
    if isinstance(more, dict):
        words += "".join(f" [{name}: {more[name]}]" for name in ("reasons", "raw") if more.get(name))
    return str(code), words


def _of_validation(items: list) -> tuple[str, str]:
    """Validation errors [{"loc": [...], "msg": "..."}], or a plain list of errors."""
    texts = []
    for item in items[:3]:
        place = item.get("loc") if isinstance(item, dict) else None
        words = _of_mapping(item)[1] if isinstance(item, dict) else str(item)
        texts.append((".".join(map(str, place)) + ": " if isinstance(place, list) else "") + words)
    return _of_mapping(items[0])[0] if "loc" not in items[0] else "", "; ".join(texts)


def _page_text(text: str) -> str:
    """The title of a web page, which is what a proxy or a login in between sends; else the text."""
    if not re.match(r"\s*<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        return text
    title = re.search(r"<(title|h1)[^>]*>([^<]{1,200})", text, re.IGNORECASE)
    return f"a web page ({' '.join(title[2].split())})" if title else "a web page"


# The reason stands at the beginning; a body may have megabytes, and every pattern below would search them.
_SAID_CHARS = 4_000
# Timeout, conflict, too early, rate limit. Every 5xx is tried again as well.
_RETRY_STATUS = frozenset({408, 409, 425, 429})
# The server is overloaded (529 is Anthropic's word for it): the lane sends less at once. A 429 does the same.
_CROWDED = frozenset({408, 503, 529})
# A gateway gave up waiting: the model behind it may have written, and billed, its answer all the same.
_MAY_COST = frozenset({408, 504, 520, 522, 524})
# These end the run, since the endpoint would refuse every other request too; each with what the user can do.
_MEND = {
    401: "the key was refused; set a valid one",
    402: "the account cannot pay; add credit",
    403: "the key may not do this; check its permissions",
    404: "no such model or address; check model and base_url",
    405: "nothing there answers this call; check base_url and api",
    407: "the proxy wants a password; put it into the proxy's environment variable",
    410: "it is gone; choose another model",
    501: "nothing there answers this call; check base_url and api",
}
_REGION = "the provider does not serve this country or region"
_REDIRECT = "it sends requests elsewhere; set base_url to the address it names"
_NOWHERE = "it sends requests elsewhere and does not say where; check base_url"

# Error codes in the body and the status they mean. Gateways send them under any status, also 400, 500 or 200.
_CODES = {
    "insufficient_quota": 402,
    "billing_hard_limit_reached": 402,
    "billing_not_active": 402,
    "billing_error": 402,
    "insufficient_balance": 402,
    "insufficient_credits": 402,
    "payment_required": 402,
    "invalid_api_key": 401,
    "invalid_authentication": 401,
    "authentication_error": 401,
    "account_deactivated": 401,
    "unauthenticated": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "unsupported_country_region_territory": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "deploymentnotfound": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 529,
    "timeout_error": 504,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "invalid_request_error": 400,
    "request_too_large": 413,
}
# Codes of content filters, among them OpenAI's and Azure's, DashScope's data_inspection_failed, Bedrock's
# guardrail_intervened and Gemini's prohibited_content.
_FLAG_CODES = frozenset(
    {
        *("content_filter", "content_filtered", "content_policy_violation", "responsibleaipolicyviolation"),
        *(
            "moderation_blocked",
            "content_blocked",
            "content_moderation",
            "input_moderation",
            "invalid_prompt",
        ),
        *("data_inspection_failed", "datainspectionfailed", "guardrail_intervened", "prohibited_content"),
    }
)
# These count as the whole code only: in a sentence they mean nothing.
_SHORT_FLAG_CODES = frozenset({"safety", "flagged", "1301"})
# Filters that send no code of their own are known by their sentences.
_FLAGGED = re.compile(
    r"content[ _-]?(management )?(policy|filter)|\bflagged\b|requires moderation|safety (system|filter|polic)"
    r"|responsible ai|prohibited content|content exists risk|inappropriate content|guardrail|sensitive (content|words)"
    r"|violat\w* .{0,60}polic",
    re.IGNORECASE,
)
# A flagged account is not a flagged request: the first ends the run, the second costs one row.
_ACCOUNT = re.compile(
    r"\b(account|organi[sz]ation|access|api[ _-]?key|project)\b.{0,80}"
    r"\b(flagged|suspended|terminated|deactivated|disabled|banned|blocked|restricted)\b",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    r"credit balance is too low|(requires|need|add) more credits|out of credits|(insufficient|not enough) "
    r"(credit|balance|fund)|billing (hard )?limit|payment required|account is (not active|in arrears)"
    r"|key limit exceeded|spend(ing)? limit",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,80}(does not exist|not found|not exist|is not supported)|(no such|unknown) model|not a valid model",
    re.IGNORECASE,
)
_REGIONS = re.compile(r"\b(country|countries|region|territory|location)\b.{0,40}\b(not|un)\s?(supported|available)"
                      r"|not (supported|available) in your (country|region|location)", re.IGNORECASE)  # fmt: skip
# A prompt that is too long fails by itself: it says nothing against the endpoint (`Fault.of_row`).
_TOO_LONG = re.compile(
    r"context[ _](length|window)|prompt is too long|too many tokens|string_above_max_length|request too large"
    r"|reduce the length|exceeds .{0,40}\b(tokens|context|length)",
    re.IGNORECASE,
)


class Filtered(Rejected):
    """The provider's content filter refused the request; the row gets the status FILTERED."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason, status=status, of_row=True)
        self.row_status = FILTERED


# Where the protocols have their answers.
_ANSWERS = ("choices", "content", "output", "answers")


def error_in(payload: object) -> bool:
    """Return whether the payload of a response with status 200 is an error all the same."""
    if not isinstance(payload, dict):
        return False
    if payload.get("status") == "failed":
        return True
    # An error beside an answer is a warning: the answer is read.
    if any(payload.get(name) for name in _ANSWERS):
        return False
    # Without an answer whatever words there are say why, also where they are not called an error.
    return bool(payload.get("error") or payload.get("type") == "error" or said(payload)[1])


def meant_status(payload: dict) -> int:
    """Return the status that an error under status 200 stands for; 500, which is retried, where it does not say."""
    nested = payload.get("error") or payload.get("base_resp")
    told = nested if isinstance(nested, dict) else payload
    code, words = (text[:_SAID_CHARS].lower().strip(" .!") for text in said(payload))
    numbers = [told.get(name) for name in ("code", "status", "status_code", "http_code", "error_code")]
    found = next((int(n) for n in (*numbers, code) if re.fullmatch("[45][0-9]{2}", str(n))), None)
    # Some have no code but its words: "Authentication error".
    return found or _CODES.get(code) or _CODES.get(words.replace(" ", "_"), 500)


def fault(
    where: str, status: int, body: object, headers: Mapping[str, str], line: Callable[[str], str]
) -> EndpointError | Retryable | Rejected:
    """Classify an error response. where: the address as it may be shown; line: masks and shortens a message.

    EndpointError for the whole endpoint, Filtered and Rejected for this request, Retryable for now.
    """
    code, message = said(body)
    code, message = code[:_SAID_CHARS], message[:_SAID_CHARS]
    words = line(
        " ".join(part for part in (str(status), code if code != str(status) else "", message) if part)
    )
    about_account = bool(_ACCOUNT.search(message))
    # A filter's refusal comes under many statuses, so it is looked for first. Under these four the same words
    # are about the key, the account, the model or the rate.
    if status not in (401, 402, 404, 429) and not about_account and _is_flagged(status, code, message):
        return Filtered(words, status=status)
    meant = _meaning(status, code.lower(), message, about_account)
    if meant is not None:
        redirect = _REDIRECT if headers.get("location") else _NOWHERE
        mend = _REGION if meant == 403 and _is_region(code, message) else _MEND.get(meant, redirect)
        return EndpointError(f"{where}: {words}; {mend}", status)
    if status in _RETRY_STATUS or status >= 500:
        # Only beside 429 is "try again in 20s" in the message a promise; other errors use such words loosely.
        wait_s = retry_after(headers, _told_wait(body) or (message if status == 429 else ""))
        kind = {"rate_limit": status == 429, "crowded": status in _CROWDED, "may_cost": status in _MAY_COST}
        return Retryable(words, wait_s=wait_s, **kind)
    return Rejected(words, status=status, of_row=status == 413 or bool(_TOO_LONG.search(f"{code} {message}")))


def _told_wait(body: object) -> str:
    """The wait that Google tells in a field of its own (RetryInfo), in the words of the others; "" for none."""
    body = unwrapped(body)
    inner = body.get("error") if isinstance(body, dict) else None
    details = inner.get("details") if isinstance(inner, dict) else None
    for one in details if isinstance(details, list) else ():
        if isinstance(one, dict) and isinstance(one.get("retryDelay"), str):
            return f"retry in {one['retryDelay']}"
    return ""


def _meaning(status: int, code: str, message: str, about_account: bool) -> int | None:
    """The status of `_MEND` that tells what is wrong with the endpoint as a whole; None for nothing."""
    by_code = _CODES.get(code)
    # "Quota" under 429 may be that of the minute: only the provider's own code for no credit counts there.
    if by_code == 402 or (status != 429 and _NO_CREDIT.search(message)):
        return 402
    if status in _MEND or 300 <= status < 400:
        return status
    # Some servers answer a wrong key or model with a plain 400.
    if 400 <= status < 500 and status not in _RETRY_STATUS:
        if by_code in (401, 403, 404):
            return by_code
        if about_account:
            return 401
        if _NO_MODEL.search(message):
            return 404
    return None


def _is_flagged(status: int, code: str, message: str) -> bool:
    # A 5xx message about the filter may mean that the filter itself broke; there only the code counts.
    words = {code.lower(), *re.findall(r"[\w]+", message.lower())} if status < 500 else {code.lower()}
    strong = words & _FLAG_CODES or code.lower() in _SHORT_FLAG_CODES
    return bool(strong) or (status in (400, 403, 422, 451) and bool(_FLAGGED.search(message)))


def _is_region(code: str, message: str) -> bool:
    return "country" in code or bool(_REGIONS.search(message))
