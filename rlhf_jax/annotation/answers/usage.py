"""Token counts as providers report them, read for every protocol: what is billed, never an estimate."""

# More than this in one request is no count.
_MOST = 2**31 - 1


def counts_of(api: str, usage: object) -> dict[str, int | None]:
    """Read the token counts of an `Answer`, by name; None where the provider gave none, or none that can be."""
    return _TOKENS[api](usage if isinstance(usage, dict) else {})


def _chat(usage: dict) -> dict:
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


def _input_output(usage: dict) -> dict:
    return {
        "tokens_in": _count(usage.get("input_tokens")),
        "tokens_cached": _inner(usage, "input_tokens_details", "cached_tokens"),
        "tokens_out": _count(usage.get("output_tokens")),
        "tokens_reasoning": _inner(usage, "output_tokens_details", "reasoning_tokens"),
        "tokens_cache_write": None,
    }


def _messages(usage: dict) -> dict:
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


_TOKENS = {"chat": _chat, "responses": _input_output, "decisions": _input_output, "messages": _messages}
