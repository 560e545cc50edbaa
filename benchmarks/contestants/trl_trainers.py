"""TRL's real trainers, slowed down to one step per turn by a callback."""

from __future__ import annotations

import tempfile
from typing import Any

import setting
import torch
from datasets import Dataset
from session import Job, Session
from setting import TRAINING
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainerCallback,
)


class OneStepPerTurn(TrainerCallback):
    """Waits for its turn before every step, and notes what the trainer logs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.turn()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        self._session.note(
            **{name: float(x) for name, x in (logs or {}).items() if name in ("loss", "grad_norm")}
        )


class OneUpdatePerTurn(TrainerCallback):
    """As above for PPO, whose trainer calls only `on_step_end`, once per rollout."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._session.turn()


def run(job: Job, session: Session) -> None:
    torch.set_num_threads(2)
    trainer = {"sft": _sft, "reward_model": _reward_model, "dpo": _dpo, "ppo": _ppo}[job.task](job, session)
    trainer.train()
    session.turn()


def _arguments(job: Job, rows: int, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(dir=job.root),
        "per_device_train_batch_size": rows,
        "max_steps": job.repetitions,
        "learning_rate": TRAINING.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": TRAINING.b1,
        "adam_beta2": TRAINING.b2,
        "adam_epsilon": TRAINING.eps,
        "weight_decay": 0.0,
        "max_grad_norm": TRAINING.max_grad_norm,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "max_length": job.size.prompt + job.size.response,
        **more,
    }


def _common(job: Job, session: Session, rows: list[dict]) -> dict[str, Any]:
    """Rows repeat, and every batch is one whole round of them: each step sees the same tokens."""
    return {
        "processing_class": AutoTokenizer.from_pretrained(job.policy),
        "train_dataset": Dataset.from_list(rows * job.repetitions),
        "callbacks": [OneStepPerTurn(session)],
    }


def _sft(job: Job, session: Session) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": row["prompt"] + row["response"],
            "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["response"]),
        }
        for row in setting.demonstrations(job.size, job.ragged)
    ]
    config = SFTConfig(
        **_arguments(job, len(rows), train_sampling_strategy="sequential", completion_only_loss=True)
    )
    return SFTTrainer(LlamaForCausalLM.from_pretrained(job.policy), config, **_common(job, session, rows))


def _reward_model(job: Job, session: Session) -> Any:
    from trl import RewardConfig, RewardTrainer

    rows = [
        {f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")}
        for row in setting.pairs(job.size, job.ragged)
    ]
    config = RewardConfig(**_arguments(job, len(rows), train_sampling_strategy="sequential"))
    model = LlamaForSequenceClassification.from_pretrained(job.reward)
    return RewardTrainer(model, config, **_common(job, session, rows))


def _dpo(job: Job, session: Session) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = setting.pairs(job.size, job.ragged)
    text = [{name: setting.text(tokens) for name, tokens in row.items()} for row in rows]
    more = {"beta": TRAINING.dpo_beta, "train_sampling_strategy": "sequential"}
    config = DPOConfig(**_arguments(job, len(rows), **more))
    model, reference = (LlamaForCausalLM.from_pretrained(job.policy) for _ in range(2))
    trainer = DPOTrainer(model, reference, config, **_common(job, session, text))
    # It takes text only, and appends an end token to it; its prepared rows are replaced by the very tokens.
    prepared = [{f"{name}_ids": tokens for name, tokens in row.items()} for row in rows]
    trainer.train_dataset = Dataset.from_list(prepared * job.repetitions)
    return trainer


def _ppo(job: Job, session: Session) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [{"input_ids": row} for row in setting.prompts(job.size, job.size.ppo_prompts, job.ragged)]
    arguments = _arguments(job, len(rows))
    for name in ("max_steps", "max_length"):
        del arguments[name]
    config = PPOConfig(
        **arguments,
        total_episodes=len(rows) * job.repetitions,
        num_ppo_epochs=TRAINING.ppo_epochs,
        num_mini_batches=1,
        local_rollout_forward_batch_size=len(rows),
        num_sample_generations=0,
        response_length=job.size.response,
        temperature=1.0,
        missing_eos_penalty=None,
        kl_coef=TRAINING.kl_coef,
        vf_coef=TRAINING.value_coef,
        cliprange=TRAINING.clip,
        cliprange_value=TRAINING.value_clip,
        gamma=TRAINING.gamma,
        lam=TRAINING.lam,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.policy, padding_side="left")
    policy, reference = (LlamaForCausalLM.from_pretrained(job.policy) for _ in range(2))
    value, reward = (LlamaForSequenceClassification.from_pretrained(job.reward) for _ in range(2))
    torch.nn.init.zeros_(value.score.weight)
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows * job.repetitions),
        callbacks=[OneUpdatePerTurn(session)],
    )
