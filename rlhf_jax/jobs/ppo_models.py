"""The four models of PPO, each with its own settings: what they are, and how they start."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.chat import CHAT, encode_chat_prompts, prompts_differ
from rlhf_jax.data.handling import Handling, handling_of
from rlhf_jax.data.messages import messages_of
from rlhf_jax.data.same_tokens import same_tokens
from rlhf_jax.data.special_ids import fill_id
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import encode_prompt_texts
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, hints, loading, rewarding
from rlhf_jax.jobs.adapters import Start
from rlhf_jax.jobs.plan import Networks
from rlhf_jax.models.decoder import Params, trunk, value_from_reward
from rlhf_jax.models.lora import Lora
from rlhf_jax.parallel import startup
from rlhf_jax.rollout.rewards import RewardModel, Rewards, TokenRewards
from rlhf_jax.rollout.text_rewards import TextRewards, expected_length, longest_row


class Described(NamedTuple):
    """What is known before any weight is read.

    Attributes:
      folder: the policy's.
      networks: for the plan.
      reward: without parameters.
    """

    folder: str
    networks: Networks
    reward: RewardModel


def describe(config: ConfigDict, folder: str, tokenizer: Any, rows: list[dict], lora: Lora) -> Described:
    """Raises UserError for models that cannot be used together.

    folder: of the policy. rows: all prompts' records, for a reward model that reads text.
    """
    m, tokens = config.model, len(tokenizer)
    policy = loading.describe_model(folder, m, hints.SFT, tokens=tokens, adapter=m.adapter)
    if policy.is_scalar:
        raise UserError(f"model.policy: {m.policy} is a reward model; give a language model")
    template = m.reward_template or config.data.template
    how = handling_of(config.data)
    if m.reward_template not in (
        "",
        config.data.template,
    ):  # the settings of the page are for the policy's template
        how = Handling(date=how.date)
    reward = rewarding.described(
        m.reward, m, field="model.reward", template=template, how=how, adapter=m.reward_adapter
    )
    alike = _reads_tokens_of(tokenizer, reward)
    as_tokens = alike and template == config.data.template and _same_chat(template, tokenizer, reward)
    value_from = _value_from(config, alike, policy.config.vocab_size, reward.model.config.vocab_size)
    model = adapters.model_of(policy, lora)
    value = (
        dataclasses.replace(reward.model.config, adapter_scale=lora.scale)
        if lora.rank
        else reward.model.config
    )
    length = 0 if as_tokens else _text_length(config, reward, rows)
    if startup.is_main():
        how = "the tokens that were sampled" if as_tokens else f"their text, in the template {template}"
        of = m.reward if value_from == "reward" else m.policy
        print(
            f"reward model: reads {how}; its score stands at the token {reward.score_at}\n"
            f"value model: starts from the trunk of the {value_from} model, {of}",
            flush=True,
        )
    networks = Networks(
        policy=model,
        value=value if value_from == "reward" else model,
        reward=reward.model.config,
        value_from=value_from,
        closing=reward.behind.read(reward.score_at),
        text_length=length,
    )
    return Described(folder, networks, reward)


def load(
    config: ConfigDict, found: Described, tokenizer: Any, lora: Lora, mesh: Mesh
) -> tuple[dict[str, Start], RewardModel]:
    """({policy, value} as they start, the reward model), on the mesh."""
    m, n = config.model, found.networks
    checkpoint, policy = loading.load_model(
        found.folder,
        m,
        mesh,
        hints.SFT,
        tokens=len(tokenizer),
        adapter=m.adapter,
        base_dtype=lora.base_dtype,
    )
    reward = rewarding.loaded(found.reward, m, mesh, adapter=m.reward_adapter, base_dtype=lora.base_dtype)
    if n.value_from == "reward":
        value = value_from_reward(reward.model.params)
    else:
        value = _value_from_policy(policy if lora.rank else adapters.plain(checkpoint.config, policy), n)
    starts = {
        "policy": adapters.start(n.policy, policy, lora, mesh, config.seed),
        "value": adapters.start(n.value, value, lora, mesh, config.seed + 1),
    }
    return starts, reward


def rewards_of(found: Described, reward: RewardModel, tokenizer: Any, mesh: Mesh) -> Rewards:
    """Who scores: the reward model, on tokens or on text."""
    if length := found.networks.text_length:
        return TextRewards(reward, tokenizer, mesh, length)
    return TokenRewards(reward, fill_id(tokenizer))


def _value_from_policy(params: Params, networks: Networks) -> Params:
    """A value model from a language model: its trunk and a zero head, so every first value is 0."""
    like = jax.tree.leaves(params["norm"])[0]
    return {**trunk(params), "score": jnp.zeros_like(like, jnp.float32, shape=(networks.value.width,))}


def _reads_tokens_of(tokenizer: Any, reward: RewardModel) -> bool:
    """Whether a policy's tokens mean the same to the reward model, and it has embeddings of all."""
    return same_tokens(tokenizer, reward.tokenizer) and reward.model.config.vocab_size >= len(tokenizer)


def _same_chat(template: str, tokenizer: Any, reward: RewardModel) -> bool:
    """Whether what a prompt and a response make together is what the reward model's template would write."""
    if template != CHAT:
        return True
    same = tokenizer.chat_template == reward.tokenizer.chat_template
    return same and not prompts_differ(reward.tokenizer, reward.how)


def _value_from(config: ConfigDict, alike: bool, policy_rows: int, reward_rows: int) -> str:
    """policy_rows, reward_rows: embeddings; a policy may sample any token that it has one of."""
    asked, fits = config.model.value_from, alike and reward_rows >= policy_rows
    if asked == "reward" and not fits:
        what = (
            f"embeddings of {reward_rows} tokens, and the policy of {policy_rows}"
            if alike
            else "another tokenizer than the policy"
        )
        raise UserError(
            f"model.value_from: reward, but {config.model.reward} has {what}, whose tokens the value model reads; use "
            "auto or policy"
        )
    return asked if asked != "auto" else "reward" if fits else "policy"


def _text_length(config: ConfigDict, reward: RewardModel, rows: list[dict]) -> int:
    """Tokens of the arrays that text is encoded into; says how many prompts the template cannot write."""
    tokenizer = reward.tokenizer
    if reward.template == CHAT:
        asked = encode_chat_prompts([messages_of(row) for row in rows], tokenizer, reward.how)
        found = [x if isinstance(x, str) else x.ids for x in asked]
    else:
        found = encode_prompt_texts([render(row, reward.template) for row in rows], tokenizer)
    reasons = sorted({x for x in found if isinstance(x, str)})
    lengths = np.array([len(x) for x in found if not isinstance(x, str)])
    if not len(lengths):
        raise UserError(
            f"model.reward_template: {reward.template} cannot write any of the prompts ({'; '.join(reasons)}); use "
            "another"
        )
    if reasons and startup.is_main():
        print(
            f"model.reward_template: {len(found) - len(lengths)} of {len(found)} prompts cannot be written "
            f"({'; '.join(reasons)}); their responses get missing_eos_penalty",
            flush=True,
        )
    width = expected_length(int(lengths.max()) + len(reward.behind.tail), config.rollout.max_new_tokens)
    most = longest_row(reward.model.config)
    if width > most and startup.is_main():
        print(
            f"model.reward: {reward.folder} has {most} learned positions; responses whose text is longer with their "
            "prompt get missing_eos_penalty",
            flush=True,
        )
    return min(width, most)
