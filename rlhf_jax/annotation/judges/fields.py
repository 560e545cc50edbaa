"""Checked reading of a YAML mapping: errors name the file, the field and the closest thing that works."""

import difflib
import math
from pathlib import Path

import yaml

from rlhf_jax.data.files.tables import valid_values
from rlhf_jax.data.files.yaml_loader import UniqueKeyLoader
from rlhf_jax.errors import UserError

# Reading the YAML files of judges and pools: one line for what cannot be read, and no field twice.


def read_yaml(path: Path) -> dict:
    """Read the fields of a file. Errors: UserError that names the file and the line."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
        if not isinstance(loaded, dict):
            raise UserError(f"{path}: holds {type(loaded).__name__}, not fields; start with `name: ...`")
        return valid_values(loaded)
    except FileNotFoundError:
        others = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"there is {', '.join(others)}" if others else "no .yaml file is there"
        raise UserError(f"{path}: no such judge or pool file; in {path.parent} {there}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a judge or pool file") from None
    # ValueError: a date or number that cannot be; RecursionError: anchors that contain themselves.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({_problem(error)}); mend the line it names") from None


def _problem(error: Exception) -> str:
    """What is wrong and where; the line itself may hold a key and is not repeated."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        known = isinstance(error, ValueError | RecursionError)
        return " ".join(str(error).split())[:200] if known else "it cannot be read"
    return f"{getattr(error, 'problem', None) or 'it cannot be read'}, line {mark.line + 1}, column {mark.column + 1}"


_REQUIRED = object()
# Fields whose wrong values are not shown in messages: they may hold a key or a password.
_NOT_REPEATED = ("api_key_env", "base_url")
_WORDS = {str: "text", int: "a whole number", float: "a number", dict: "a mapping", list: "a list"}


def closest_name(name: str, known: list[str]) -> str:
    """Suggest the known name closest to `name`, or list all of them when none is close."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)) or 'none'}"


class YamlFields:
    """Takes fields out of a mapping one by one; `done` refuses those that are left.

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
        """Take a field's value, which must be of `kind` (a bool is not a number); `default` where it is missing."""
        self._known.append(name)
        if name not in self._left:
            if default is not _REQUIRED:
                return default
            # Not as for unknown fields: here one of those that are given may be the wanted one, misspelt.
            near = difflib.get_close_matches(name, self._left, n=1, cutoff=0.6)
            hint = f"did you mean it by {near[0]!r}?" if near else f"add `{name}: ...`"
            raise UserError(f"{self.where}: {name}: missing; {hint}")
        value = self._left.pop(name)
        # YAML reads `yes` and `on` as booleans, and a bool would pass for an int.
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(dict.fromkeys(_WORDS.get(k, "null") for k in kinds))
            shown = type(value).__name__ if name in _NOT_REPEATED else repr(value)
            raise UserError(f"{self.where}: {name}: found {shown}; it must be {wanted}")
        return value

    def text(self, name: str, *, default: object = _REQUIRED, empty: bool = False) -> str:
        """Take a string, non-empty unless `empty`."""
        value = self.take(name, str, default)
        if not value and not empty:
            raise UserError(f"{self.where}: {name}: is empty; give some text")
        return value

    def texts(self, name: str, *, default: tuple[str, ...]) -> tuple[str, ...]:
        """Take a string or a list of them, as a tuple."""
        value = self.take(name, (str, list), default=list(default))
        values = [value] if isinstance(value, str) else value
        wrong = next((item for item in values if not isinstance(item, str) or not item), None)
        if wrong is not None or not values:
            raise UserError(
                f"{self.where}: {name}: found {value!r}; give text or a list of texts (quote y, n, on, off)"
            )
        return tuple(values)

    def choice(self, name: str, options: tuple[str, ...], *, default: object = _REQUIRED) -> str:
        """Take a string that is one of `options`."""
        value = self.take(name, str, default)
        if value not in options:
            raise UserError(f"{self.where}: {name}: unknown {value!r}; {closest_name(value, list(options))}")
        return value

    def number(
        self, name: str, *, low: float = -math.inf, high: float = math.inf, default: object = _REQUIRED
    ) -> float:
        """Take a finite number in [low, high]."""
        value = self.take(name, (int, float), default)
        if not (low <= value <= high) or not math.isfinite(value):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be within {low:g} and {high:g}")
        return float(value)

    def integer(
        self, name: str, *, low: float = -math.inf, high: float = math.inf, default: object = _REQUIRED
    ) -> int | None:
        """Take a whole number in [low, high]; null means not given where the default is None."""
        value = self.take(name, (int, type(None)) if default is None else int, default)
        if value is not None and not (low <= value <= high):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be within {low:g} and {high:g}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Take true or false."""
        self._known.append(name)
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name}: found {value!r}; it must be true or false")
        return value

    def mapping(self, name: str, *, default: dict) -> dict:
        """Take a mapping with text keys."""
        value = self.take(name, dict, default)
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise UserError(f"{self.where}: {name}: the key {wrong!r} is not text; quote it")
        return value

    def done(self) -> None:
        """Refuse a field that was not taken. Errors: UserError with the closest known name."""
        if self._left:
            name = str(next(iter(self._left)))
            raise UserError(f"{self.where}: unknown field {name!r}; {closest_name(name, self._known)}")
