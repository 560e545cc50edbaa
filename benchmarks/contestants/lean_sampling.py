"""Sampling for the lean PyTorch loop: left-padded prompts, a preallocated cache, one forward per token."""

from __future__ import annotations

import torch
from setting import GREEDY, PAD
from torch import Tensor

from contestants.lean_model import Llama


def left_pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts [B, P] and lengths [B]."""
    longest = max(map(len, rows))
    return torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]), torch.tensor(
        [len(row) for row in rows]
    )


@torch.inference_mode()
def generate(
    model: Llama, tokens: Tensor, lengths: Tensor, new: int, *, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """(responses [B, new], their log-probs [B, new]), sampled at temperature 1 unless greedy."""
    B, P = tokens.shape
    cache = model.new_cache(B, P + new)
    column = torch.arange(P + new)
    real = column >= (P - lengths)[:, None]
    padded = not bool(real.all())
    positions = (column[:P] - (P - lengths)[:, None]).clamp(min=0)
    causal = column[:P, None] >= column[:P]
    # A pad query looks at itself, which keeps its softmax finite; no real token reads it.
    mask = ((causal & real[:, None, :P]) | torch.eye(P, dtype=torch.bool))[:, None] if padded else None
    hidden = model(tokens, positions, mask, cache)
    picked, logprobs = [], []
    for t in range(new):
        logits = model.head(hidden[:, -1]).log_softmax(-1)
        token = logits.argmax(-1) if greedy else torch.multinomial(logits.exp(), 1)[:, 0]
        picked.append(token)
        logprobs.append(logits.gather(1, token[:, None])[:, 0])
        if t + 1 < new:
            at = P + t
            mask = real[:, None, None, : at + 1] if padded else None
            hidden = model(token[:, None], (lengths + t)[:, None], mask, cache, at)
    return torch.stack(picked, 1), torch.stack(logprobs, 1)


def greedy_logprob(model: Llama, tokens: Tensor, lengths: Tensor) -> float:
    """Mean log-prob of a short greedy continuation: what contestants of `generate` are compared by."""
    return float(generate(model, tokens, lengths, GREEDY, greedy=True)[1].mean())
