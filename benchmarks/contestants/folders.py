"""The random Llama that all contestants load: Hugging Face folders of a policy and of a reward model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from setting import BOS, EOS, NORM_EPS, PAD, ROPE_THETA, Size
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def write(root: Path, size: Size) -> None:
    """Writes root/policy (LlamaForCausalLM) and root/reward (LlamaForSequenceClassification, the same trunk)."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    D, F = size.width, size.ff
    trunk = {"model.embed_tokens.weight": normal(size.vocab, D), "model.norm.weight": np.ones(D, np.float32)}
    for i in range(size.layers):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            trunk[f"{layer}.self_attn.{name}_proj.weight"] = normal(D, D)
        for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            trunk[f"{layer}.mlp.{name}_proj.weight"] = normal(*shape)
        for name in ("input", "post_attention"):
            trunk[f"{layer}.{name}_layernorm.weight"] = np.ones(D, np.float32)
    _folder(root / "policy", size, trunk | {"lm_head.weight": normal(size.vocab, D)}, "LlamaForCausalLM", {})
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    score = {"score.weight": normal(1, D) / np.float32(0.02 * (D + 1) ** 0.5)}
    _folder(root / "reward", size, trunk | score, "LlamaForSequenceClassification", labels)


def _folder(folder: Path, size: Size, tensors: dict[str, np.ndarray], architecture: str, extra: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "architectures": [architecture],
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.ff,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **extra,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # One word per id, "t17" for 17: libraries that insist on text get the very same tokens back.
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    vocabulary = [*special.values(), *(f"t{i}" for i in range(len(special), size.vocab))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
