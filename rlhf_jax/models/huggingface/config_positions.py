"""Pieces of config.json for rotary positions, their scaling to longer sequences, and sliding windows."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.huggingface.config_json import ConfigFields, Piece

# Fields that transformers writes beside kinds of scaling that do not look at them.
_UNUSED = ("original_max_position_embeddings",)


def scaling_of(fields: ConfigFields, given: dict, max_positions: int) -> RopeScaling | None:
    """Reads a rope_scaling or rope_parameters object, its theta already taken; UserError for an unknown kind."""
    # Older versions of transformers call the field "type"; some files have both.
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    known = {"default": (), "linear": ("factor",)}
    known["llama3"] = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if not isinstance(kind, str) or kind not in known:
        raise fields.refuse("rope_scaling.rope_type", kind, f"only {', '.join(known)} are supported")
    for name, value in given.items():
        # A setting that this kind of scaling does not have is refused, since a version of transformers that
        # reads it would compute something else.
        if (
            name not in (*known[kind], *_UNUSED)
            and value is not None
            and (name, value) != ("partial_rotary_factor", 1.0)
        ):
            raise fields.refuse(f"rope_scaling.{name}", value, f"{kind!r} scaling does not have this setting")
    if kind == "default":
        return None
    # transformers too takes the model's own length where the original one is not given.
    given.setdefault("original_max_position_embeddings", max_positions)
    for name in known[kind]:
        if given.get(name) is None:
            raise fields.refuse(f"rope_scaling.{name}", None, f"{kind!r} scaling needs it")
    numbers = [fields.check("float", f"rope_scaling.{name}", given[name]) for name in known[kind]]
    if kind == "linear":
        return RopeScaling("linear", _positive(fields, "rope_scaling.factor", numbers[0]))
    factor, low, high, original = numbers
    return RopeScaling("llama3", _positive(fields, "rope_scaling.factor", factor), low, high, int(original))


def scaling_to(scaling: RopeScaling | None) -> dict | None:
    """The rope_scaling object of config.json."""
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }


def _positive(fields: ConfigFields, name: str, value: object) -> float:
    found = fields.check("float", name, value)
    if not found:
        raise fields.refuse(name, value, "a number above 0 is needed")
    return found


def _first(*values: object) -> object:
    """The first value that a file gives: null means "as by default", and 0 is a value, if a wrong one."""
    return next((value for value in values if value is not None), None)


def _object(fields: ConfigFields, name: str) -> dict:
    """Takes a field that holds an object or null; returns a copy, so that callers may pop from it."""
    found = fields.take(name, None)
    if found is not None and not isinstance(found, dict):
        raise fields.refuse(name, found, "an object {...} or null is needed")
    return dict(found or {})


def _rope_objects(fields: ConfigFields) -> dict:
    """The object of rotary settings: `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5."""
    old, new = _object(fields, "rope_scaling"), _object(fields, "rope_parameters")
    return old or new


def rope_fields(theta: float = 10_000.0) -> Piece:
    """Rotary positions over the whole head; `theta` is the family's default base."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        given = _rope_objects(fields)
        # transformers 5 writes the base into the object, 4 beside it.
        base = _first(given.pop("rope_theta", None), fields.take("rope_theta", None), theta)
        part = fields.take("partial_rotary_factor", None)
        if part not in (None, 1):
            raise fields.refuse("partial_rotary_factor", part, "only 1.0 is supported")
        scaling = scaling_of(fields, given, so_far["max_positions"])
        return {"rope_theta": _positive(fields, "rope_theta", base), "rope_scaling": scaling}

    return Piece(
        read,
        lambda config: {"rope_theta": config.rope_theta, "rope_scaling": scaling_to(config.rope_scaling)},
    )


def neox_rope() -> Piece:
    """GPT-NeoX: a leading part of each head is rotated."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        given = _rope_objects(fields)
        base = _first(given.pop("rope_theta", None), fields.take("rotary_emb_base", None), 10_000.0)
        part = _first(given.pop("partial_rotary_factor", None), fields.take("rotary_pct", None), 0.25)
        size = so_far["head_dim"]
        rotated = int(size * _positive(fields, "rotary_pct", part))
        # For `rotary_dim` 0 is all, and here it would be none.
        if not 0 < rotated <= size:
            fix = f"a part of 1 is needed, of at least one of the {size} features of a head"
            raise fields.refuse("rotary_pct", part, fix)
        return {
            "rope_theta": _positive(fields, "rotary_emb_base", base),
            "rotary_dim": rotated,
            "rope_scaling": scaling_of(fields, given, so_far["max_positions"]),
        }

    def write(config: ModelConfig) -> dict:
        return {
            "rotary_emb_base": config.rope_theta,
            "rotary_pct": (config.rotary_dim or config.head_dim) / config.head_dim,
            "rope_scaling": scaling_to(config.rope_scaling),
        }

    return Piece(read, write)


def gemma3_rope() -> Piece:
    """Gemma 3: windowed layers have a rotary base of their own, and their frequencies are never scaled."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        old, new = _object(fields, "rope_scaling"), _object(fields, "rope_parameters")
        odd = [name for name in new if name not in ("full_attention", "sliding_attention")]
        if odd:
            fix = "give full_attention and sliding_attention an object each"
            raise fields.refuse(f"rope_parameters.{odd[0]}", new[odd[0]], fix)
        parts = [new.get(name) or {} for name in ("full_attention", "sliding_attention")]
        if not all(isinstance(part, dict) for part in parts):
            raise fields.refuse("rope_parameters", new, "an object for each kind of attention is needed")
        # A file of transformers 4 has rope_scaling only, and means the layers that see everything.
        full, local = dict(parts[0]) | old, dict(parts[1])
        base = _first(full.pop("rope_theta", None), fields.take("rope_theta", None), 1_000_000.0)
        near = _first(local.pop("rope_theta", None), fields.take("rope_local_base_freq", None), 10_000.0)
        # ModelConfig has one scaling, for layers without a window; published Gemma 3 models have no other.
        if scaling_of(fields, local, so_far["max_positions"]) is not None:
            raise fields.refuse("rope_parameters.sliding_attention", local, "only 'default' is supported")
        scaling = scaling_of(fields, full, so_far["max_positions"])
        return {
            "rope_theta": _positive(fields, "rope_theta", base),
            "rope_theta_local": _positive(fields, "rope_local_base_freq", near),
            "rope_scaling": scaling,
        }

    def write(config: ModelConfig) -> dict:
        return {
            "rope_theta": config.rope_theta,
            "rope_local_base_freq": config.rope_theta_local,
            "rope_scaling": scaling_to(config.rope_scaling),
        }

    return Piece(read, write)


def _window(fields: ConfigFields, default: int | None) -> int | None:
    """The window of windowed layers in tokens: null and 0 mean none, and a missing field the family's default."""
    found = fields.take("sliding_window", default)
    return fields.check("int", "sliding_window", found) if found else None


def window_everywhere(default: int | None) -> Piece:
    """Every layer sees `sliding_window` tokens; null is all."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        window = _window(fields, default)
        return {"window": window, "local_layers": (True,) * so_far["layers"]} if window else {}

    return Piece(read, lambda config: {"sliding_window": config.window or None})


def window_in_some(local: Callable[[ConfigFields, int], tuple[bool, ...]], default: int) -> Piece:
    """Layers named in `layer_types`, or else by `local(fields, layers)`, see `sliding_window` tokens."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        # Called also where layer_types decides, since it takes fields that would else be left over.
        pattern = local(fields, so_far["layers"])
        types = fields.take("layer_types", None)
        window = _window(fields, default)
        if types is not None:
            if (
                not isinstance(types, list)
                or set(map(str, types)) - {"sliding_attention", "full_attention"}
                or len(types) != so_far["layers"]
            ):
                fix = f"use one of sliding_attention, full_attention for each of {so_far['layers']} layers"
                raise fields.refuse("layer_types", types, fix)
            pattern = tuple(kind == "sliding_attention" for kind in types)
        if not any(pattern):
            return {}
        if not window:
            raise fields.refuse(
                "sliding_window", window, "layers of sliding_attention need a number of tokens"
            )
        return {"window": window, "local_layers": pattern}

    def write(config: ModelConfig) -> dict:
        flags = config.local_layers or (False,) * config.layers
        return {
            "sliding_window": config.window or None,
            "layer_types": ["sliding_attention" if flag else "full_attention" for flag in flags],
        }

    return Piece(read, write)


def qwen_window() -> Piece:
    """Qwen: windows only where use_sliding_window says so, and from layer max_window_layers on."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        used = fields.of_kind("bool", "use_sliding_window", False)
        first = fields.take("max_window_layers", 28)
        # Published Qwen files carry a window that is switched off; then nothing of it counts.
        if not used:
            for name in ("sliding_window", "layer_types"):
                fields.take(name, None)
            return {}
        # 0 is right here (all layers are windowed), and `check` takes positive numbers only.
        if first != 0:
            fields.check("int", "max_window_layers", first)
        return window_in_some(lambda _, L: tuple(i >= first for i in range(L)), 4096).read(fields, so_far)

    def write(config: ModelConfig) -> dict:
        if not any(config.local_layers):
            return {"use_sliding_window": False}
        named = window_in_some(lambda _, L: (), 0).write(config)
        return {"use_sliding_window": True, "max_window_layers": config.local_layers.index(True)} | named

    return Piece(read, write)
