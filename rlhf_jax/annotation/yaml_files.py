"""YAML files of judges and pools: what cannot be read is one line, and no field stands twice."""

from __future__ import annotations

from pathlib import Path

import yaml

from rlhf_jax.data.valid_text import valid_values
from rlhf_jax.errors import UserError


def read_yaml(path: Path) -> dict:
    """The fields of a file, their texts valid. Errors: UserError that names the file and the line."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(loaded, dict):
            raise UserError(f"{path}: holds {type(loaded).__name__}, not fields; start with `name: ...`")
        return valid_values(loaded)
    except FileNotFoundError:
        others = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"there is {', '.join(others)}" if others else "no .yaml file is there"
        raise UserError(f"{path}: no such judge or pool file; in {path.parent} {there}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a judge or pool file") from None
    # The last two: dates, numbers and anchors that cannot be.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({_problem(error)}); mend the line it names") from None


class _Loader(yaml.SafeLoader):
    """YAML without a field twice in one mapping, of which the first would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, "found a field a second time", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(error: Exception) -> str:
    """What is wrong and where; the line itself may hold a key and is not repeated."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        known = isinstance(error, ValueError | RecursionError)
        return " ".join(str(error).split())[:200] if known else "it cannot be read"
    return f"{getattr(error, 'problem', None) or 'it cannot be read'}, line {mark.line + 1}, column {mark.column + 1}"
