"""The Llama that a PyTorch user would write by hand: eager, scaled_dot_product_attention, a preallocated cache."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        D, ff = c["hidden_size"], c["intermediate_size"]
        self.heads, self.eps = c["num_attention_heads"], c["rms_norm_eps"]
        self.input_layernorm = nn.Parameter(torch.ones(D))
        self.post_attention_layernorm = nn.Parameter(torch.ones(D))
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(*shape, bias=False) for shape in ((D, ff), (D, ff), (ff, D))
        )

    def forward(self, x: Tensor, rope: tuple, mask: Tensor | None, cache: tuple | None, at: int) -> Tensor:
        B, T, D = x.shape
        h = F.rms_norm(x, (D,), self.input_layernorm, self.eps)
        q, k, v = (f(h).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            cache[0][:, :, at : at + T], cache[1][:, :, at : at + T] = k, v
            k, v = cache[0][:, :, : at + T], cache[1][:, :, : at + T]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, D))
        h = F.rms_norm(x, (D,), self.post_attention_layernorm, self.eps)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """Trunk, and a language head or a score head."""

    def __init__(self, c: dict, *, scalar: bool) -> None:
        super().__init__()
        D = c["hidden_size"]
        self.config, self.eps = c, c["rms_norm_eps"]
        self.embed = nn.Embedding(c["vocab_size"], D)
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(D))
        self.head = nn.Linear(D, 1 if scalar else c["vocab_size"], bias=False)
        angle = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        table = torch.arange(c["max_position_embeddings"])[:, None] * torch.cat([angle, angle])
        self.register_buffer("cos", table.cos(), persistent=False)
        self.register_buffer("sin", table.sin(), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        at: int = 0,
    ) -> Tensor:
        """Final hidden states [B, T, D]. Without a mask rows are right-padded and attention is causal."""
        positions = torch.arange(tokens.shape[1]) if positions is None else positions
        rope = (self.cos[positions], self.sin[positions])
        rope = tuple(x.unsqueeze(-3) for x in rope)
        x = self.embed(tokens)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, mask, None if cache is None else cache[i], at)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.eps)

    def new_cache(self, B: int, S: int) -> Cache:
        c = self.config
        shape = (B, c["num_attention_heads"], S, c["head_dim"])
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def load(folder: str) -> Llama:
    """A model from a Hugging Face folder."""
    c = json.loads((Path(folder) / "config.json").read_text())
    found = load_file(Path(folder) / "model.safetensors")
    scalar = "score.weight" in found
    model = Llama(c, scalar=scalar)
    names = {
        "embed.weight": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head.weight": "score.weight" if scalar else "lm_head.weight",
    }
    for i in range(c["num_hidden_layers"]):
        for name in ("input_layernorm", "post_attention_layernorm"):
            names[f"layers.{i}.{name}"] = f"model.layers.{i}.{name}.weight"
        for name in ("q", "k", "v", "o"):
            names[f"layers.{i}.{name}.weight"] = f"model.layers.{i}.self_attn.{name}_proj.weight"
        for name in ("gate", "up", "down"):
            names[f"layers.{i}.{name}.weight"] = f"model.layers.{i}.mlp.{name}_proj.weight"
    model.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
    return model
