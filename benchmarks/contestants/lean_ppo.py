"""PPO in the lean PyTorch loop: rollout, scores of the frozen models, then epochs of one minibatch."""

from __future__ import annotations

import setting
import torch
from session import Job, Session
from setting import TRAINING
from torch import Tensor

from contestants import lean
from contestants.lean_model import Llama, load
from contestants.lean_sampling import generate, left_pad


def run(job: Job, session: Session) -> None:
    policy, reference, reward, value = load(job.policy), load(job.policy), load(job.reward), load(job.reward)
    torch.nn.init.zeros_(value.head.weight)
    learner = Learner(policy, value, reference, reward)
    prompts = setting.prompts(job.size, job.size.ppo_prompts, job.ragged)
    tokens, lengths = left_pad(prompts)
    given = learner.experience(prompts, torch.tensor(setting.responses(job.size, len(prompts))))
    check = learner.check(given)
    while True:
        session.turn()
        responses, _ = generate(policy, tokens, lengths, job.size.response)
        learner.learn(learner.experience(prompts, responses))
        session.note(**check)


class Learner:
    """Policy and value model, each with its own optimizer, and the frozen models."""

    def __init__(self, policy: Llama, value: Llama, reference: Llama, reward: Llama) -> None:
        self._policy, self._value, self._reference, self._reward = policy, value, reference, reward
        self._updates = (lean.Update(policy), lean.Update(value))

    @torch.inference_mode()
    def experience(self, prompts: list[list[int]], responses: Tensor) -> dict[str, Tensor]:
        """Right-padded rows and what is learnt from them; all responses have full length."""
        B, R = responses.shape
        rows = [prompt + response for prompt, response in zip(prompts, responses.tolist(), strict=True)]
        tokens, lengths = lean.right_pad(rows)
        mask = lean.target_mask(tokens, lengths - R, lengths)
        old, base = (
            lean.response_logprobs(m, tokens, mask).view(B, R) for m in (self._policy, self._reference)
        )
        last = self._reward(tokens)[torch.arange(B), lengths - 1]
        values = self._values(tokens, mask, R)
        rewards = -TRAINING.kl_coef * (old - base)
        rewards[:, -1] += self._reward.head(last)[:, 0]
        advantage, found = torch.zeros(B), []
        for t in reversed(range(R)):
            following = values[:, t + 1] if t + 1 < R else 0.0
            delta = rewards[:, t] + TRAINING.gamma * following - values[:, t]
            advantage = delta + TRAINING.gamma * TRAINING.lam * advantage
            found.append(advantage)
        advantages = torch.stack(found[::-1], 1)
        white = (advantages - advantages.mean()) / (advantages.var(correction=0) + 1e-8).sqrt()
        named = {"tokens": tokens, "mask": mask, "old": old, "values": values}
        return named | {"advantages": white, "returns": advantages + values}

    def learn(self, e: dict[str, Tensor]) -> None:
        """`ppo_epochs` passes of one minibatch."""
        e = {name: x.clone() for name, x in e.items()}  # Out of inference mode.
        for _ in range(TRAINING.ppo_epochs):
            order = torch.randperm(len(e["tokens"]))
            part = {name: x[order] for name, x in e.items()}
            self._updates[0](lambda part=part: self._policy_loss(part))
            self._updates[1](lambda part=part: TRAINING.value_coef * self._value_loss(part))

    def check(self, e: dict[str, Tensor]) -> dict[str, float]:
        """Loss and gradient norm of the first update on given responses, without making it."""
        e = {name: x.clone() for name, x in e.items()}
        loss = self._policy_loss(e) + TRAINING.value_coef * self._value_loss(e)
        loss.backward()
        parameters = [*self._policy.parameters(), *self._value.parameters()]
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        for p in parameters:
            p.grad = None
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    def _policy_loss(self, e: dict[str, Tensor]) -> Tensor:
        new = lean.response_logprobs(self._policy, e["tokens"], e["mask"]).view_as(e["old"])
        ratio = (new - e["old"]).exp()
        clipped = ratio.clamp(1 - TRAINING.clip, 1 + TRAINING.clip)
        return torch.maximum(-e["advantages"] * ratio, -e["advantages"] * clipped).mean()

    def _value_loss(self, e: dict[str, Tensor]) -> Tensor:
        new = self._values(e["tokens"], e["mask"], e["old"].shape[1])
        near = e["values"] + (new - e["values"]).clamp(-TRAINING.value_clip, TRAINING.value_clip)
        worse = torch.maximum((new - e["returns"]) ** 2, (near - e["returns"]) ** 2)
        return 0.5 * worse.mean()

    def _values(self, tokens: Tensor, mask: Tensor, R: int) -> Tensor:
        """The value before each response token, [B, R]."""
        return self._value.head(self._value(tokens)[:, :-1][mask]).view(-1, R)
