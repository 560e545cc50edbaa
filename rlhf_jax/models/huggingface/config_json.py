"""Translation between config.json and ModelConfig: the pieces of which a family's row in `families` is made.

A piece reads some fields of config.json into ModelConfig and writes them out again. A field that no piece reads is an
error if it might change what the model computes. One that transformers' own class does not have, and so ignores, is
passed over with a notice that names it. Positions and windows have their pieces in `config_positions`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import startup

# The fields of a config.json: taken one by one, and what is said of those that are left.

REQUIRED = object()

# Fields that say nothing about how logits are computed: names, token ids, dropout and initialisation of a
# training we do not do that way, caches, and defaults of generation.
_HARMLESS = """
    model_type architectures dtype torch_dtype transformers_version _name_or_path name_or_path
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens prefix
    use_cache cache_implementation initializer_range init_std pretraining_tp gradient_checkpointing
    attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop dropout layerdrop
    activation_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout num_labels id2label label2id problem_type finetuning_task task_specific_params
    output_attentions output_hidden_states return_dict return_dict_in_generate torchscript use_bfloat16
    tf_legacy_loss chunk_size_feed_forward tokenizer_class is_decoder max_length min_length
    do_sample temperature top_k top_p typical_p num_beams num_beam_groups num_return_sequences
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size diversity_penalty
    early_stopping remove_invalid_values exponential_decay_length_penalty begin_suppress_tokens output_scores
    begin_suppress_tokens _attn_implementation attn_implementation _attn_implementation_autoset
    reorder_and_upcast_attn output_router_logits router_aux_loss_coef router_jitter_noise n_ctx
    reward_mean score_at score_as thresholds
"""
HARMLESS = frozenset(_HARMLESS.split())

# What transformers' shared code asks of the settings of any model, also where its class does not have the field.
_OF_ANY_MODEL = """
    attention_chunk_size is_causal layer_types sliding_window per_layer_config head_dim partial_rotary_factor
    rope_scaling rope_parameters rope_theta original_max_position_embeddings first_k_dense_replace num_mtp_layers
    mlp_layer_types kv_sharing_modes text_config vision_config audio_config
"""
OF_ANY_MODEL = frozenset(_OF_ANY_MODEL.split())
# Those of them that are on where they are missing: for the others False is off.
_ON = {"is_causal": True}


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a field that no piece reads says only what every model of ours is."""
    # A list of layers that all see everything is what a family without `layer_types` computes anyway.
    whole = name == "layer_types" and isinstance(value, list) and all(x == "full_attention" for x in value)
    return value in (None, [], {}) or whole or (name in _ON and value is _ON[name])


class ConfigFields:
    """The fields of one config.json. Pieces take them one by one; `finish` deals with those that are left."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self.path = path
        self._left = {name: value for name, value in raw.items() if name not in HARMLESS}

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """Takes a field's value, or the default if it is missing; UserError if there is no default either."""
        if name not in self._left and default is REQUIRED:
            raise UserError(f"{self.path}: {name} is missing; copy the config.json of the model again")
        return self._left.pop(name, default)

    def whole(self, name: str, default: Any = REQUIRED) -> Any:
        """Takes a positive whole number, or the default if the field is missing or null."""
        return self._checked(name, default, "int")

    def of_kind(self, kind: str, name: str, default: Any = REQUIRED) -> Any:
        """Takes a value of one of ModelConfig's types: "int", "float", "bool", "str"."""
        return self._checked(name, default, kind)

    def _checked(self, name: str, default: Any, kind: str) -> Any:
        value = self.take(name, default)
        # transformers writes null for "as by default".
        if value is None and default is not REQUIRED:
            value = default
        if value is not None or default is REQUIRED:
            return self.check(kind, name, value)
        return None

    def check(self, kind: str, name: str, value: Any) -> Any:
        """Returns a value that is of this kind, as a float if the kind is "float"; UserError otherwise."""
        fits, what = _KINDS[kind]
        if not fits(value):
            raise self.refuse(name, value, f"{what} is needed")
        return float(value) if kind == "float" else value

    def refuse(self, name: str, value: Any, fix: str) -> UserError:
        """The error that names a field, its value, and what would work."""
        return UserError(f"{self.path}: {name} is {value!r}; {fix}")

    def finish(self, family: str) -> None:
        """Refuses the fields that are left if transformers would read them; names the others in a notice."""
        left = {name: value for name, value in self._left.items() if not changes_nothing(name, value)}
        for name in ("quantization_config", "compression_config"):
            if left.get(name):
                raise self.refuse(name, left[name], quantized_advice(left[name]))
        # transformers is imported only where something is left to ask it about: that takes seconds.
        if not any(value is not False or name in _ON for name, value in left.items()):
            return
        its, defaults = _class_of(family)
        passed = []
        for name, value in left.items():
            if name in defaults and value == defaults[name]:
                continue
            # False is taken for off, unless the class itself has the field: then `defaults` names it.
            if name in defaults or (name in OF_ANY_MODEL and (value is not False or name in _ON)):
                fix = f"this setting of transformers' {its} is not supported"
                raise self.refuse(name, value, f"{fix}; only {defaults.get(name, _ON.get(name))!r} is")
            if value is not False:
                passed.append(name)
        if passed:
            have = "has no such setting" if len(passed) == 1 else "has no such settings"
            startup.notice_once(
                f"{self.path}: {', '.join(passed)}: passed over, as transformers' {its} {have}"
            )


def _class_of(family: str) -> tuple[str, dict[str, Any]]:
    """(name of transformers' settings class, its fields and their defaults)."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # It would ask for torch.
    from transformers import CONFIG_MAPPING

    found = CONFIG_MAPPING[family]
    defaults = vars(found())
    # attribute_map has the second names of a class's fields: GPT-2's n_embd is hidden_size too.
    return found.__name__, defaults | {name: defaults.get(of) for name, of in found.attribute_map.items()}


def quantized_advice(settings: Any) -> str:
    """Advice for quantised weights, by the kind of quantisation."""
    kind = settings.get("quant_method") if isinstance(settings, dict) else None
    # Old bitsandbytes files have no quant_method, but load_in_8bit and load_in_4bit.
    if kind is None and isinstance(settings, dict) and any(name.startswith("load_in_") for name in settings):
        kind = "bitsandbytes"
    fix = "quantized weights cannot be trained; "
    if kind in ("bitsandbytes", "mxfp4", "hqq", "torchao"):
        return (
            f"{fix}undo it with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).dequantize()"
            ".save_pretrained(...), or take the float model that it was made from"
        )
    return f"{fix}take the float model that it was made from (that of the same name without {kind or 'its ending'})"


def _is_number(value: Any) -> bool:
    # bool is a subclass of int, so JSON's true would pass for 1.
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (
        lambda x: isinstance(x, int) and not isinstance(x, bool) and 0 < x < 2**31,
        "a positive whole number",
    ),
    "float": (lambda x: _is_number(x) and 0 <= x <= sys.float_info.max, "a number of at least 0"),
    "bool": (lambda x: isinstance(x, bool), "true or false"),
    "str": (lambda x: isinstance(x, str), "a name"),
}


# Each takes time and memory before its weights are missed, so what no model has is refused by its field.
_MOST = {"layers": 10_000}


class Piece(NamedTuple):
    """Some fields of a family's config.json.

    Attributes:
      read: (fields, ModelConfig fields read so far) -> more of them.
      write: ModelConfig -> fields of config.json.
    """

    read: Callable[[ConfigFields, dict], dict]
    write: Callable[[ModelConfig], dict]


def same(ours: str, theirs: str, default: Any = REQUIRED) -> Piece:
    """A field that ModelConfig has too, as `ours`. Numbers get the type of ours: 1 is 1.0 where ours is a float."""
    # Annotations are postponed, so a field's type is its name as text, as `of_kind` takes it.
    kind = {field.name: field.type for field in dataclasses.fields(ModelConfig)}[ours]

    def read(fields: ConfigFields, _: dict) -> dict:
        found = fields.of_kind(kind, theirs, default)
        if ours in _MOST and found > _MOST[ours]:
            raise fields.refuse(theirs, found, f"no model has more than {_MOST[ours]}")
        return {ours: found}

    return Piece(
        read,
        lambda config: {theirs: getattr(config, ours)},
    )


def only(theirs: str, value: Any, *also: Any) -> Piece:
    """A field that is supported with one value only, or others that mean the same. Missing, it has that value."""

    def read(fields: ConfigFields, _: dict) -> dict:
        found = fields.take(theirs, value)
        if found != value and found not in also:
            raise fields.refuse(theirs, found, f"only {value!r} is supported")
        return {}

    return Piece(read, lambda config: {theirs: value})


def config_json_of(**values: Any) -> Piece:
    """ModelConfig fields that are the same for every model of a family, so that its config.json does not have them."""
    return Piece(lambda fields, _: values, lambda config: {})


# transformers' names: "gelu" is the exact one, and three others are
# approximations by tanh that differ in speed only.
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
    """The activation function; `means` has the names that stand for another function in this family than elsewhere."""
    known = _ACTIVATIONS | means

    def read(fields: ConfigFields, _: dict) -> dict:
        found = fields.of_kind("str", theirs, default)
        if found not in known:
            raise fields.refuse(theirs, found, f"only {', '.join(sorted(known))} are supported")
        return {"activation": known[found]}

    def write(config: ModelConfig) -> dict:
        return {theirs: "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation}

    return Piece(read, write)


def attention_heads(kv_heads: int | None = None, head_dim: int | None = None) -> Piece:
    """Numbers and size of attention heads, under Llama's names. Only the number of query heads is required.

    kv_heads, head_dim: the family's defaults. None means as many key-value heads as query heads, and heads that
    share the width.
    """

    def read(fields: ConfigFields, so_far: dict) -> dict:
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
    """Attention heads of the older families: as many key-value heads as query heads, and they share the width."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        count = fields.whole(theirs)
        size = _shared(fields, theirs, count, so_far["width"])
        return {"heads": count, "kv_heads": count, "head_dim": size}

    return Piece(read, lambda config: {theirs: config.heads})


def _shared(fields: ConfigFields, theirs: str, count: int, width: int) -> int:
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
    """A soft cap on scores or logits, which is null in config.json where it is off."""
    return Piece(
        lambda fields, _: {ours: _cap(fields, theirs, default)},
        lambda config: {theirs: getattr(config, ours) or None},
    )


def _cap(fields: ConfigFields, theirs: str, default: float | None) -> float:
    found = fields.take(theirs, default)
    return 0.0 if found is None else fields.check("float", theirs, found)


def query_scalar() -> Piece:
    """Gemma's query_pre_attn_scalar: scores are divided by its root."""
    return Piece(
        lambda fields, _: {"query_scale": fields.whole("query_pre_attn_scalar", 256) ** -0.5},
        # Rounded: the field is a whole number, and a root squared again is that only nearly.
        lambda config: {"query_pre_attn_scalar": round(config.query_scale**-2)},
    )
