"""The subclasses of `MethodSuite` in the tests of the methods, found by their text, so that none is imported for it."""

import importlib
import re
import sys
from pathlib import Path

METHODS = Path(__file__).parents[1] / "methods"


def suites() -> dict[str, str]:
    """The module of each subclass, by its name."""
    return {
        name: path.stem
        for path in sorted(METHODS.glob("test_*.py"))
        for name in re.findall(r"^class (\w+)\(MethodSuite\)", path.read_text(), re.MULTILINE)
    }


def cases() -> dict:
    """The case of each, or None where the method has no loss of its own."""
    # As pytest has them: modules that tests share lie beside the tests of their room.
    sys.path += [str(METHODS), str(METHODS.parent / "data")]
    return {name: getattr(importlib.import_module(file), name)().case() for name, file in suites().items()}


def jobs() -> set[str]:
    """The methods that they try."""
    files = {(METHODS / f"{file}.py").read_text() for file in suites().values()}
    return {job for text in files for job in re.findall(r"^    job = \"(\w+)\"$", text, re.MULTILINE)}
