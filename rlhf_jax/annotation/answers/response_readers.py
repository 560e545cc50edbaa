"""From the payload of a response to an `Answer`: one reader for each protocol (`JudgeSpec.api`).

Many endpoints follow their protocol loosely. What can be understood is read; a count or a word of an unexpected type
is unknown (None); a payload without an answer is a fault of this request. The token counts at the end are those that
the provider bills, never an estimate.
"""

import json
import math
from collections.abc import Iterable

from rlhf_jax.annotation.answers.answers import BROKEN_OFF, Answer, Usage
from rlhf_jax.annotation.calls.retries import Retryable

_TEXTS = ("text", "output_text")
_REFUSALS = ("refusal",)
# More tokens than this in one request are no count.
_MOST = 2**31 - 1


def read_json(content: bytes) -> object:
    """Parse the JSON that an endpoint sent, in UTF-8, -16 or -32; broken characters become U+FFFD.

    Errors: ValueError or RecursionError for what is no JSON.
    """
    # json.loads guesses the encoding of bytes in this way too, but refuses a broken character.
    text = content.decode(json.detect_encoding(content), "replace")
    # A number of thousands of digits is no count; it must not cost the answer it stands beside.
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 400 else math.inf)


def read_answer(api: str, payload: object) -> Answer:
    """Read the Answer out of the payload of a response with status 200, or of a line of a batch's results.

    Errors: Retryable with the usage, if the provider told it, for what cannot be understood.
    """
    usage = usage_of(api, payload)
    try:
        answer = Answer(**_READERS[api](payload))
    # The readers index freely; whatever a payload lacks, or has of another type, arrives here.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        reason = f"malformed answer ({type(error).__name__})"
        raise Retryable(reason, usage=usage, may_cost=usage is None, of_row=True) from None
    if answer.finish_reason in BROKEN_OFF:
        reason = f"the answer broke off ({answer.finish_reason}){_words(payload)}"
        raise Retryable(reason, usage=usage, may_cost=usage is None, of_row=True)
    return answer


def usage_of(api: str, payload: object) -> Usage | None:
    """The tokens that a payload reports, None unless it has both input and output; the rest of it may be unusable."""
    told = counts_of(api, payload.get("usage") if isinstance(payload, dict) else None)
    if told["tokens_in"] is None or told["tokens_out"] is None:
        return None
    return Usage(told["tokens_in"], told["tokens_cached"], told["tokens_out"], told["tokens_cache_write"])


def _words(payload: dict) -> str:
    """What a choice says about its own end (`error` beside its message)."""
    choices = payload.get("choices")
    told = choices[0].get("error") if choices and isinstance(choices[0], dict) else None
    words = told.get("message") if isinstance(told, dict) else told
    return f": {words}" if words else ""


def _read_chat(payload: dict) -> dict:
    choices = payload["choices"]
    # Servers may send several choices in any order; choice 0 is the one that was asked for.
    choice = next((one for one in choices if isinstance(one, dict) and one.get("index") == 0), choices[0])
    # The older completions protocol has `text` where chat has a message.
    message = choice.get("message") or {"content": choice["text"]}
    logprobs = choice.get("logprobs")
    refusal = _parts(message.get("refusal"), _TEXTS) or _parts(message.get("content"), _REFUSALS)
    text = _parts(message.get("content"), _TEXTS)
    return counts_of("chat", payload.get("usage")) | {
        # A refusal's words are kept as text, to be read in the labels; that it is one stands in `refusal`.
        "text": text or refusal,
        "finish_reason": _word(choice.get("finish_reason")) or "stop",
        "refusal": "refusal" if refusal else None,
        "top_logprobs": _top_logprobs(logprobs.get("content") if isinstance(logprobs, dict) else None),
        "model": _word(payload.get("model")) or "",
        "system_fingerprint": _word(payload.get("system_fingerprint")),
        "request_id": _word(payload.get("id")),
    }


def _read_responses(payload: dict) -> dict:
    """OpenAI's responses: the parts of its messages, and why it stopped if it is not complete."""
    parts = [part for item in payload["output"] if item["type"] == "message" for part in item["content"]]
    refusals = [_text(part["refusal"]) for part in parts if part["type"] == "refusal"]
    texts = [_text(part["text"]) for part in parts if part["type"] == "output_text"]
    logprobs = [token for part in parts for token in part.get("logprobs") or ()]
    if payload.get("status") == "failed":
        raise ValueError("the response says that it failed")
    stopped = _word((payload.get("incomplete_details") or {}).get("reason")) or "stop"
    if stopped == "stop" and payload.get("status") in _NOT_COMPLETE:
        stopped = payload["status"]
    return counts_of("responses", payload.get("usage")) | {
        "text": "".join(texts or refusals),
        # One word for the token limit in both of OpenAI's protocols.
        "finish_reason": {"max_output_tokens": "length"}.get(stopped, stopped),
        "refusal": "refusal" if refusals else None,
        "top_logprobs": _top_logprobs(logprobs),
        "model": _word(payload.get("model")) or "",
        "request_id": _word(payload.get("id")),
    }


# A response that is still being made may already hold a part of its text.
_NOT_COMPLETE = ("incomplete", "cancelled", "queued", "in_progress")


def _read_decisions(payload: dict) -> dict:
    """OpenAI's decisions: the text is the verdict (of several questions a JSON list of them).

    The probabilities stand where log-probabilities do, a position for each question.
    """
    answers = payload["answers"]
    verdicts = [None if a["type"] == "refusal" else a[_VERDICTS[a["type"]]] for a in answers]
    if not answers:
        raise ValueError("no answers")
    return counts_of("decisions", payload.get("usage")) | {
        "text": _decided(verdicts[0]) if len(verdicts) == 1 else json.dumps(verdicts),
        "refusal": "refusal" if all(verdict is None for verdict in verdicts) else None,
        "top_logprobs": tuple(_as_logprobs(answer) for answer in answers),
        "model": _word(payload.get("model")) or "",
        "request_id": _word(payload.get("id")),
    }


_VERDICTS = {"choice": "choice", "score": "score", "predicate": "probability"}


def _decided(verdict: object) -> str:
    return "" if verdict is None else verdict if isinstance(verdict, str) else json.dumps(verdict)


def _as_logprobs(answer: dict) -> tuple:
    if answer["type"] == "predicate":
        yes = float(answer["probability"])
        pairs = [("yes", yes), ("no", 1.0 - yes)]
    else:
        # A choice has values; a score has levels, whose labels are what was asked for.
        shares = answer.get("probabilities") or ()
        pairs = [(_decided(p.get("label", p["value"])), float(p["probability"])) for p in shares]
    # As log-probabilities, so that parsers check sampled tokens and decisions alike. What has none becomes NaN, which
    # they refuse: left out, it would make the others look certain.
    found = tuple((value, _logprob(p)) for value, p in pairs if p != 0.0)
    # No alternatives at all would mean that the question was refused.
    return found or tuple((value, -math.inf) for value, _ in pairs)


def _logprob(p: float) -> float:
    return math.log(p) if p > 0.0 else math.nan


def _read_messages(payload: dict) -> dict:
    stopped = _word(payload.get("stop_reason")) or "end_turn"
    # Why Claude declined, such as "frontier_llm": work on models that compete with Anthropic's.
    details = payload.get("stop_details")
    category = _word(details.get("category")) if isinstance(details, dict) else None
    if payload["content"] is None:
        raise ValueError("no content")
    return counts_of("messages", payload.get("usage")) | {
        "text": _parts(payload["content"], _TEXTS),
        "finish_reason": stopped,
        "refusal": (category or "refusal") if stopped == "refusal" else None,
        "model": _word(payload.get("model")) or "",
        "request_id": _word(payload.get("id")),
    }


def _parts(content: object, kinds: Iterable[str]) -> str:
    """The text of a message: text itself, or the parts of these kinds (thoughts and tool calls are none) in a row."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content if kinds is _TEXTS else ""
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        raise TypeError(f"the answer's text is {type(content).__name__}")
    return "".join(_part(part, kinds) for part in parts)


def _part(part: object, kinds: Iterable[str]) -> str:
    if isinstance(part, str):
        return part if kinds is _TEXTS else ""
    kind = part.get("type") or "text"
    if kind not in kinds:
        return ""
    return _text(part["refusal"] if kind == "refusal" else part["text"])


def _text(value: object) -> str:
    # The form of OpenAI's Assistants API.
    if isinstance(value, dict) and isinstance(value.get("value"), str):
        return value["value"]
    if not isinstance(value, str):
        raise TypeError(f"the answer's text is {type(value).__name__}")
    return value


def _word(value: object) -> str | None:
    """A provider's word as text; a value of another type becomes JSON, so that it is neither lost nor an error."""
    return value if value is None or isinstance(value, str) else json.dumps(value)[:200]


def _top_logprobs(content: object) -> tuple | None:
    """One entry per token; alternatives whose token is no text are left out."""
    if not content or not isinstance(content, list):
        return None
    return tuple(tuple(_alternatives(token)) for token in content)


def _alternatives(token: object) -> Iterable[tuple[str, float]]:
    tops = token.get("top_logprobs") if isinstance(token, dict) else None
    tops = [top for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
    # The sampled token need not be among the likeliest, and some servers send no alternatives at all.
    if isinstance(token, dict) and all(top.get("token") != token.get("token") for top in tops):
        tops.append(token)
    for top in tops:
        try:
            text = _text(top["token"])
        except (KeyError, TypeError):
            continue
        yield text, _number(top.get("logprob"))


def _number(value: object) -> float:
    """A log-probability; NaN for what is no number, which parsers refuse of a token that they were asked for."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


_READERS = {
    "chat": _read_chat,
    "responses": _read_responses,
    "decisions": _read_decisions,
    "messages": _read_messages,
}


# Token counts, in the words of each protocol.


def counts_of(api: str, usage: object) -> dict[str, int | None]:
    """Read the token counts of an `Answer`, by name; None where the provider gave none, or none that can be."""
    return _TOKENS[api](usage if isinstance(usage, dict) else {})


def _chat_tokens(usage: dict) -> dict:
    tokens_in, told = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    cached = _inner(usage, "prompt_tokens_details", "cached_tokens")
    # Some leave reasoning, which is billed as output, out of the completion tokens; the total has it.
    rest = None if total is None or tokens_in is None else max(0, total - tokens_in)
    reasoning = _inner(usage, "completion_tokens_details", "reasoning_tokens")
    out = told if rest is None else max(told or 0, rest)
    # More reasoning than output cannot be a part of it, so it comes on top.
    if out is not None and reasoning is not None and reasoning > out:
        out += reasoning
    return {
        "tokens_in": tokens_in,
        # DeepSeek's word for cached input.
        "tokens_cached": _count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached,
        "tokens_out": out,
        "tokens_reasoning": reasoning,
        "tokens_cache_write": None,
    }


def _input_output_tokens(usage: dict) -> dict:
    return {
        "tokens_in": _count(usage.get("input_tokens")),
        "tokens_cached": _inner(usage, "input_tokens_details", "cached_tokens"),
        "tokens_out": _count(usage.get("output_tokens")),
        "tokens_reasoning": _inner(usage, "output_tokens_details", "reasoning_tokens"),
        "tokens_cache_write": None,
    }


def _message_tokens(usage: dict) -> dict:
    # Anthropic counts what it reads from and writes to its prompt cache beside `input_tokens`, OpenAI within:
    # the sum makes `tokens_in` mean the same.
    new, cached, written = (
        _count(usage.get(f"{kind}input_tokens")) for kind in ("", "cache_read_", "cache_creation_")
    )
    return {
        "tokens_in": None if new is None else new + (cached or 0) + (written or 0),
        "tokens_cached": cached,
        "tokens_out": _count(usage.get("output_tokens")),
        "tokens_reasoning": _inner(usage, "output_tokens_details", "thinking_tokens"),
        "tokens_cache_write": written,
    }


def _inner(usage: dict, group: str, name: str) -> int | None:
    inner = usage.get(group)
    return _count(inner.get(name)) if isinstance(inner, dict) else None


def _count(value: object) -> int | None:
    """A count of tokens: a whole number, also as text or with a point; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # A bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _MOST else None


_TOKENS = {
    "chat": _chat_tokens,
    "responses": _input_output_tokens,
    "decisions": _input_output_tokens,
    "messages": _message_tokens,
}
