"""What a record says of a turn or a response beside its text: whether it is to be trained on, whether it was liked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.left_out import RowError, has_content

# Of OpenAI and TRL, of ours, and of ms-swift and Axolotl. What the last ones hold may be something else, a number say.
TRAIN_FLAGS = ("weight", "train")
_OTHER_FLAGS = ("loss", "training", "trainable")
LIKED = ("label", "kto_tag")
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def flag(value: Any) -> bool | None:
    """True or false in any form that files keep it in; None where it is something else."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def is_flag(name: str, value: Any) -> bool:
    """Whether a field of a message says if it is trained."""
    return name in TRAIN_FLAGS or (name in _OTHER_FLAGS and flag(value) is not None)


def trained(message: Mapping[str, Any]) -> bool:
    """What the flags of a turn say; one that none speaks of is trained."""
    said = True
    for name in TRAIN_FLAGS + _OTHER_FLAGS:
        value = message.get(name)
        if not has_content(value) or not is_flag(name, value):
            continue
        found = flag(value)
        if found is None:
            numbers = "neither 0 nor 1" if name == "weight" else "neither true nor false"
            raise RowError(f"{name} {value!r} of a turn is {numbers}"[:60])
        said = said and found
    return said


def liked_column(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> str | None:
    """The column that says of one completion a row whether it is liked, as KTO's files do; None where there is none.

    0 and 1 may also be classes: they are read so beside a `completion` alone, as TRL's files have it.
    """
    numbers = "completion" in columns
    for name in LIKED:
        values = [row[name] for row in rows if has_content(row.get(name))]
        known = [flag(x) is not None and (numbers or isinstance(x, bool | str)) for x in values]
        if values and all(known):
            return name
    return None
