"""The lean PyTorch loop: what a good user writes without a framework. Eager fp32, fused AdamW, no hooks, no logging."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import setting
import torch
import torch.nn.functional as F
from session import Job, Session
from setting import PAD, TRAINING
from torch import Tensor

from contestants import lean_ppo
from contestants.lean_model import Llama, load
from contestants.lean_sampling import generate, greedy_logprob, left_pad


def run(job: Job, session: Session) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    if job.task == "generate":
        return _generate(job, session)
    if job.task == "ppo":
        return lean_ppo.run(job, session)
    model = load(job.reward if job.task == "reward_model" else job.policy)
    update = Update(model)
    loss_of = {"sft": _sft, "reward_model": _reward_model, "dpo": _dpo}[job.task](job, model)
    while True:
        session.turn()
        session.note(**update(loss_of))


class Update:
    """One optimizer step on the loss of a function; returns the loss and the gradient norm before clipping."""

    def __init__(self, *models: Llama) -> None:
        self._parameters = list(itertools.chain(*(model.parameters() for model in models)))
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=TRAINING.learning_rate,
            betas=(TRAINING.b1, TRAINING.b2),
            eps=TRAINING.eps,
            weight_decay=0.0,
            fused=True,
        )

    def __call__(self, loss_of: Callable[[], Tensor]) -> dict[str, Any]:
        self._optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, TRAINING.max_grad_norm)
        self._optimizer.step()
        return {"loss": loss.detach(), "grad_norm": norm}


def right_pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] and lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD), lengths


def response_logprobs(model: Llama, tokens: Tensor, mask: Tensor) -> Tensor:
    """Log-probs of the tokens where mask [B, T-1] (on targets) is True, [n]; the head runs nowhere else."""
    hidden = model(tokens)[:, :-1][mask]
    return -F.cross_entropy(model.head(hidden), tokens[:, 1:][mask], reduction="none")


def target_mask(tokens: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
    column = torch.arange(1, tokens.shape[1])
    return (column >= prompt_lengths[:, None]) & (column < lengths[:, None])


def _sft(job: Job, model: Llama) -> Callable[[], Tensor]:
    rows = setting.demonstrations(job.size, job.ragged)
    tokens, lengths = right_pad([row["prompt"] + row["response"] for row in rows])
    mask = target_mask(tokens, torch.tensor([len(row["prompt"]) for row in rows]), lengths)
    return lambda: -response_logprobs(model, tokens, mask).mean()


def _sides(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, lengths and target mask: all chosen rows, then all rejected ones."""
    rows = setting.pairs(job.size, job.ragged)
    tokens, lengths = right_pad(
        [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    )
    prompt_lengths = torch.tensor([len(row["prompt"]) for row in rows] * 2)
    return tokens, lengths, target_mask(tokens, prompt_lengths, lengths)


def _reward_model(job: Job, model: Llama) -> Callable[[], Tensor]:
    tokens, lengths, _ = _sides(job)

    def loss() -> Tensor:
        hidden = model(tokens)[torch.arange(len(tokens)), lengths - 1]
        chosen, rejected = model.head(hidden)[:, 0].chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    return loss


def _dpo(job: Job, model: Llama) -> Callable[[], Tensor]:
    reference = load(job.policy)
    tokens, _, mask = _sides(job)
    counts = mask.sum(1).tolist()

    def sums(m: Llama) -> Tensor:
        return torch.stack([part.sum() for part in response_logprobs(m, tokens, mask).split(counts)])

    def loss() -> Tensor:
        with torch.no_grad():
            base = sums(reference)
        chosen, rejected = (sums(model) - base).chunk(2)
        return -F.logsigmoid(TRAINING.dpo_beta * (chosen - rejected)).mean()

    return loss


def _generate(job: Job, session: Session) -> None:
    model = load(job.policy)
    tokens, lengths = left_pad(setting.prompts(job.size, job.size.generated, job.ragged))
    loss = -greedy_logprob(model, tokens, lengths)
    while True:
        session.turn()
        generate(model, tokens, lengths, job.size.response)
        session.note(loss=loss)
