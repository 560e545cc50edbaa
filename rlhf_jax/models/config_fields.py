"""The fields of a config.json: taken one by one, and what is said of those that are left."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import notices

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
    reward_mean score_at
"""
HARMLESS = frozenset(_HARMLESS.split())

# What transformers' shared code asks of the settings of any model, also where its class does not have the field.
_OF_ANY_MODEL = """
    attention_chunk_size is_causal layer_types sliding_window per_layer_config head_dim partial_rotary_factor
    rope_scaling rope_parameters rope_theta original_max_position_embeddings first_k_dense_replace num_mtp_layers
    mlp_layer_types kv_sharing_modes text_config vision_config audio_config
"""
OF_ANY_MODEL = frozenset(_OF_ANY_MODEL.split())


class Fields:
    """The fields of one config.json, each taken once."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self.path = path
        self._left = {name: value for name, value in raw.items() if name not in HARMLESS}

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """A field's value; the default where it is missing, UserError where there is none."""
        if name not in self._left and default is REQUIRED:
            raise UserError(f"{self.path}: {name} is missing; copy the config.json of the model again")
        return self._left.pop(name, default)

    def whole(self, name: str, default: Any = REQUIRED) -> Any:
        """A positive whole number, or the default, which a null stands for too."""
        return self._checked(name, default, "int")

    def of_kind(self, kind: str, name: str, default: Any = REQUIRED) -> Any:
        """A value of one of ModelConfig's types: "int", "float", "bool", "str"."""
        return self._checked(name, default, kind)

    def _checked(self, name: str, default: Any, kind: str) -> Any:
        value = self.take(name, default)
        if value is None and default is not REQUIRED:
            value = default
        if value is not None or default is REQUIRED:
            return self.check(kind, name, value)
        return None

    def check(self, kind: str, name: str, value: Any) -> Any:
        """The value, as a float where one is wanted; UserError where it is of another kind."""
        fits, what = _KINDS[kind]
        if not fits(value):
            raise self.refuse(name, value, f"{what} is needed")
        return float(value) if kind == "float" else value

    def refuse(self, name: str, value: Any, fix: str) -> UserError:
        """The error that names a field, its value, and what would work."""
        return UserError(f"{self.path}: {name} is {value!r}; {fix}")

    def finish(self, family: str) -> None:
        """What is left: refused where the family's class of transformers has it, else said to be passed over."""
        left = {name: value for name, value in self._left.items() if value not in (None, [], {})}
        for name in ("quantization_config", "compression_config"):
            if left.get(name):
                raise self.refuse(name, left[name], quantized_advice(left[name]))
        if not any(value is not False for value in left.values()):
            return
        its, defaults = _class_of(family)
        passed = []
        for name, value in left.items():
            if name in defaults and value == defaults[name]:
                continue
            if name in defaults or (name in OF_ANY_MODEL and value is not False):
                fix = f"this setting of transformers' {its} is not supported"
                raise self.refuse(name, value, f"{fix}; only {defaults.get(name)!r} is")
            if value is not False:
                passed.append(name)
        if passed:
            have = "has no such setting" if len(passed) == 1 else "has no such settings"
            notices.once(f"{self.path}: {', '.join(passed)}: passed over, as transformers' {its} {have}")


def _class_of(family: str) -> tuple[str, dict[str, Any]]:
    """(name of transformers' settings class, its fields and their defaults)."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # It would ask for torch.
    from transformers import CONFIG_MAPPING

    found = CONFIG_MAPPING[family]
    defaults = vars(found())
    return found.__name__, defaults | {name: defaults.get(of) for name, of in found.attribute_map.items()}


def quantized_advice(settings: Any) -> str:
    """What helps with weights of this kind of quantisation."""
    kind = settings.get("quant_method") if isinstance(settings, dict) else None
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
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (
        lambda x: isinstance(x, int) and not isinstance(x, bool) and 0 < x < 2**31,
        "a positive whole number",
    ),
    "float": (lambda x: _is_number(x) and 0 <= x < math.inf, "a number of at least 0"),
    "bool": (lambda x: isinstance(x, bool), "true or false"),
    "str": (lambda x: isinstance(x, str), "a name"),
}
