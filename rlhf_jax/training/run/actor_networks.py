"""Describes the networks of an online method before any weight is read: policy, reward model, value model.

Each has its own settings, folder and tokenizer. Decided and printed here: whether the reward model reads the policy's
tokens as they are or needs text, and from whose trunk the value model starts.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket
from rlhf_jax.data.chat.chat_encoding import CHAT, encode_chat_prompts, prompts_differ
from rlhf_jax.data.records.messages import messages_of
from rlhf_jax.data.templates import Handling, handling_of, render
from rlhf_jax.data.tokenization import encode_prompt_texts
from rlhf_jax.data.tokens.same_tokens import same_tokens
from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, trunk, value_from_reward
from rlhf_jax.models.lora import Lora, stored
from rlhf_jax.models.model import RewardModel, first_member, longest_row
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.host_memory import to_host
from rlhf_jax.rollout.rewards import Rewards, TokenRewards
from rlhf_jax.rollout.text_rewards import TextRewards
from rlhf_jax.training.run import load_models, reward_models
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online import models_wait
from rlhf_jax.training.run.online_models import kept_dtype
from rlhf_jax.training.run.session import Network, Session, network_of


class RewardSource(NamedTuple):
    """A reward model, without its parameters, and how it is given what a policy samples.

    Attributes:
      shares_tokens: whether a policy's tokens mean the same to it, and it has embeddings of all.
      text_length: tokens of the rows that it reads, where it reads text; 0 where it reads the policy's own tokens.
    """

    reward: RewardModel
    shares_tokens: bool
    text_length: int

    @property
    def closing(self) -> tuple[int, ...]:
        """What it reads behind a response."""
        return self.reward.behind.read(self.reward.score_at)


def policy_of(session: Session) -> Network:
    """Describes the policy as it will be trained; UserError where the page names a reward model."""
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.policy: {session.config.model.policy} is a reward model; give a language model"
        )
    return network


def reward_source_of(session: Session, rows: list[dict], folder: str = "") -> RewardSource:
    """Describes a reward model and how it is given responses.

    rows: all prompts' records, for one that reads text. folder: one that reward.sources names; "" is model.reward, over
    which model.reward_adapter may be laid.
    """
    config, tokenizer = session.config, session.tokenizer
    m, template = config.model, config.model.reward_template or config.data.template
    how = handling_of(config.data)
    # How the page writes conversations is meant for the policy's template; another one gets the defaults.
    if template != config.data.template:
        how = Handling(date=how.date)
    given, adapter, field = (
        (folder, "", "reward.sources") if folder else (m.reward, m.reward_adapter, "model.reward")
    )
    reward = reward_models.described(given, m, field=field, template=template, how=how, adapter=adapter)
    # The same tokens are not enough: an id beyond the embeddings would look up another token's row.
    shares = same_tokens(tokenizer, reward.tokenizer) and reward.model.config.vocab_size >= len(tokenizer)
    # Tokens are exact and stay on the devices. Text costs decoding and encoding on the host in every rollout.
    as_tokens = shares and template == config.data.template and _writes_the_same(session, reward)
    length = 0 if as_tokens else _text_length(config, reward, rows)
    if startup.is_main():
        reads = "the tokens that were sampled" if as_tokens else f"their text, in the template {template}"
        named = f"reward model {folder}" if folder else "reward model"
        print(f"{named}: reads {reads}; its score stands at the token {reward.score_at}", flush=True)
    return RewardSource(reward, shares, length)


def value_of(session: Session, policy: ModelConfig, source: RewardSource | None) -> tuple[ModelConfig, str]:
    """Decides where the value model starts: (its settings, "reward" or "policy", whose trunk it takes).

    source: the first reward model among the page's sources; None where they have none.
    """
    m = session.config.model
    if source is None:
        if m.value_from == "reward":
            raise UserError(
                "model.value_from: reward, but reward.sources names no reward model; use auto or policy"
            )
        return _told(policy, "policy", m.policy)
    reward = source.reward.model.config
    # A policy may sample any token that it has an embedding of.
    fits = source.shares_tokens and reward.vocab_size >= policy.vocab_size
    if m.value_from == "reward" and not fits:
        what = (
            f"embeddings of {reward.vocab_size} tokens, and the policy of {policy.vocab_size}"
            if source.shares_tokens
            else "another tokenizer than the policy"
        )
        raise UserError(
            f"model.value_from: reward, but {source.reward.folder} has {what}, whose tokens the value model "
            "reads; use auto or policy"
        )
    trunk_of = m.value_from if m.value_from != "auto" else "reward" if fits else "policy"
    if trunk_of == "policy":
        return _told(policy, trunk_of, m.policy)
    # The value model gets an adapter of the run's scale; one that the reward model brought is merged by then.
    config = dataclasses.replace(reward, adapter_scale=session.lora.scale) if session.lora.rank else reward
    return _told(config, trunk_of, source.reward.folder)


def _told(config: ModelConfig, trunk_of: str, folder: str) -> tuple[ModelConfig, str]:
    if startup.is_main():
        print(f"value model: starts from the trunk of the {trunk_of} model, {folder}", flush=True)
    return config, trunk_of


def value_params(source: str, config: ModelConfig, reward: Params, policy: Params, lora: Lora) -> Params:
    """Makes a value model's parameters: a trunk and a zero head, so that every first value is 0.

    config: the policy's. reward: its parameters; of an ensemble the first member's trunk is taken. policy: as it was
    read, with an adapter if it has one already.
    """
    if source == "reward":
        return value_from_reward(first_member(reward))
    # With an adapter to train, the policy's own is split off later; without, it becomes part of the trunk.
    params = policy if lora.rank else load_models.merged_params(config, policy)
    like = jax.tree.leaves(params["norm"])[0]
    return {**trunk(params), "score": jnp.zeros_like(like, jnp.float32, shape=(config.width,))}


def read_reward(session: Session, source: RewardSource, folder: str = "") -> RewardModel:
    """Reads a reward model's parameters onto the mesh. folder: as it was described."""
    m, dtype = session.config.model, session.lora.base_dtype
    adapter = "" if folder else m.reward_adapter
    return reward_models.loaded(source.reward, m, session.mesh, adapter=adapter, base_dtype=dtype)


def source_files(session: Session, source: RewardSource, folder: str = "") -> tuple[str, ...]:
    """The folders that a reward model is read from, which are hashed as the policy's are."""
    return load_models.sources(source.reward.folder, "" if folder else session.config.model.reward_adapter)


def rewards_of(session: Session, source: RewardSource, reward: RewardModel, pad_id: int) -> Rewards:
    """How a reward model that has been read scores responses: their tokens, or their text."""
    kept = stored(reward.model.params, kept_dtype(session.config))
    if models_wait(session.config):
        kept = jax.block_until_ready(to_host(kept))
    reward = dataclasses.replace(reward, model=dataclasses.replace(reward.model, params=kept))
    microbatches = session.config.rollout.microbatches
    if source.text_length:
        return TextRewards(reward, session.tokenizer, session.mesh, source.text_length, microbatches)
    return TokenRewards(reward, pad_id, microbatches)


def _writes_the_same(session: Session, reward: RewardModel) -> bool:
    """Whether a prompt's tokens followed by a response's are what the reward model's template would write of both."""
    # Built-in templates put prompt and response end to end; a chat template may close a turn its own way.
    if reward.template != CHAT:
        return True
    same = session.tokenizer.chat_template == reward.tokenizer.chat_template
    return same and not prompts_differ(reward.tokenizer, reward.how)


def _text_length(config: ConfigDict, reward: RewardModel, rows: list[dict]) -> int:
    """Returns the width of the arrays that text is encoded into; prints how many prompts the template cannot write."""
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
    # Another tokenizer may need more tokens for a response than the policy did. Twice as many is a guess:
    # where it is too low, `TextRewards` doubles its arrays.
    longest_prompt = int(lengths.max()) + len(reward.behind.tail)
    width = bucket(longest_prompt + 2 * config.rollout.max_new_tokens + 8, 8)
    most = longest_row(reward.model.config)
    if width > most and startup.is_main():
        print(
            f"model.reward: {reward.folder} has {most} learned positions; responses whose text is longer with their "
            "prompt get missing_eos_penalty",
            flush=True,
        )
    return min(width, most)
