"""Checked reading of a YAML mapping: errors name the file, the field and the closest thing that works."""

import difflib
import math

from rlhf_jax.errors import UserError

_REQUIRED = object()
_NOT_REPEATED = ("api_key_env", "base_url")
_WORDS = {str: "text", int: "a whole number", float: "a number", dict: "a mapping", list: "a list"}


def closest(name: str, known: list[str]) -> str:
    """ "did you mean 'x'?" when something known is near, else the list of what is known."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)) or 'none'}"


class Fields:
    """Takes fields out of a mapping one by one; `done` complains about what nobody took.

    `where` begins every message. The typed methods raise UserError for a missing field without a default, a
    value of another kind, or one out of range.
    """

    def __init__(self, where: str, values: dict) -> None:
        self.where = where
        self._left = dict(values)
        self._known: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type | tuple[type, ...], default: object = _REQUIRED) -> object:
        """The field's value if it is of `kind` (a bool is not a number), else `default`."""
        self._known.append(name)
        if name not in self._left:
            if default is not _REQUIRED:
                return default
            near = difflib.get_close_matches(name, self._left, n=1, cutoff=0.6)
            hint = f"did you mean it by {near[0]!r}?" if near else f"add `{name}: ...`"
            raise UserError(f"{self.where}: {name}: missing; {hint}")
        value = self._left.pop(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(dict.fromkeys(_WORDS.get(k, "null") for k in kinds))
            # What stands where a key or an address should may be one.
            shown = type(value).__name__ if name in _NOT_REPEATED else repr(value)
            raise UserError(f"{self.where}: {name}: found {shown}; it must be {wanted}")
        return value

    def text(self, name: str, *, default: object = _REQUIRED, empty: bool = False) -> str:
        """A string, non-empty unless `empty`."""
        value = self.take(name, str, default)
        if not value and not empty:
            raise UserError(f"{self.where}: {name}: is empty; give some text")
        return value

    def texts(self, name: str, *, default: tuple[str, ...]) -> tuple[str, ...]:
        """A string or a list of them, as a tuple."""
        value = self.take(name, (str, list), default=list(default))
        values = [value] if isinstance(value, str) else value
        wrong = next((item for item in values if not isinstance(item, str) or not item), None)
        if wrong is not None or not values:
            raise UserError(
                f"{self.where}: {name}: found {value!r}; give text or a list of texts (quote y, n, on, off)"
            )
        return tuple(values)

    def choice(self, name: str, options: tuple[str, ...], *, default: object = _REQUIRED) -> str:
        """A string that is one of `options`."""
        value = self.take(name, str, default)
        if value not in options:
            raise UserError(f"{self.where}: {name}: unknown {value!r}; {closest(value, list(options))}")
        return value

    def number(
        self, name: str, *, low: float = -math.inf, high: float = math.inf, default: object = _REQUIRED
    ) -> float:
        """A finite number in [low, high]."""
        value = self.take(name, (int, float), default)
        if not (low <= value <= high) or not math.isfinite(value):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be within {low:g} and {high:g}")
        return float(value)

    def integer(
        self, name: str, *, low: float = -math.inf, high: float = math.inf, default: object = _REQUIRED
    ) -> int | None:
        """A whole number in [low, high]; null means not given where the default is None."""
        value = self.take(name, (int, type(None)) if default is None else int, default)
        if value is not None and not (low <= value <= high):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be within {low:g} and {high:g}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        self._known.append(name)
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be true or false")
        return value

    def mapping(self, name: str, *, default: dict) -> dict:
        """A mapping with text keys."""
        value = self.take(name, dict, default)
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise UserError(f"{self.where}: {name}: the key {wrong!r} is not text; quote it")
        return value

    def done(self) -> None:
        """Complain about fields nobody took."""
        if self._left:
            name = str(next(iter(self._left)))
            raise UserError(f"{self.where}: unknown field {name!r}; {closest(name, self._known)}")
