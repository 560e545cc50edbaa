"""Translates the metadata of a GGUF file into config.json.

Every field of the architecture (`llama.…`) is used or refused: one that is passed over could be a scale that changes
every number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.models.gguf.gguf_files import Contents

# GGUF's name of an architecture -> class of transformers; Mistral's models call themselves llama there.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FREQS = "rope_freqs.weight"

# (factor, low_freq_factor, high_freq_factor, original positions) of the models that stretch positions as Llama 3.1
# does: files hold only the factors of each frequency that follow from them.
_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))


class GgufSettings:
    """The fields below the architecture's name (`llama.…`), each of which must be taken."""

    def __init__(self, found: Contents) -> None:
        self._path, self._prefix = found.path, f"{found.fields['general.architecture']}."
        self._left = {k: v for k, v in found.fields.items() if k.startswith(self._prefix)}

    def take(self, name: str, default: Any = None) -> Any:
        """Takes one field; UserError if it is missing and has no default."""
        value = self._left.pop(self._prefix + name, default)
        if value is None:
            raise UserError(f"{self._path}: no {self._prefix}{name}, which a model of this kind needs")
        return value

    def only(self, name: str, *values: Any) -> None:
        """Takes a field that is either missing or one of `values`; UserError for another value."""
        if (found := self._left.pop(self._prefix + name, values[0])) not in values:
            raise self.refuse(name, found)

    def refuse(self, name: str, value: Any) -> UserError:
        """The error for a field or value that is not supported."""
        return UserError(
            f"{self._path}: {self._prefix}{name} is {value!r}, which is not supported; "
            "take the model as a Hugging Face folder"
        )

    def finish(self) -> None:
        """Raises UserError for the first field that was not taken."""
        for name, value in self._left.items():
            raise self.refuse(name.removeprefix(self._prefix), value)


def config_json(found: Contents) -> dict[str, Any]:
    """config.json of the model; UserError where it is of another kind or has a setting that is not known."""
    architecture = found.fields.get("general.architecture")
    if architecture not in ARCHITECTURES or found.fields.get("general.type", "model") != "model":
        kind = found.fields.get("general.type", "model")
        what = f"general.architecture is {architecture!r}" if kind == "model" else f"general.type is {kind!r}"
        raise UserError(f"{found.path}: {what}; use a model of {', '.join(ARCHITECTURES)}")
    fields = GgufSettings(found)
    heads, width = fields.take("attention.head_count"), fields.take("embedding_length")
    head_dim = fields.take("attention.key_length", width // heads if isinstance(heads, int) else 0)
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": width,
        "intermediate_size": fields.take("feed_forward_length"),
        "num_hidden_layers": fields.take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.take("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": fields.take("context_length"),
        "rms_norm_eps": _decimal(fields.take("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(fields.take("rope.freq_base", 10_000.0)),
        "vocab_size": _tokens(found),
        # There is no field for this: a tied model just has no output matrix.
        "tie_word_embeddings": all(x.name != "output.weight" for x in found.tensors),
        "torch_dtype": "float32",
    }
    # llama.cpp lets these differ from layer to layer and then stores a list.
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if not isinstance(config[name], int):
            raise UserError(
                f"{found.path}: {name} differs between layers ({config[name]}), which is not supported"
            )
    # Before `_check_plain`, because it takes the fields of the scaling.
    config["rope_scaling"] = _scaling(found, fields, config)
    _check_plain(fields, config, _tokens(found))
    return config | _qwen_or_llama(architecture) | gguf_token_ids(found)


def gguf_token_ids(found: Contents) -> dict[str, int | None]:
    """The special token ids as config.json names them."""
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{ours}_token_id": found.fields.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in ids.items()
    }


def _qwen_or_llama(architecture: str) -> dict[str, Any]:
    if architecture == "llama":
        return {"attention_bias": False, "mlp_bias": False}
    return {"use_sliding_window": False} | ({"attention_bias": False} if architecture == "qwen3" else {})


def _check_plain(fields: GgufSettings, config: dict[str, Any], tokens: int) -> None:
    """Refuses settings that a plain decoder does not have, and fields that are not known."""
    fields.only("attention.value_length", config["head_dim"])
    fields.only("rope.dimension_count", config["head_dim"])
    fields.only("vocab_size", tokens)
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)
    fields.only("attention.causal", True)
    fields.only("tensor_data_layout", "Meta AI original pth")
    window = fields.take("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:
        raise fields.refuse("attention.sliding_window", window)
    fields.finish()


def _tokens(found: Contents) -> int:
    """The vocabulary's size by the rows of the embedding, which may be padded beyond the tokenizer's tokens."""
    for x in found.tensors:
        if x.name == "token_embd.weight":
            rows, tokens = int(x.shape[-1]), len(found.fields.get("tokenizer.ggml.tokens", ()))
            if tokens > rows:
                raise UserError(
                    f"{found.path}: its tokenizer has {tokens} tokens, but token_embd.weight has {rows} rows; "
                    "take another copy of the model"
                )
            return rows
    raise UserError(f"{found.path}: no tensor token_embd.weight; it holds no whole language model")


def _scaling(found: Contents, fields: GgufSettings, config: dict[str, Any]) -> dict[str, Any] | None:
    """The rope_scaling of config.json: none, linear, or Llama 3.1's, which a file stores as a tensor of factors."""
    kind = fields.take("rope.scaling.type", "none")
    fields.take("rope.scaling.finetuned", False)  # Says how the model was made, not how it is computed.
    # rope.scale_linear is the older name, taken in any case so that it is not left over.
    factor = fields.take("rope.scaling.factor", fields.take("rope.scale_linear", 1.0))
    original = fields.take("rope.scaling.original_context_length", config["max_position_embeddings"])
    if kind not in ("none", "linear"):
        raise fields.refuse("rope.scaling.type", kind)
    # llama.cpp stores Llama 3.1's scaling as the divisor of each frequency. The settings that give these
    # divisors are found by trying those of the published models.
    factors = next((x for x in found.tensors if x.name == ROPE_FREQS), None)
    if factors is None:
        if factor in (0.0, 1.0):
            return None
        return {"rope_type": "linear", "factor": _decimal(factor)}
    for values in _LLAMA3:
        if _llama3_factors(config, *values).shape == factors.data.shape and np.allclose(
            _llama3_factors(config, *values), factors.data, rtol=1e-4
        ):
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return {"rope_type": "llama3", **dict(zip(names, values, strict=True))}
    raise UserError(
        f"{found.path}: the factors in {ROPE_FREQS} are not those of Llama 3.1 or 3.2 (original context "
        f"{original}); take the model as a Hugging Face folder"
    )


def _llama3_factors(
    config: dict[str, Any], factor: float, low: float, high: float, original: int
) -> np.ndarray:
    """The divisor of each rotary frequency, as in Llama 3.1's own code (`apply_scaling`)."""
    dim = config["head_dim"]
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _decimal(value: float) -> float:
    """The number that was rounded to the file's float32: 1e-05 for 9.999999747378752e-06."""
    # NumPy prints the shortest decimal that rounds to the same float32.
    return float(str(np.float32(value)))
