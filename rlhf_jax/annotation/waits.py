"""How long a server asks to wait before the next try."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from rlhf_jax.annotation.rates import span_s

_IN_WORDS = re.compile(
    r"(?:try again|retry) (?:in|after) (\d[\d.]*(?:ms|s|m|h|d)[\d.msh]*|\d[\d.]*(?= ?seconds?\b))"
)


def retry_after(headers: Mapping[str, str], message: str = "") -> float | None:
    """Seconds the server asks to wait: retry-after-ms, Retry-After in seconds or as an HTTP date, or in words."""
    found = _header_wait_s(headers)
    if found is None and (match := _IN_WORDS.search(message.lower())):
        told = match[1].rstrip(".")
        found = span_s(told) if not told.replace(".", "", 1).isdigit() else float(told)
    return found if found is not None and math.isfinite(found) else None


def _header_wait_s(headers: Mapping[str, str]) -> float | None:
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1e3)
        value = headers.get("retry-after")
        if value is None:
            return None
        number = value.strip().removesuffix("s").strip()
        if number.replace(".", "", 1).isdecimal():
            return float(number)
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
