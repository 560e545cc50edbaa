"""A policy of paper for the driver of methods that sample: prompt i is answered with i, and scored i."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.tokenization import Prompts
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.state import TrainState
from rlhf_jax.training.loop.step import TrainStep
from rlhf_jax.training.run import load_models, online
from rlhf_jax.training.run.session import Session

N, B, MINIBATCH, EPOCHS = 24, 8, 2, 3


class Sampled(NamedTuple):
    tokens_BR: jax.Array
    lengths_B: jax.Array
    ended_B: jax.Array
    logprobs_BR: jax.Array


class Experience(NamedTuple):
    """row: of the rollout; twice: the same number twice, to see that fields stay together."""

    row: jax.Array
    twice: jax.Array


class Tokenizer:
    def decode(self, ids, **_):
        return " ".join(map(str, ids))


class Watched:
    """A learner that keeps what it is given. It answers prompt i with the one token i, which ends number 1 alone; its
    score is i."""

    def __init__(self):
        self.asked, self.keys, self.seen, self.extras, self.samples = [], [], [], [], []

    def roll_out(self, networks, records, batch, key, samples):
        self.asked.append((records, jax.device_get(batch)))
        self.samples.append(samples)
        self.keys.append(tuple(np.ravel(jax.random.key_data(key)).tolist()))
        self.seen.append(jax.device_get(networks["policy"]["weight"]).tolist())
        B = len(records)
        said = jnp.asarray([[record["number"]] for record in records], jnp.int32)
        sampled = Sampled(said, jnp.ones(B, jnp.int32), said[:, 0] == 1, jnp.zeros((B, 1)))
        return sampled, lambda: sampled.tokens_BR[:, 0].astype(jnp.float32)

    def read(self, networks, batch, sampled):
        return sampled.tokens_BR[:, 0]

    def experience(self, readings, batch, sampled, scores, extra):
        self.extras.append(float(extra["price"]))
        rows = jnp.arange(len(readings))
        return Experience(rows, 2 * rows), {"objective/kl": 1.0 + len(self.extras)}

    def measure(self, networks, batch, sampled, score, count):
        scores = score()[:count]
        return scores, {"scores": scores.mean(), "sampling/logp_difference": jnp.float32(0)}

    def learner(self, starts):
        return online.Learner(starts, self.roll_out, self.read, self.experience, self.measure)


def session(folder, **changes):
    given = {"data.train": "", "data.eval": "", "rollout.batch_size": B, "minibatch_size": MINIBATCH}
    given |= {"epochs": EPOCHS, "steps": 4, "eval_every": 0, "save_every": 0, "best_metric": ""}
    page = tiny_farm.settings("ppo", folder, **given | changes)
    mesh = make_mesh(1, 1, 1)
    return Session(page, str(folder), mesh, "", Tokenizer(), "", load_models.lora_settings(page.lora))


def prompts(count):
    """Prompt i is the one token i."""
    found = Prompts(np.arange(count, dtype=np.int32), np.arange(count + 1, dtype=np.int64))
    return online.PromptRows(found, tuple({"number": i} for i in range(count)), 2, 99)


def after(extra, metrics):
    return {"price": extra["price"] * metrics["objective/kl"]}


def iterations(folder, steps, **changes):
    """(what the learner was asked, minibatches by iteration, the last state)."""
    watched, minibatches = Watched(), []

    class Step(TrainStep):
        def __call__(self, state, batch, frozen=None):
            minibatches[-1].append(batch)
            return state.replace(step=state.step + 1), {"loss": masked_mean(batch.row, batch.row >= 0)}

    opened = session(folder, **changes)
    state = TrainState(
        0, {"policy": {"weight": jnp.zeros(())}}, (), jax.random.key(opened.config.seed), {"price": 0.5}
    )
    iterate = online.make_iteration(opened, prompts(N), watched.learner({}), after, Step(lambda *_: None), {})
    for i in range(steps):
        minibatches.append([])
        state, metrics, _ = iterate(state, i)
        assert metrics["loss"] == pytest.approx((B - 1) / 2)
    return watched, minibatches, state
