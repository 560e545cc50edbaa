"""Text that every file, database and request can hold, and every message."""

from collections.abc import Mapping


def valid_text(text: str) -> str:
    """`text` with pairs of surrogates joined and each lone one as U+FFFD, which nothing that stores text refuses."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shown(value: object) -> str:
    """A value of a record as a message shows it: on one line, and not at any length."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more digits than Python writes.
        return f"a long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def valid_values(value: object) -> object:
    """`value`, which may be nested as JSON is, with every text valid."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, Mapping):
        return {valid_values(key): valid_values(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(valid_values(item) for item in value)
    return value
