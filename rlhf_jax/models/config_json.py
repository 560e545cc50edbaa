"""Between config.json and ModelConfig: the pieces of which a family's row is made.

A piece reads some fields of config.json and writes them again. A field that no piece knows is refused where it might
change what the model computes; one that transformers' own class does not have, and so ignores, is named and passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.config_fields import REQUIRED, Fields

# Each takes time and memory before its weights are missed, so what no model has is refused by its field.
_MOST = {"layers": 10_000}


class Piece(NamedTuple):
    """Some fields of a family's config.json.

    Attributes:
      read: (fields, ModelConfig fields read so far) -> more of them.
      write: ModelConfig -> fields of config.json.
    """

    read: Callable[[Fields, dict], dict]
    write: Callable[[ModelConfig], dict]


def same(ours: str, theirs: str, default: Any = REQUIRED) -> Piece:
    """A field that both have, under two names. Numbers keep our type: 1 is 1.0 where ours is a float."""
    kind = {field.name: field.type for field in dataclasses.fields(ModelConfig)}[ours]

    def read(fields: Fields, _: dict) -> dict:
        found = fields.of_kind(kind, theirs, default)
        if ours in _MOST and found > _MOST[ours]:
            raise fields.refuse(theirs, found, f"no model has more than {_MOST[ours]}")
        return {ours: found}

    return Piece(
        read,
        lambda config: {theirs: getattr(config, ours)},
    )


def only(theirs: str, value: Any, *also: Any) -> Piece:
    """A field that must have this value (or one that means the same); missing means that it has."""

    def read(fields: Fields, _: dict) -> dict:
        found = fields.take(theirs, value)
        if found != value and found not in also:
            raise fields.refuse(theirs, found, f"only {value!r} is supported")
        return {}

    return Piece(read, lambda config: {theirs: value})


def settings(**values: Any) -> Piece:
    """What a family always is, and its config.json does not say."""
    return Piece(lambda fields, _: values, lambda config: {})


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def activation(theirs: str, default: str, **means: str) -> Piece:
    """The activation; `means` is what a name stands for in this family where it is not what it says."""
    known = _ACTIVATIONS | means

    def read(fields: Fields, _: dict) -> dict:
        found = fields.of_kind("str", theirs, default)
        if found not in known:
            raise fields.refuse(theirs, found, f"only {', '.join(sorted(known))} are supported")
        return {"activation": known[found]}

    def write(config: ModelConfig) -> dict:
        return {theirs: "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation}

    return Piece(read, write)


def heads(kv_heads: int | None = None, head_dim: int | None = None) -> Piece:
    """Llama's names for heads: fewer key-value heads, and a head size, only where they are given.

    kv_heads, head_dim: of the family where config.json does not say; None is as many, and as wide as they go in.
    """

    def read(fields: Fields, so_far: dict) -> dict:
        count = fields.whole("num_attention_heads")
        fewer, size = (fields.take(*x) for x in (("num_key_value_heads", kv_heads), ("head_dim", head_dim)))
        if fewer is not None and count % fields.check("int", "num_key_value_heads", fewer):
            raise fields.refuse(
                "num_key_value_heads", fewer, f"a divisor of num_attention_heads={count} is needed"
            )
        if size is not None:
            fields.check("int", "head_dim", size)
        return {
            "heads": count,
            "kv_heads": fewer or count,
            "head_dim": size or _shared(fields, "num_attention_heads", count, so_far["width"]),
        }

    def write(config: ModelConfig) -> dict:
        return {
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
        }

    return Piece(read, write)


def plain_heads(theirs: str) -> Piece:
    """As many key-value heads as query heads, which share the width."""

    def read(fields: Fields, so_far: dict) -> dict:
        count = fields.whole(theirs)
        size = _shared(fields, theirs, count, so_far["width"])
        return {"heads": count, "kv_heads": count, "head_dim": size}

    return Piece(read, lambda config: {theirs: config.heads})


def _shared(fields: Fields, theirs: str, count: int, width: int) -> int:
    if width % count:
        raise fields.refuse(theirs, count, f"a divisor of the width {width} is needed")
    return width // count


def inner(theirs: str) -> Piece:
    """The feed-forward's width, four times the model's where it is not given."""
    return Piece(
        lambda fields, so_far: {"ff": fields.whole(theirs, None) or 4 * so_far["width"]},
        lambda config: {theirs: config.ff},
    )


def softcap(ours: str, theirs: str, default: float | None) -> Piece:
    """A cap, null where it is off."""
    return Piece(
        lambda fields, _: {ours: _cap(fields, theirs, default)},
        lambda config: {theirs: getattr(config, ours) or None},
    )


def _cap(fields: Fields, theirs: str, default: float | None) -> float:
    found = fields.take(theirs, default)
    return 0.0 if found is None else fields.check("float", theirs, found)


def query_scalar() -> Piece:
    """Gemma's query_pre_attn_scalar: scores are divided by its root."""
    return Piece(
        lambda fields, _: {"query_scale": fields.whole("query_pre_attn_scalar", 256) ** -0.5},
        lambda config: {"query_pre_attn_scalar": round(config.query_scale**-2)},
    )
