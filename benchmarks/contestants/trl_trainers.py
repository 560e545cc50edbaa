"""TRL's real trainers, slowed down to one step per turn by a callback."""

from __future__ import annotations

import tempfile
from typing import Any

import setting
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from session import Job, Session
from setting import TRAINING
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)


class OneRepetitionPerTurn(TrainerCallback):
    """Waits for its turn before the steps of every repetition, and notes what the trainer logs."""

    def __init__(self, session: Session, steps: int) -> None:
        self._session, self._steps = session, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps == 0:
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


def run(job: Job, session: Session, **more: Any) -> None:
    """more: settings of the trainer that are not its defaults."""
    torch.set_num_threads(2)
    trainer = {"sft": _sft, "reward_model": _reward_model, "dpo": _dpo, "ppo": _ppo}[job.task](
        job, session, **more
    )
    if job.lora:
        # TRL makes a fresh adapter of the settings, as for its users; it begins with everybody's weights.
        set_peft_model_state_dict(
            trainer.model, load_file(f"{job.trained}_adapter/adapter_model.safetensors")
        )
    trainer.train()
    session.turn()


def _arguments(job: Job, batch: int, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(dir=job.root),
        "per_device_train_batch_size": batch,
        "max_steps": job.repetitions * steps,
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


def _in_order(job: Job, more: dict[str, Any]) -> dict[str, Any]:
    """Settings of the trainers on fixed rows, which take them as they come."""
    return _arguments(job, job.step_rows, job.steps, train_sampling_strategy="sequential") | more


def _common(job: Job, session: Session, rows: list[dict]) -> dict[str, Any]:
    """Rows repeat, so that every repetition sees the same tokens."""
    return {
        "processing_class": AutoTokenizer.from_pretrained(job.policy),
        "train_dataset": Dataset.from_list(rows * job.repetitions),
        "callbacks": [OneRepetitionPerTurn(session, job.steps)],
        "peft_config": _adapter(job) if job.lora else None,
    }


def _adapter(job: Job) -> LoraConfig:
    found = LoraConfig.from_pretrained(f"{job.trained}_adapter")
    found.inference_mode = False
    return found


def _sft(job: Job, session: Session, **more: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": row["prompt"] + row["response"],
            "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["response"]),
        }
        for row in job.rows
    ]
    config = SFTConfig(**_in_order(job, more), completion_only_loss=True)
    return SFTTrainer(AutoModelForCausalLM.from_pretrained(job.policy), config, **_common(job, session, rows))


def _reward_model(job: Job, session: Session, **more: Any) -> Any:
    from trl import RewardConfig, RewardTrainer

    rows = [{f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in job.rows]
    config = RewardConfig(**_in_order(job, more))
    model = AutoModelForSequenceClassification.from_pretrained(job.reward)
    return RewardTrainer(model, config, **_common(job, session, rows))


def _dpo(job: Job, session: Session, **more: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = job.rows
    text = [{name: setting.text(tokens[:1]) for name, tokens in row.items()} for row in rows]
    config = DPOConfig(**_in_order(job, more), beta=TRAINING.dpo_beta)
    model = AutoModelForCausalLM.from_pretrained(job.policy)
    # With an adapter the reference is the model without it.
    reference = None if job.lora else AutoModelForCausalLM.from_pretrained(job.policy)
    trainer = DPOTrainer(model, reference, config, **_common(job, session, text))
    # It takes text only, and appends an end token to it; its prepared rows are replaced by the very tokens.
    prepared = [{f"{name}_ids": tokens for name, tokens in row.items()} for row in rows]
    trainer.train_dataset = Dataset.from_list(prepared * job.repetitions)
    return trainer


def _ppo(job: Job, session: Session, **more: Any) -> Any:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [{"input_ids": row} for row in setting.prompts(job.size, job.size.ppo_prompts, job.ragged)]
    arguments = _arguments(job, len(rows), 1)
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
        **more,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.policy, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job.policy) for _ in range(2))
    value, reward = (AutoModelForSequenceClassification.from_pretrained(job.reward) for _ in range(2))
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
