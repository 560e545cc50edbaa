"""tunix' real trainers and sampler, one step per turn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import setting
from flax import nnx
from safetensors.numpy import load_file
from session import Job, Session
from setting import GREEDY, NORM_EPS, PAD, ROPE_THETA, TRAINING
from transformers import AutoTokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster as clusters
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.dpo import dpo_trainer
from tunix.sft.hooks import TrainingHooks
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

EVERY = 10**9


def run(job: Job, session: Session) -> None:
    if job.task == "generate":
        _generate(job, session)
    elif job.task == "ppo":
        _ppo(job, session)
    else:
        {"sft": _sft, "reward_model": _reward_model, "dpo": _dpo}[job.task](job, session)
    session.turn()


class Llama(llama.Llama3):
    """Ignores the segment ids that PPO of tunix 0.1.7 passes to every model, but which its Llama3 does not take."""

    def __call__(
        self, input_tokens: Any, positions: Any, cache: Any, attention_mask: Any, segment_ids: Any = None
    ) -> Any:
        del segment_ids
        return super().__call__(input_tokens, positions, cache, attention_mask)


def load(job: Job, folder: str) -> Llama:
    """The model of a folder; a reward model is one whose head has a single column, as tunix' own PPO has it."""
    size = job.size
    tensors = load_file(Path(folder) / "model.safetensors")
    head = tensors.pop("score.weight", None)
    config = llama.ModelConfig(
        num_layers=size.layers,
        vocab_size=size.vocab,
        embed_dim=size.width,
        hidden_dim=size.ff,
        num_heads=size.heads,
        head_dim=size.head_dim,
        num_kv_heads=size.heads,
        rope_theta=int(ROPE_THETA),
        norm_eps=NORM_EPS,
    )
    model = Llama(config, rngs=nnx.Rngs(0))
    model.embedder.input_embedding[...] = tensors["model.embed_tokens.weight"]
    model.final_norm.w[...] = tensors["model.norm.weight"]
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}"
        layer.input_layernorm.w[...] = tensors[f"{at}.input_layernorm.weight"]
        layer.post_attention_layernorm.w[...] = tensors[f"{at}.post_attention_layernorm.weight"]
        for name in ("q", "k", "v", "o"):
            part = getattr(layer.attn, f"{name}_proj")
            part.w[...] = tensors[f"{at}.self_attn.{name}_proj.weight"].T.reshape(part.w.shape)
        for name in ("gate", "up", "down"):
            getattr(layer.mlp, f"{name}_proj").kernel[...] = tensors[f"{at}.mlp.{name}_proj.weight"].T
    if head is None:
        model.lm_head.w[...] = tensors["lm_head.weight"].T
    else:
        model.lm_head = llama.Einsum("BTD,DV->BTV", (size.width, 1), rngs=nnx.Rngs(0), sharding=(None, None))
        model.lm_head.w[...] = head.T
    return model


class OneStepPerTurn(TrainingHooks):
    """Waits for its turn before every step. The trainer runs ahead of the device, so the hook waits for it first."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_step_start(self, train_ctx: Any) -> None:
        jax.block_until_ready(nnx.state(train_ctx.optimizer))
        buffer = train_ctx._buffered_train_metrics or train_ctx._prev_buffered_train_metrics
        if buffer is not None:
            norms, _ = buffer.additional_metrics["grad_norm"]
            self._session.note(loss=buffer.losses[-1], grad_norm=norms[-1])
        self._session.turn()

    def on_train_start(self, train_ctx: Any) -> None: ...
    def on_train_end(self, train_ctx: Any) -> None: ...
    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None: ...
    def on_eval_step_start(self, train_ctx: Any) -> None: ...
    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None: ...


def _optimizer() -> optax.GradientTransformation:
    t = TRAINING
    adam = optax.adamw(t.learning_rate, b1=t.b1, b2=t.b2, eps=t.eps, weight_decay=0.0)
    return optax.chain(optax.clip_by_global_norm(t.max_grad_norm), adam)


def _train(trainer: PeftTrainer, job: Job, session: Session, batch: Any) -> None:
    trainer.with_training_hooks(OneStepPerTurn(session))
    trainer.train([batch] * (job.repetitions + 1))


def _right_pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the mask of real ones, [B, T]."""
    T = max(map(len, rows))
    tokens = np.array([row + [PAD] * (T - len(row)) for row in rows], np.int32)
    return tokens, np.arange(T) < np.array([len(row) for row in rows])[:, None]


def _sft(job: Job, session: Session) -> None:
    rows = setting.demonstrations(job.size, job.ragged)
    tokens, real = _right_pad([row["prompt"] + row["response"] for row in rows])
    trained = real & (np.arange(tokens.shape[1]) >= np.array([len(row["prompt"]) for row in rows])[:, None])
    trainer = PeftTrainer(load(job, job.policy), _optimizer(), TrainingConfig(eval_every_n_steps=EVERY))
    trainer.with_gen_model_input_fn(
        lambda x: {
            "input_tokens": x.input_tokens,
            "input_mask": x.input_mask,
            "positions": build_positions_from_mask(jnp.asarray(real)),
            "attention_mask": make_causal_attn_mask(jnp.asarray(real)),
        }
    )
    _train(trainer, job, session, TrainingInput(input_tokens=tokens, input_mask=trained))


def _reward_model(job: Job, session: Session) -> None:
    """tunix has no reward-model trainer: its PeftTrainer with a Bradley-Terry loss."""
    found = setting.pairs(job.size, job.ragged)
    tokens, real = _right_pad([row["prompt"] + row[side] for side in ("chosen", "rejected") for row in found])

    def loss_fn(model: nnx.Module, input_tokens: jax.Array, input_mask: jax.Array) -> jax.Array:
        positions, mask = build_positions_from_mask(input_mask), make_causal_attn_mask(input_mask)
        scores_BT = model(input_tokens, positions, None, mask)[0][..., 0]
        last = jnp.sum(input_mask, -1) - 1
        chosen, rejected = jnp.split(jnp.take_along_axis(scores_BT, last[:, None], -1)[:, 0], 2)
        return -jnp.mean(jax.nn.log_sigmoid(chosen - rejected))

    trainer = PeftTrainer(load(job, job.reward), _optimizer(), TrainingConfig(eval_every_n_steps=EVERY))
    trainer.with_loss_fn(loss_fn)
    trainer.with_gen_model_input_fn(lambda x: {"input_tokens": x.input_tokens, "input_mask": x.input_mask})
    _train(trainer, job, session, TrainingInput(input_tokens=tokens, input_mask=real))


def _dpo(job: Job, session: Session) -> None:
    rows = setting.pairs(job.size, job.ragged)
    chosen, chosen_real = _right_pad([row["chosen"] for row in rows])
    rejected, rejected_real = _right_pad([row["rejected"] for row in rows])
    longest = max(chosen.shape[1], rejected.shape[1])
    wide = [
        np.pad(x, ((0, 0), (0, longest - x.shape[1]))) for x in (chosen, chosen_real, rejected, rejected_real)
    ]
    backwards, real = _right_pad([row["prompt"][::-1] for row in rows])
    batch = dpo_trainer.TrainingInput(
        prompt_ids=backwards[:, ::-1],
        prompt_mask=real[:, ::-1],
        chosen_ids=wide[0],
        chosen_mask=wide[1],
        rejected_ids=wide[2],
        rejected_mask=wide[3],
    )
    config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=EVERY, beta=TRAINING.dpo_beta)
    policy, reference = load(job, job.policy), load(job, job.policy)
    _train(dpo_trainer.DPOTrainer(policy, reference, _optimizer(), config), job, session, batch)


def _generate(job: Job, session: Session) -> None:
    size = job.size
    cache = CacheConfig(size.prompt + size.response, size.layers, size.heads, size.head_dim)
    sampler = Sampler(load(job, job.policy), _tokenizer(job), cache)
    texts = [setting.text(row) for row in setting.prompts(size, size.generated, job.ragged)]
    common = {"input_strings": texts, "max_prompt_length": size.prompt, "eos_tokens": [-1]}
    greedy = sampler(**common, max_generation_steps=GREEDY, return_logprobs=True)
    loss = -np.mean([np.mean(np.asarray(row)) for row in greedy.logprobs])
    for i in range(job.repetitions):
        session.turn()
        sampler(**common, max_generation_steps=size.response, temperature=1.0, top_p=1.0, seed=i)
        session.note(loss=loss)


def _ppo(job: Job, session: Session) -> None:
    size = job.size
    prompts = setting.prompts(size, size.ppo_prompts, job.ragged)
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    critic = load(job, job.reward)
    critic.lm_head.w[...] = jnp.zeros_like(critic.lm_head.w[...])
    training = clusters.RLTrainingConfig(
        actor_optimizer=_optimizer(),
        critic_optimizer=_optimizer(),
        eval_every_n_steps=EVERY,
        max_steps=job.repetitions * TRAINING.ppo_epochs,
        mini_batch_size=len(prompts),
        train_micro_batch_size=len(prompts),
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=size.response,
        max_prompt_length=size.prompt,
        kv_cache_size=size.prompt + size.response,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[-1],
    )
    with mesh:
        cluster = clusters.RLCluster(
            actor=load(job, job.policy),
            critic=critic,
            reference=load(job, job.policy),
            reward=load(job, job.reward),
            tokenizer=_tokenizer(job),
            cluster_config=clusters.ClusterConfig(
                role_to_mesh=dict.fromkeys(clusters.Role, mesh),
                training_config=training,
                rollout_config=rollout,
            ),
        )
        config = PPOConfig(
            num_iterations=TRAINING.ppo_epochs,
            gamma=TRAINING.gamma,
            gae_lambda=TRAINING.lam,
            beta=TRAINING.kl_coef,
            epsilon=TRAINING.clip,
            clip_range_value=TRAINING.value_clip,
            kl_method="kl",
        )
        PPOLearner(cluster, config).train(_rounds(job, session, prompts))


def _rounds(job: Job, session: Session, prompts: list[list[int]]) -> Iterator[dict[str, np.ndarray]]:
    """The learner asks for prompts once per iteration, when the one before has ended."""
    texts = np.array([setting.text(row) for row in prompts])
    for _ in range(job.repetitions):
        session.turn()
        yield {"prompts": copy.copy(texts)}


def _tokenizer(job: Job) -> Any:
    found = AutoTokenizer.from_pretrained(job.policy)
    found.bos_token = None  # The sampler would put it before every prompt.
    return found
