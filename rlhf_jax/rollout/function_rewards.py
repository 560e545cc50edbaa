"""Scores of sampled responses by a Python function of the user's, named as `module:function`.

The function is called once for a rollout, as `function(prompts, responses)`: prompts are the records of the file that
they come from, responses texts, and it returns as many numbers. None or NaN says that a response has no score. It has
to be deterministic: a run that goes on after a stop scores the same responses again.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.rollout.host_rewards import Verdicts


class FunctionScores:
    """Verdicts of one function. field: the setting that names it, for its errors."""

    def __init__(self, where: str, field: str) -> None:
        self._where, self._field = where, field
        self._function = function_at(where, field)

    def __call__(self, records: list[dict], responses: list[str]) -> Verdicts:
        # Copies: a function that changes a record would change the prompts of later iterations.
        try:
            found = self._function([dict(record) for record in records], list(responses))
        except Exception as error:
            told = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise UserError(f"{self._field}: {self._where} failed with {told}; mend the function") from error
        try:
            values = list(found)
        except TypeError:
            values = None
        if values is None or len(values) != len(responses):
            what = type(found).__name__ if values is None else f"{len(values)} values"
            raise self._error(f"returned {what} for {len(responses)} responses; return a number for each")
        for value in values:
            if value is not None and not _is_number(value):
                raise self._error(f"returned {value!r}; return finite numbers, or None for no score")
        readable = [value is not None and not math.isnan(value) for value in values]
        return Verdicts(
            [float(value) if able else 0.0 for value, able in zip(values, readable, strict=True)], readable
        )

    def _error(self, said: str) -> UserError:
        return UserError(f"{self._field}: {self._where} {said}")


def function_at(where: str, field: str) -> Callable[[list[dict], list[str]], Any]:
    """Imports `module:function`, modules of the working directory first; UserError says what is not there."""
    module, name = _parts(where, field)
    found = getattr(_imported(module, where, field), name, None)
    if not callable(found):
        raise UserError(f"{field}: {where}: the module {module} has no function {name}; name one that it has")
    return found


def source_file(where: str, field: str) -> str:
    """The file that the function's module is read from; "" where it has none."""
    return getattr(_imported(_parts(where, field)[0], where, field), "__file__", None) or ""


def _parts(where: str, field: str) -> tuple[str, str]:
    module, colon, name = where.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UserError(f"{field}: {where!r} names no function; write MODULE:FUNCTION, as my_rewards:length")
    return module, name


def _imported(module: str, where: str, field: str) -> ModuleType:
    here = os.getcwd()
    # Only while it is imported, so that no later import finds other files there.
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"{field}: {where}: no module {module} in {Path(here)} or among the installed packages"
            ) from None
        raise UserError(f"{field}: {where}: importing {module} failed with {error}") from error
    # A user's module may fail in any way when it is imported.
    except Exception as error:
        told = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(f"{field}: {where}: importing {module} failed with {told}") from error
    finally:
        sys.path.remove(here)


def _is_number(value: Any) -> bool:
    # Not bool: True for 1.0 is more often a mistake than meant. NumPy's and jax's scalars are numbers, too.
    try:
        return not isinstance(value, bool | str) and not math.isinf(float(value))
    except (TypeError, ValueError):
        return False
