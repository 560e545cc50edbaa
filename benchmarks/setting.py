"""What is measured: two sizes, five tasks, and the tokens, the same for every contestant. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# "<pad>", "<s>", "</s>". Never among the tokens below: libraries that read meaning into ids cannot stumble.
PAD, BOS, EOS = 0, 1, 2
ROPE_THETA = 1_000_000.0  # tunix 0.1.7 applies this base whatever its config says.
NORM_EPS = 1e-5
GREEDY = 8  # Greedy tokens whose log-probs the contestants of `generate` are compared by.

TASKS = ("sft", "reward_model", "dpo", "generate", "ppo")


@dataclass(frozen=True)
class Size:
    """A model and the shape of its work. Training uses `rows` sequences, i.e. rows / 2 pairs."""

    vocab: int
    width: int
    layers: int
    heads: int
    ff: int
    prompt: int
    response: int
    rows: int
    generated: int = 0
    ppo_prompts: int = 0
    kv_heads: int = 0  # 0: as many as heads

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def layer_parameters(self) -> int:
        """Parameters in matrix products of all layers."""
        attention = 2 * self.width**2 * (1 + (self.kv_heads or self.heads) / self.heads)
        return round(self.layers * (attention + 3 * self.width * self.ff))


SIZES = {
    "tiny": Size(512, 128, 4, 4, 344, 32, 96, rows=32, generated=32, ppo_prompts=32),
    "small": Size(4096, 512, 8, 8, 1376, 64, 192, rows=8, generated=16, ppo_prompts=8),
}


@dataclass(frozen=True)
class Training:
    """Hyperparameters, the same everywhere."""

    learning_rate: float = 1e-5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    dpo_beta: float = 0.1
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    ppo_epochs: int = 2


TRAINING = Training()


def demonstrations(size: Size, ragged: bool) -> list[dict[str, list[int]]]:
    """Rows of SFT: {"prompt", "response"}."""
    rng = np.random.default_rng(1)
    return [
        {"prompt": _prompt(rng, size, ragged), "response": _response(rng, size, ragged)}
        for _ in range(size.rows)
    ]


def pairs(size: Size, ragged: bool) -> list[dict[str, list[int]]]:
    """Rows of reward model and DPO: {"prompt", "chosen", "rejected"}."""
    rng = np.random.default_rng(2)
    names = ("chosen", "rejected")
    return [
        {"prompt": _prompt(rng, size, ragged), **{name: _response(rng, size, ragged) for name in names}}
        for _ in range(size.rows // 2)
    ]


def prompts(size: Size, count: int, ragged: bool) -> list[list[int]]:
    """Prompts of generate and PPO. Responses always run to their full length: nothing ends a row early."""
    rng = np.random.default_rng(3)
    found = [_prompt(rng, size, ragged) for _ in range(count)]
    found[0] = _tokens(
        rng, size, size.prompt
    )  # one of full length, so that padded arrays have the same shape
    return found


def text(tokens: list[int]) -> str:
    """Token ids as text for the tokenizer of the shared folders."""
    return " ".join(f"t{i}" for i in tokens)


def responses(size: Size, count: int) -> list[list[int]]:
    """Given responses for the PPO check at step 0, where sampled ones would differ; each has its end token."""
    rng = np.random.default_rng(4)
    return [[*_tokens(rng, size, size.response - 1), EOS] for _ in range(count)]


def tokens_of(rows: list[dict[str, list[int]]]) -> int:
    """Real tokens of training rows: of every response and of a prompt before each, which a form may compute once."""
    return sum(len(row["prompt"]) + len(x) for row in rows for name, x in row.items() if name != "prompt")


def tokens_per_repetition(task: str, size: Size, ragged: bool) -> int:
    """Real tokens that one repetition works through; for generate, those it makes."""
    if task == "sft":
        return tokens_of(demonstrations(size, ragged))
    if task in ("reward_model", "dpo"):
        return tokens_of(pairs(size, ragged))
    if task == "generate":
        return size.generated * size.response
    return sum(len(row) + size.response for row in prompts(size, size.ppo_prompts, ragged))


def training_flops(task: str, size: Size, rows: list[dict[str, list[int]]], lora: bool = False) -> float:
    """Floating-point operations of the matrix products of training on rows once, attention not counted.

    2 per parameter and token forward, 4 backward, or 2 where weights have no gradient. DPO adds a forward pass of the
    reference. The language head counts on response tokens only, and adapters not at all.
    """
    total = 2.0 * tokens_of(rows) * size.layer_parameters
    if task != "reward_model":
        made = sum(len(x) for row in rows for name, x in row.items() if name != "prompt")
        total += 2.0 * made * size.width * size.vocab
    return total * ((2 if lora else 3) + (task == "dpo"))


def matrix_flops(task: str, size: Size, ragged: bool) -> float:
    """Floating-point operations of the matrix products of one repetition, on real tokens, attention not counted.

    Training as `training_flops`. PPO: rollout, then policy, reference, value and reward model forward, then
    `ppo_epochs` times policy and value model forward and backward.
    """
    if task in ("sft", "reward_model", "dpo"):
        return training_flops(task, size, (demonstrations if task == "sft" else pairs)(size, ragged))
    trunk, head = 2.0 * size.layer_parameters, 2.0 * size.width * size.vocab
    total = tokens_per_repetition(task, size, ragged)
    if task == "generate":
        return (total + sum(map(len, prompts(size, size.generated, ragged)))) * trunk + total * head
    made = size.ppo_prompts * size.response
    epochs = TRAINING.ppo_epochs
    return (1 + 4 + 6 * epochs) * total * trunk + (1 + 2 + 3 * epochs) * made * head


def _prompt(rng: np.random.Generator, size: Size, ragged: bool) -> list[int]:
    return _tokens(rng, size, int(rng.integers(size.prompt // 4, size.prompt + 1)) if ragged else size.prompt)


def _response(rng: np.random.Generator, size: Size, ragged: bool) -> list[int]:
    return _tokens(
        rng, size, int(rng.integers(size.response // 4, size.response + 1)) if ragged else size.response
    )


def _tokens(rng: np.random.Generator, size: Size, count: int) -> list[int]:
    return rng.integers(EOS + 1, size.vocab, count).tolist()
