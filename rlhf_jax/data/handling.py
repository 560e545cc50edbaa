"""What is done with rows where there is a choice: the settings of a page's `data` that say so."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Handling:
    """Attributes:
    not_ended: responses that their sampler cut, as their records say: keep (without an end token) or drop.
    """

    not_ended: str = "keep"


def handling_of(data: Any) -> Handling:
    """The settings that a page's `data` group has; what it does not have stays at its default."""
    return Handling(**{field.name: data[field.name] for field in fields(Handling) if field.name in data})
