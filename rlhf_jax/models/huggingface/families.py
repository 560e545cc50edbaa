"""The table of model families that can be read from and written to Hugging Face folders.

A row says which fields of config.json are which fields of ModelConfig (pieces of `config_json`), and where each
tensor of a checkpoint goes in our parameters (`family_tensors`).
"""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.models.huggingface.config_json import (
    ConfigFields,
    Piece,
    activation,
    attention_heads,
    config_json_of,
    inner,
    only,
    plain_heads,
    query_scalar,
    same,
    softcap,
)
from rlhf_jax.models.huggingface.config_positions import (
    gemma3_rope,
    neox_rope,
    qwen_window,
    rope_fields,
    window_everywhere,
    window_in_some,
)
from rlhf_jax.models.huggingface.family_tensors import (
    GEMMA_LAYER,
    GPT2_LAYER,
    GPTJ_LAYER,
    LLAMA_LAYER,
    LLAMA_TRUNK,
    MIXTRAL_LAYER,
    NEOX_LAYER,
    OPT_LAYER,
    Tensor,
    norm_of,
    tensor_of,
)

# Masks and rotary tables that older versions of transformers wrote beside the weights.
_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


class Family(NamedTuple):
    """One row of the table: how config.json and checkpoints of a family are read and written.

    Attributes:
      classes: of transformers: causal language model, sequence classification.
      pieces: of config.json.
      prefix: of the trunk's tensors; base models are saved without it.
      trunk, layer: tensors of the trunk and, below "layers", of one layer. Those whose parameters the config
        does not ask for are not expected.
      head: name of the language head's weight.
      blocks: name under which the layers are numbered.
      harmless: endings of names that are buffers: they are computed, so a file may hold them.
    """

    classes: tuple[str, str]
    pieces: tuple[Piece, ...]
    prefix: str
    trunk: tuple[Tensor, ...]
    layer: tuple[Tensor, ...]
    head: str = "lm_head.weight"
    blocks: str = "layers"
    harmless: tuple[str, ...] = _BUFFERS


# --- Llama and those with its names -------------------------------------------------------------------------


def _shape(
    tied: bool = False,
    positions: int = 2048,
    eps: float = 1e-6,
    kv_heads: int | None = None,
    head_dim: int | None = None,
) -> tuple[Piece, ...]:
    """The shape of a model under Llama's names, with the defaults of the family's class in transformers."""
    return (
        same("vocab_size", "vocab_size"),
        same("width", "hidden_size"),
        same("layers", "num_hidden_layers"),
        attention_heads(kv_heads, head_dim),
        same("ff", "intermediate_size"),
        same("norm_eps", "rms_norm_eps", eps),
        same("tie_embeddings", "tie_word_embeddings", tied),
        same("max_positions", "max_position_embeddings", positions),
    )


def _like_llama(name: str, *pieces: Piece, layer: tuple[Tensor, ...] = LLAMA_LAYER, text: str = "") -> Family:
    classes = (f"{name}ForCausalLM", f"{name}{text}ForSequenceClassification")
    return Family(classes, pieces, "model.", LLAMA_TRUNK, layer)


def _gemma(*pieces: Piece) -> tuple[Piece, ...]:
    # Gemma multiplies embeddings by the root of the width; config.json does not say so, its class does.
    scale = Piece(lambda _, so_far: {"embed_scale": so_far["width"] ** 0.5}, lambda config: {})
    return (*pieces, scale, only("attention_bias", False), only("use_bidirectional_attention", False, None))


# Files without layer_types: Gemma 2 windows every other layer, from the first on.
def _gemma2_local(_: ConfigFields, layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(layers))


def _gemma3_local(fields: ConfigFields, layers: int) -> tuple[bool, ...]:
    # Gemma 3 windows five layers and leaves the sixth open.
    every = fields.whole("sliding_window_pattern", 6)
    # transformers 5 writes this beside layer_types, and reads only those.
    fields.take("_sliding_window_pattern", None)
    return tuple((i + 1) % every != 0 for i in range(layers))


_SILU = (activation("hidden_act", "silu"),)
_NO_BIAS = (only("attention_bias", False), only("mlp_bias", False))
_GEMMA_2_3 = config_json_of(norm_offset=True, post_norms=True)

# --- GPT-2, GPT-J, GPT-NeoX, OPT ----------------------------------------------------------------------------

_BIASES = {"norm": "layer", "gated": False, "mlp_bias": True}


def _gpt_shape(tied: bool, positions: int) -> tuple[Piece, ...]:
    return (
        same("vocab_size", "vocab_size"),
        same("width", "n_embd"),
        same("layers", "n_layer"),
        plain_heads("n_head"),
        inner("n_inner"),
        same("norm_eps", "layer_norm_epsilon", 1e-5),
        same("tie_embeddings", "tie_word_embeddings", tied),
        same("max_positions", "n_positions", positions),
        activation("activation_function", "gelu_new"),
    )


def _residual() -> Piece:
    return Piece(
        lambda fields, _: {
            "residual": "parallel" if fields.of_kind("bool", "use_parallel_residual", True) else "serial"
        },
        lambda config: {"use_parallel_residual": config.residual == "parallel"},
    )


def _chosen_experts() -> Piece:
    def read(fields: ConfigFields, so_far: dict) -> dict:
        found = fields.whole("num_experts_per_tok", 2)
        if found > so_far["experts"]:
            fix = f"at most num_local_experts={so_far['experts']} can be chosen"
            raise fields.refuse("num_experts_per_tok", found, fix)
        return {"experts_per_token": found}

    return Piece(read, lambda config: {"num_experts_per_tok": config.experts_per_token})


def _opt_width() -> Piece:
    """OPT's width of embeddings, which must equal the model's: OPT-350m, where it does not, is not supported."""

    def read(fields: ConfigFields, so_far: dict) -> dict:
        found = fields.take("word_embed_proj_dim", None)
        if found not in (None, so_far["width"]):
            raise fields.refuse(
                "word_embed_proj_dim", found, f"only hidden_size={so_far['width']} is supported"
            )
        return {}

    return Piece(read, lambda config: {"word_embed_proj_dim": config.width})


# Defaults are those of transformers' classes, which leave out of config.json what equals them: a default that
# differs here would silently read another model. tests/models/test_foreign_configs.py holds them together.
FAMILIES: dict[str, Family] = {
    "llama": _like_llama("Llama", *_shape(), rope_fields(), *_SILU, *_NO_BIAS),
    # Mistral's files of version 0.1 have a window of 4096, later ones null, which is none.
    "mistral": _like_llama(
        "Mistral", *_shape(positions=131072, kv_heads=8), rope_fields(), *_SILU, window_everywhere(4096)
    ),
    "mixtral": _like_llama(
        "Mixtral",
        *_shape(positions=131072, eps=1e-5, kv_heads=8),
        rope_fields(1_000_000.0),
        *_SILU,
        window_everywhere(None),
        same("experts", "num_local_experts", 8),
        _chosen_experts(),
        layer=MIXTRAL_LAYER,
    ),
    "qwen2": _like_llama(
        "Qwen2",
        *_shape(positions=32768, kv_heads=32),
        rope_fields(),
        *_SILU,
        qwen_window(),
        # Qwen 2 has biases on query, key and value, and its config.json does not mention them.
        config_json_of(qkv_bias=True),
    ),
    "qwen3": _like_llama(
        "Qwen3",
        *_shape(positions=32768, kv_heads=32, head_dim=128),
        rope_fields(),
        *_SILU,
        qwen_window(),
        only("attention_bias", False),
        config_json_of(qk_norm=True),
    ),
    "gemma": _like_llama(
        "Gemma",
        *_shape(tied=True, positions=8192, kv_heads=16, head_dim=256),
        *_gemma(rope_fields(), config_json_of(norm_offset=True)),
        # Old files say "gelu" and mean its tanh form; hidden_activation came later and means the same.
        activation("hidden_act", "gelu_pytorch_tanh", gelu="gelu_tanh"),
        only("hidden_activation", None, "gelu_pytorch_tanh"),
    ),
    "gemma2": _like_llama(
        "Gemma2",
        *_shape(tied=True, positions=8192, kv_heads=4, head_dim=256),
        *_gemma(rope_fields(), _GEMMA_2_3),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        only("hidden_act", None, "gelu_pytorch_tanh"),
        window_in_some(_gemma2_local, 4096),
        query_scalar(),
        softcap("attention_softcap", "attn_logit_softcapping", 50.0),
        softcap("logit_softcap", "final_logit_softcapping", 30.0),
        layer=GEMMA_LAYER,
    ),
    "gemma3_text": _like_llama(
        "Gemma3",
        *_shape(tied=True, positions=131072, kv_heads=4, head_dim=256),
        *_gemma(gemma3_rope(), _GEMMA_2_3, config_json_of(qk_norm=True)),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        window_in_some(_gemma3_local, 4096),
        query_scalar(),
        softcap("attention_softcap", "attn_logit_softcapping", None),
        softcap("logit_softcap", "final_logit_softcapping", None),
        layer=GEMMA_LAYER,
        text="Text",
    ),
    "gpt_neox": Family(
        ("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification"),
        (
            same("vocab_size", "vocab_size"),
            same("width", "hidden_size"),
            same("layers", "num_hidden_layers"),
            plain_heads("num_attention_heads"),
            same("ff", "intermediate_size"),
            same("norm_eps", "layer_norm_eps", 1e-5),
            same("tie_embeddings", "tie_word_embeddings", False),
            same("max_positions", "max_position_embeddings", 2048),
            activation("hidden_act", "gelu"),
            neox_rope(),
            _residual(),
            only("attention_bias", True),
            config_json_of(**_BIASES, qkv_bias=True, out_bias=True),
        ),
        "gpt_neox.",
        (tensor_of("embed_in.weight", "embed"), *norm_of("final_layer_norm", "norm")),
        NEOX_LAYER,
        head="embed_out.weight",
    ),
    "gpt2": Family(
        ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
        (
            *_gpt_shape(tied=True, positions=1024),
            only("scale_attn_weights", True),
            only("scale_attn_by_inverse_layer_idx", False),
            config_json_of(**_BIASES, qkv_bias=True, out_bias=True, positions="learned"),
        ),
        "transformer.",
        (tensor_of("wte.weight", "embed"), tensor_of("wpe.weight", "positions"), *norm_of("ln_f", "norm")),
        GPT2_LAYER,
        blocks="h",
    ),
    "gptj": Family(
        ("GPTJForCausalLM", "GPTJForSequenceClassification"),
        (
            *_gpt_shape(tied=False, positions=2048),
            same("rotary_dim", "rotary_dim"),
            only("rotary", True),
            only("scale_attn_weights", True),
            # GPT-J's attention has no biases, but its language head has one.
            config_json_of(**_BIASES, residual="shared", rotary_interleaved=True, head_bias=True),
        ),
        "transformer.",
        (tensor_of("wte.weight", "embed"), *norm_of("ln_f", "norm")),
        GPTJ_LAYER,
        blocks="h",
    ),
    "opt": Family(
        ("OPTForCausalLM", "OPTForSequenceClassification"),
        (
            same("vocab_size", "vocab_size"),
            same("width", "hidden_size"),
            same("layers", "num_hidden_layers"),
            plain_heads("num_attention_heads"),
            same("ff", "ffn_dim"),
            same("tie_embeddings", "tie_word_embeddings", True),
            same("max_positions", "max_position_embeddings", 2048),
            activation("activation_function", "relu"),
            _opt_width(),
            # OPT-350m alone norms after each half of a block, and has no final norm.
            only("do_layer_norm_before", True),
            only("_remove_final_layer_norm", False),
            only("enable_bias", True),
            only("layer_norm_elementwise_affine", True),
            config_json_of(**_BIASES, qkv_bias=True, out_bias=True, positions="learned", position_offset=2),
        ),
        "model.decoder.",
        (
            tensor_of("embed_tokens.weight", "embed"),
            tensor_of("embed_positions.weight", "positions"),
            *norm_of("final_layer_norm", "norm"),
        ),
        OPT_LAYER,
    ),
}
