"""The model families of Hugging Face: for each, a row of settings and a map of names.

A row says which fields of config.json are which fields of ModelConfig (pieces of `config_json`), and where each
tensor of a checkpoint goes in our parameters (layouts of `layouts`).
"""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.models import layouts
from rlhf_jax.models.config_fields import Fields
from rlhf_jax.models.config_json import (
    Piece,
    activation,
    heads,
    inner,
    only,
    plain_heads,
    query_scalar,
    same,
    settings,
    softcap,
)
from rlhf_jax.models.config_positions import (
    gemma3_rope,
    neox_rope,
    qwen_window,
    rope,
    window_everywhere,
    window_in_some,
)
from rlhf_jax.models.layouts import Layout

Path = tuple[str, ...]

# Masks and rotary tables that older versions of transformers wrote beside the weights.
_BUFFERS = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
      name: below the family's prefix, and below the layer's where it is a layer's; {e} is the expert.
      leaves: the parameters it holds.
      layout: how.
    """

    name: str
    leaves: tuple[Path, ...]
    layout: Layout


class Family(NamedTuple):
    """One row of the table.

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


def _to(name: str, leaf: str, layout: Layout = layouts.SAME) -> Tensor:
    """A tensor that holds one parameter; "a.b" is the path ("a", "b")."""
    return Tensor(name, (tuple(leaf.split(".")),), layout)


def _qkv(name: str, layout: Layout, ending: str = "") -> Tensor:
    """A tensor that holds query, key and value."""
    return Tensor(name, tuple(("attention", part + ending) for part in "qkv"), layout)


def _norm(name: str, leaf: str) -> tuple[Tensor, Tensor]:
    return _to(f"{name}.weight", f"{leaf}.scale"), _to(f"{name}.bias", f"{leaf}.bias")


def _projections(attention: str, out: str) -> tuple[Tensor, ...]:
    """Separate tensors for query, key, value and output."""
    found = []
    for part in "qkv":
        found.append(_to(f"{attention}.{part}_proj.weight", f"attention.{part}", layouts.INTO_HEADS))
        found.append(_to(f"{attention}.{part}_proj.bias", f"attention.{part}_bias"))
    found.append(_to(f"{attention}.{out}.weight", "attention.o", layouts.OUT_OF_HEADS))
    found.append(_to(f"{attention}.{out}.bias", "attention.o_bias"))
    return tuple(found)


def _plain_mlp(up: str, down: str, layout: Layout = layouts.MATRIX) -> tuple[Tensor, ...]:
    return (
        _to(f"{up}.weight", "mlp.up", layout),
        _to(f"{up}.bias", "mlp.up_bias"),
        _to(f"{down}.weight", "mlp.down", layout),
        _to(f"{down}.bias", "mlp.down_bias"),
    )


# --- Llama and those with its names -------------------------------------------------------------------------

_LLAMA_TRUNK = (_to("embed_tokens.weight", "embed"), *_norm("norm", "norm"))
_LLAMA_ATTENTION = (
    *_norm("input_layernorm", "attention_norm"),
    *_projections("self_attn", "o_proj"),
    _to("self_attn.q_norm.weight", "attention.q_norm.scale"),
    _to("self_attn.k_norm.weight", "attention.k_norm.scale"),
)
_LLAMA_MLP = tuple(
    _to(f"mlp.{part}_proj.weight", f"mlp.{part}", layouts.MATRIX) for part in ("gate", "up", "down")
)
_LLAMA_LAYER = (*_LLAMA_ATTENTION, *_norm("post_attention_layernorm", "mlp_norm"), *_LLAMA_MLP)
_GEMMA_LAYER = (
    *_LLAMA_ATTENTION,
    *_norm("post_attention_layernorm", "attention_post_norm"),
    *_norm("pre_feedforward_layernorm", "mlp_norm"),
    *_norm("post_feedforward_layernorm", "mlp_post_norm"),
    *_LLAMA_MLP,
)
_MIXTRAL_LAYER = (
    *_LLAMA_ATTENTION,
    *_norm("post_attention_layernorm", "mlp_norm"),
    _to("block_sparse_moe.gate.weight", "mlp.router", layouts.MATRIX),
    _to("block_sparse_moe.experts.{e}.w1.weight", "mlp.gate", layouts.MATRIX),
    _to("block_sparse_moe.experts.{e}.w3.weight", "mlp.up", layouts.MATRIX),
    _to("block_sparse_moe.experts.{e}.w2.weight", "mlp.down", layouts.MATRIX),
)


def _shape(
    tied: bool = False,
    positions: int = 2048,
    eps: float = 1e-6,
    kv_heads: int | None = None,
    head_dim: int | None = None,
) -> tuple[Piece, ...]:
    """Fields under Llama's names, and what the family's class of transformers takes for those that are missing."""
    return (
        same("vocab_size", "vocab_size"),
        same("width", "hidden_size"),
        same("layers", "num_hidden_layers"),
        heads(kv_heads, head_dim),
        same("ff", "intermediate_size"),
        same("norm_eps", "rms_norm_eps", eps),
        same("tie_embeddings", "tie_word_embeddings", tied),
        same("max_positions", "max_position_embeddings", positions),
    )


def _like_llama(
    name: str, *pieces: Piece, layer: tuple[Tensor, ...] = _LLAMA_LAYER, text: str = ""
) -> Family:
    classes = (f"{name}ForCausalLM", f"{name}{text}ForSequenceClassification")
    return Family(classes, pieces, "model.", _LLAMA_TRUNK, layer)


def _gemma(*pieces: Piece) -> tuple[Piece, ...]:
    # The width's root as an embedding factor is not in config.json.
    scale = Piece(lambda _, so_far: {"embed_scale": so_far["width"] ** 0.5}, lambda config: {})
    return (*pieces, scale, only("attention_bias", False), only("use_bidirectional_attention", False, None))


def _gemma2_local(_: Fields, layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(layers))


def _gemma3_local(fields: Fields, layers: int) -> tuple[bool, ...]:
    every = fields.whole("sliding_window_pattern", 6)
    fields.take(
        "_sliding_window_pattern", None
    )  # transformers 5 writes it beside layer_types, and reads those
    return tuple((i + 1) % every != 0 for i in range(layers))


_SILU = (activation("hidden_act", "silu"),)
_NO_BIAS = (only("attention_bias", False), only("mlp_bias", False))
_GEMMA_2_3 = settings(norm_offset=True, post_norms=True)

# --- GPT-2, GPT-J, GPT-NeoX, OPT ----------------------------------------------------------------------------

_GPT2_LAYER = (
    *_norm("ln_1", "attention_norm"),
    _qkv("attn.c_attn.weight", layouts.CONV_QKV),
    _qkv("attn.c_attn.bias", layouts.CONV_QKV_BIAS, "_bias"),
    _to("attn.c_proj.weight", "attention.o", layouts.CONV_OUT_OF_HEADS),
    _to("attn.c_proj.bias", "attention.o_bias"),
    *_norm("ln_2", "mlp_norm"),
    *_plain_mlp("mlp.c_fc", "mlp.c_proj", layouts.SAME),
)
_GPTJ_LAYER = (
    *_norm("ln_1", "attention_norm"),
    *_projections("attn", "out_proj"),
    *_plain_mlp("mlp.fc_in", "mlp.fc_out"),
)
_NEOX_LAYER = (
    *_norm("input_layernorm", "attention_norm"),
    _qkv("attention.query_key_value.weight", layouts.BY_HEAD_QKV),
    _qkv("attention.query_key_value.bias", layouts.BY_HEAD_QKV_BIAS, "_bias"),
    _to("attention.dense.weight", "attention.o", layouts.OUT_OF_HEADS),
    _to("attention.dense.bias", "attention.o_bias"),
    *_norm("post_attention_layernorm", "mlp_norm"),
    *_plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)
_OPT_LAYER = (
    *_norm("self_attn_layer_norm", "attention_norm"),
    *_projections("self_attn", "out_proj"),
    *_norm("final_layer_norm", "mlp_norm"),
    *_plain_mlp("fc1", "fc2"),
)
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
    def read(fields: Fields, so_far: dict) -> dict:
        found = fields.whole("num_experts_per_tok", 2)
        if found > so_far["experts"]:
            fix = f"at most num_local_experts={so_far['experts']} can be chosen"
            raise fields.refuse("num_experts_per_tok", found, fix)
        return {"experts_per_token": found}

    return Piece(read, lambda config: {"num_experts_per_tok": config.experts_per_token})


def _opt_width() -> Piece:
    """OPT-350m embeds in fewer dimensions than it computes in; the others say so with equal numbers."""

    def read(fields: Fields, so_far: dict) -> dict:
        found = fields.take("word_embed_proj_dim", None)
        if found not in (None, so_far["width"]):
            raise fields.refuse(
                "word_embed_proj_dim", found, f"only hidden_size={so_far['width']} is supported"
            )
        return {}

    return Piece(read, lambda config: {"word_embed_proj_dim": config.width})


FAMILIES: dict[str, Family] = {
    "llama": _like_llama("Llama", *_shape(), rope(), *_SILU, *_NO_BIAS),
    "mistral": _like_llama(
        "Mistral", *_shape(positions=131072, kv_heads=8), rope(), *_SILU, window_everywhere(4096)
    ),
    "mixtral": _like_llama(
        "Mixtral",
        *_shape(positions=131072, eps=1e-5, kv_heads=8),
        rope(1_000_000.0),
        *_SILU,
        window_everywhere(None),
        same("experts", "num_local_experts", 8),
        _chosen_experts(),
        layer=_MIXTRAL_LAYER,
    ),
    "qwen2": _like_llama(
        "Qwen2", *_shape(positions=32768, kv_heads=32), rope(), *_SILU, qwen_window(), settings(qkv_bias=True)
    ),
    "qwen3": _like_llama(
        "Qwen3",
        *_shape(positions=32768, kv_heads=32, head_dim=128),
        rope(),
        *_SILU,
        qwen_window(),
        only("attention_bias", False),
        settings(qk_norm=True),
    ),
    "gemma": _like_llama(
        "Gemma",
        *_shape(tied=True, positions=8192, kv_heads=16, head_dim=256),
        *_gemma(rope(), settings(norm_offset=True)),
        # Old files say "gelu" and mean its tanh form; hidden_activation came later and means the same.
        activation("hidden_act", "gelu_pytorch_tanh", gelu="gelu_tanh"),
        only("hidden_activation", None, "gelu_pytorch_tanh"),
    ),
    "gemma2": _like_llama(
        "Gemma2",
        *_shape(tied=True, positions=8192, kv_heads=4, head_dim=256),
        *_gemma(rope(), _GEMMA_2_3),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        only("hidden_act", None, "gelu_pytorch_tanh"),
        window_in_some(_gemma2_local, 4096),
        query_scalar(),
        softcap("attention_softcap", "attn_logit_softcapping", 50.0),
        softcap("logit_softcap", "final_logit_softcapping", 30.0),
        layer=_GEMMA_LAYER,
    ),
    "gemma3_text": _like_llama(
        "Gemma3",
        *_shape(tied=True, positions=131072, kv_heads=4, head_dim=256),
        *_gemma(gemma3_rope(), _GEMMA_2_3, settings(qk_norm=True)),
        activation("hidden_activation", "gelu_pytorch_tanh"),
        window_in_some(_gemma3_local, 4096),
        query_scalar(),
        softcap("attention_softcap", "attn_logit_softcapping", None),
        softcap("logit_softcap", "final_logit_softcapping", None),
        layer=_GEMMA_LAYER,
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
            settings(**_BIASES, qkv_bias=True, out_bias=True),
        ),
        "gpt_neox.",
        (_to("embed_in.weight", "embed"), *_norm("final_layer_norm", "norm")),
        _NEOX_LAYER,
        head="embed_out.weight",
    ),
    "gpt2": Family(
        ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
        (
            *_gpt_shape(tied=True, positions=1024),
            only("scale_attn_weights", True),
            only("scale_attn_by_inverse_layer_idx", False),
            settings(**_BIASES, qkv_bias=True, out_bias=True, positions="learned"),
        ),
        "transformer.",
        (_to("wte.weight", "embed"), _to("wpe.weight", "positions"), *_norm("ln_f", "norm")),
        _GPT2_LAYER,
        blocks="h",
    ),
    "gptj": Family(
        ("GPTJForCausalLM", "GPTJForSequenceClassification"),
        (
            *_gpt_shape(tied=False, positions=2048),
            same("rotary_dim", "rotary_dim"),
            only("rotary", True),
            only("scale_attn_weights", True),
            settings(**_BIASES, residual="shared", rotary_interleaved=True, head_bias=True),
        ),
        "transformer.",
        (_to("wte.weight", "embed"), *_norm("ln_f", "norm")),
        _GPTJ_LAYER,
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
            only("do_layer_norm_before", True),
            only("_remove_final_layer_norm", False),
            only("enable_bias", True),
            only("layer_norm_elementwise_affine", True),
            settings(**_BIASES, qkv_bias=True, out_bias=True, positions="learned", position_offset=2),
        ),
        "model.decoder.",
        (
            _to("embed_tokens.weight", "embed"),
            _to("embed_positions.weight", "positions"),
            *_norm("final_layer_norm", "norm"),
        ),
        _OPT_LAYER,
    ),
}
