"""Models published as differences from a base whose licence forbids copies: target = base + difference.

AlpacaFarm's `*-wdiff` and the deltas of Wombat and Vicuna are float differences under the target's tensor names. The
target's embeddings often have one row more, for [PAD]; AlpacaFarm gives the base the mean of its rows there, Wombat
and Vicuna zeros. AlpacaFarm's reward models keep a whole language model below `backbone_model.` and a
`reward_head`; they are recovered as sequence classifiers. Tensors are read and written one at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface.tensor_files import Tensors

SUM_FILE = "model_sum.txt"

_BACKBONE = "backbone_model."
_HEADS = ("lm_head.weight", "embed_out.weight")
_NEW_HEADS = {"reward_head.weight": "score.weight", "score.weight": "score.weight"}
_HEAD_BIAS = "reward_head.bias"  # Goes into reward_mean: readers subtract that from every score.
_INV_FREQ = ".rotary_emb.inv_freq"  # Old files hold it; it is computed, yet counts in their checksum.
_SHOWN = 4

# A sum in float32 over n numbers is off by some 1e-7 of the sum of magnitudes, whatever the order.
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Match:
    """The counterpart in the base of one tensor of the difference (or target).

    Attributes:
      base: the base's name; "" for a tensor that the base does not have, which is taken whole.
      grown: the base's tensor gets one row more first.
    """

    base: str
    grown: bool = False


def match(
    base: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]], *, where: str, base_where: str
) -> dict[str, Match]:
    """Pairs each tensor of `other` with its counterpart in `base`; UserError if `base` is another model."""
    matches, wrong = {}, []
    for name, shape in other.items():
        short = name.removeprefix(_BACKBONE)
        found = base.get(short)
        if found == shape:
            matches[name] = Match(short)
        # One row more is the embedding of a [PAD] token.
        elif found is not None and len(shape) == 2 and shape == (found[0] + 1, found[1]):
            matches[name] = Match(short, grown=True)
        elif name in _NEW_HEADS or name == _HEAD_BIAS or name.endswith(_INV_FREQ):
            matches[name] = Match("")
        else:
            wrong.append(f"{short} is {'missing' if found is None else list(found)}, needed {list(shape)}")
    met = {m.base for m in matches.values()}
    classifier = any(name in other for name in _NEW_HEADS)
    # And the other way round: a layer that the target does not have would be lost without a word.
    for name in base:
        spare = name.endswith(_INV_FREQ) or (classifier and name in _HEADS)
        if name not in met and not spare and not any(line.startswith(f"{name} is ") for line in wrong):
            wrong.append(f"{name} is not in {where}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"base: {base_where} is not the model that {where} goes on; {'; '.join(wrong[:_SHOWN])}{more}; "
            "give the base it was made from (AlpacaFarm's reward models go on the recovered sft10k)"
        )
    return matches


def counterpart(base: Tensors, match: Match, shape: tuple[int, ...], new_rows: str) -> np.ndarray:
    """The base's tensor in this shape, float32: as it is, with one row more, or zeros where the base has none."""
    if not match.base:
        return np.zeros(shape, np.float32)
    found = base.read(match.base).astype(np.float32)
    if not match.grown:
        return found
    row = found.mean(0, keepdims=True, dtype=np.float64) if new_rows == "mean" else np.zeros_like(found[:1])
    return np.concatenate([found, row.astype(np.float32)])


def recovered(base: Tensors, diff: Tensors, name: str, match: Match, new_rows: str) -> np.ndarray:
    """One tensor of the target, float32."""
    found = diff.read(name).astype(np.float32)
    # Newer copies of the base lack this table, which the difference was made with: it is computed.
    if name.endswith(_INV_FREQ) and not match.base:
        return found + _inv_freq(found)
    return found + counterpart(base, match, found.shape, new_rows)


def difference(base: Tensors, target: Tensors, name: str, match: Match, new_rows: str) -> np.ndarray:
    """One tensor of the difference, float32."""
    found = target.read(name).astype(np.float32)
    return found - counterpart(base, match, found.shape, new_rows)


def target_name(name: str, *, classifier: bool) -> str | None:
    """The name under which a recovered tensor is written; None: it has no place in the model."""
    if name in _NEW_HEADS:
        return _NEW_HEADS[name]
    short = name.removeprefix(_BACKBONE)
    dropped = name == _HEAD_BIAS or name.endswith(_INV_FREQ) or (classifier and short in _HEADS)
    return None if dropped else short


def is_classifier(names: dict[str, tuple[int, ...]]) -> bool:
    """Whether these are the tensors of a reward model."""
    return any(name in names for name in _NEW_HEADS)


def head_bias(diff: Tensors) -> float:
    """The constant that an AlpacaFarm reward model adds to every score; 0 where there is none."""
    return float(diff.read(_HEAD_BIAS)[0]) if _HEAD_BIAS in diff.shapes else 0.0


class Checksum:
    """The sum of all numbers of a model, and of their magnitudes, added up tensor by tensor."""

    def __init__(self) -> None:
        self.total = self.magnitude = 0.0

    def add(self, tensor: np.ndarray) -> None:
        """Adds one tensor's numbers to the sums."""
        # float64: the published sums are compared, and 7e9 numbers would not add up in float32.
        self.total += float(tensor.sum(dtype=np.float64))
        self.magnitude += float(np.abs(tensor).sum(dtype=np.float64))

    def agrees(self, expected: float) -> bool:
        """Whether a published sum, perhaps computed in float32, agrees with this one up to rounding."""
        return math.isclose(self.total, expected, rel_tol=1e-5, abs_tol=_SUM_TOLERANCE * self.magnitude)


def expected_sum(folder: Path) -> float | None:
    """The sum of the target's numbers that model_sum.txt gives; None if there is no such file."""
    path = folder / SUM_FILE
    if not path.is_file():
        return None
    text = path.read_text().strip()
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}: {text[:40]!r} is not a number; download the file again") from None


def _inv_freq(like: np.ndarray) -> np.ndarray:
    # Llama's frequencies with its base of 10,000; all published differences are of Llama 1.
    half = like.shape[-1]
    return (10_000.0 ** (-np.arange(half) / half)).astype(np.float32)
