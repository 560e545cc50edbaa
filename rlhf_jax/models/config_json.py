"""Between config.json and ModelConfig: the pieces of which a family's row is made.

A piece reads some fields of config.json and writes them again. Nothing is passed over: a field that no piece
knows and that is not harmless is refused, because it might change what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig

_REQUIRED = object()

# Fields that say nothing about how logits are computed: names, token ids, dropout and initialisation of a
# training we do not do that way, caches, and defaults of generation.
_HARMLESS = """
    model_type architectures dtype torch_dtype transformers_version _name_or_path auto_map name_or_path
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens prefix
    use_cache cache_implementation initializer_range init_std pretraining_tp gradient_checkpointing
    attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop dropout layerdrop
    activation_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout num_labels id2label label2id problem_type finetuning_task task_specific_params
    output_attentions output_hidden_states return_dict return_dict_in_generate torchscript use_bfloat16
    tf_legacy_loss chunk_size_feed_forward pruned_heads tokenizer_class is_decoder max_length min_length
    do_sample temperature top_k top_p typical_p num_beams num_beam_groups num_return_sequences
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size diversity_penalty
    early_stopping remove_invalid_values exponential_decay_length_penalty begin_suppress_tokens output_scores
    begin_suppress_tokens _attn_implementation attn_implementation _attn_implementation_autoset
    reorder_and_upcast_attn output_router_logits router_aux_loss_coef router_jitter_noise n_ctx
    reward_mean
"""


class Fields:
    """The fields of one config.json, each taken once."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self.path = path
        harmless = frozenset(_HARMLESS.split())
        self._left = {name: value for name, value in raw.items() if name not in harmless}

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """A field's value; the default where it is missing, UserError where there is none."""
        if name not in self._left and default is _REQUIRED:
            raise UserError(f"{self.path}: {name} is missing; copy the config.json of the model again")
        return self._left.pop(name, default)

    def refuse(self, name: str, value: Any, fix: str) -> UserError:
        """The error that names a field, its value, and what would work."""
        return UserError(f"{self.path}: {name} is {value!r}; {fix}")

    def finish(self) -> None:
        """UserError when a field is left that is switched on and that nobody knows."""
        for name, value in self._left.items():
            if value not in (None, False):
                fix = "this setting is not known and might change what the model computes; "
                raise self.refuse(name, value, fix + "remove it from config.json if it does not")


class Piece(NamedTuple):
    """Some fields of a family's config.json.

    Attributes:
      read: (fields, ModelConfig fields read so far) -> more of them.
      write: ModelConfig -> fields of config.json.
    """

    read: Callable[[Fields, dict], dict]
    write: Callable[[ModelConfig], dict]


def same(ours: str, theirs: str, default: Any = _REQUIRED) -> Piece:
    """A field that both have, under two names. Numbers keep our type: 1 is 1.0 where ours is a float."""

    def read(fields: Fields, _: dict) -> dict:
        value = fields.take(theirs, default)
        if value is None and default is _REQUIRED:
            raise fields.refuse(theirs, None, "a number is needed")
        value = default if value is None else value
        return {ours: float(value) if ours.endswith(("eps", "scale", "softcap")) else value}

    return Piece(read, lambda config: {theirs: getattr(config, ours)})


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
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def activation(theirs: str, default: str, **means: str) -> Piece:
    """The activation; `means` is what a name stands for in this family where it is not what it says."""
    known = _ACTIVATIONS | means

    def read(fields: Fields, _: dict) -> dict:
        found = fields.take(theirs, default) or default
        if found not in known:
            raise fields.refuse(theirs, found, f"only {', '.join(sorted(known))} are supported")
        return {"activation": known[found]}

    def write(config: ModelConfig) -> dict:
        return {theirs: "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation}

    return Piece(read, write)


def heads() -> Piece:
    """Llama's names for heads: fewer key-value heads, and a head size, only where they are given."""

    def read(fields: Fields, so_far: dict) -> dict:
        count = fields.take("num_attention_heads")
        return {
            "heads": count,
            "kv_heads": fields.take("num_key_value_heads", None) or count,
            "head_dim": fields.take("head_dim", None) or so_far["width"] // count,
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
        count = fields.take(theirs)
        return {"heads": count, "kv_heads": count, "head_dim": so_far["width"] // count}

    return Piece(read, lambda config: {theirs: config.heads})


def inner(theirs: str) -> Piece:
    """The feed-forward's width, four times the model's where it is not given."""
    return Piece(
        lambda fields, so_far: {"ff": fields.take(theirs, None) or 4 * so_far["width"]},
        lambda config: {theirs: config.ff},
    )


def softcap(ours: str, theirs: str, default: float | None) -> Piece:
    """A cap, null where it is off."""
    return Piece(
        lambda fields, _: {ours: float(fields.take(theirs, default) or 0.0)},
        lambda config: {theirs: getattr(config, ours) or None},
    )


def query_scalar() -> Piece:
    """Gemma's query_pre_attn_scalar: scores are divided by its root."""
    return Piece(
        lambda fields, _: {"query_scale": float(fields.take("query_pre_attn_scalar", 256)) ** -0.5},
        lambda config: {"query_pre_attn_scalar": round(config.query_scale**-2)},
    )
