"""The driver of methods that sample: its keys, its prompts, its order, what it carries on; with a policy of paper."""

import gc
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.data.tokenization import Prompts
from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.state import TrainState, planned_state
from rlhf_jax.training.loop.step import TrainStep, make_train_step
from rlhf_jax.training.run import load_models, online
from rlhf_jax.training.run.encoded_rows import Split
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Plan, batch_shapes, optimizer_of
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


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return iterations(tmp_path_factory.mktemp("four"), 4)


def test_streams_of_keys_do_not_meet():
    key = jax.random.key(3)
    found = [
        online.key_of(key, s, n) for s in (online.ROLLOUT, online.ORDER, online.EVALUATION) for n in range(5)
    ]
    assert len({tuple(jax.random.key_data(x).tolist()) for x in (key, *found)}) == 16
    other = online.key_of(jax.random.key(4), online.ROLLOUT, 0)
    assert jax.random.key_data(other).tolist() != jax.random.key_data(found[0]).tolist()


def test_every_rollout_has_a_key_of_its_own_and_every_row_a_number(four, tmp_path):
    watched, *_ = four
    assert len(set(watched.keys)) == 4
    assert all(batch["rows"].tolist() == list(range(B)) for _, batch in watched.asked)
    other, *_ = iterations(tmp_path, 1, seed=1)
    assert other.keys[0] not in watched.keys


def test_prompts_come_once_an_epoch_in_an_order_of_the_seed_and_with_their_records(four, tmp_path):
    watched, *_ = four
    numbers = [[record["number"] for record in records] for records, _ in watched.asked]
    for asked, (_, batch) in zip(numbers, watched.asked, strict=True):
        assert batch["tokens"].tolist() == [[99, number] for number in asked]
        assert batch["lengths"].tolist() == [1] * B
    first = np.concatenate(numbers[: N // B]).tolist()
    assert sorted(first) == list(range(N)) and first != list(range(N))
    assert numbers[N // B] != numbers[0]  # the second epoch has an order of its own
    other, *_ = iterations(tmp_path, 1, seed=1)
    assert [record["number"] for record in other.asked[0][0]] != numbers[0]


def test_every_pass_over_a_rollout_is_a_new_order_of_all_its_rows(four):
    _, minibatches, state = four
    orders = []
    for found in minibatches:
        assert len(found) == EPOCHS * B // MINIBATCH and all(x.row.shape == (MINIBATCH,) for x in found)
        assert all((x.twice == 2 * x.row).all() for x in found)
        orders += np.concatenate([x.row for x in found]).reshape(EPOCHS, B).tolist()
    assert all(sorted(order) == list(range(B)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4 * EPOCHS
    assert state.step == 4 * EPOCHS * B // MINIBATCH


def test_what_a_method_carries_on_comes_to_the_next_rollout(four):
    watched, _, state = four
    assert watched.extras == pytest.approx([0.5, 0.5 * 2, 0.5 * 2 * 3, 0.5 * 2 * 3 * 4])
    assert float(state.extra["price"]) == pytest.approx(0.5 * 2 * 3 * 4 * 5)


@pytest.mark.parametrize(
    ("staleness", "wanted"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (3, [0, 0, 0, 0, 1])]
)
def test_rollouts_come_from_the_policy_of_so_many_steps_before(tmp_path, staleness, wanted):
    """And what is read and trained is the newest one. The weight counts the iterations here."""
    watched, read, past = Watched(), [], (jnp.zeros(()),) * staleness

    class Step(TrainStep):
        def __call__(self, state, batch, frozen=None):
            whole = batch.row >= 0
            params = jax.tree.map(lambda x: x + 1.0 / (EPOCHS * B // MINIBATCH), state.params)
            return state.replace(params=params), {"loss": masked_mean(batch.row, whole)}

    def noted(networks, batch, sampled):
        read.append(round(float(networks["policy"]["weight"])))
        return watched.read(networks, batch, sampled)

    opened = session(tmp_path, **{"rollout.staleness": staleness})
    extra = {"price": 0.5} | ({online.PAST: tuple({"weight": x} for x in past)} if staleness else {})
    state = TrainState(0, {"policy": {"weight": jnp.zeros(())}}, (), jax.random.key(0), extra)
    learner = watched.learner({})._replace(read=noted)
    frozen = {"policy": {}}
    iterate = online.make_iteration(opened, prompts(N), learner, after, Step(lambda *_: None), frozen)
    for i in range(5):
        state, *_ = iterate(state, i)
    assert [round(x) for x in watched.seen] == wanted and read == [0, 1, 2, 3, 4]
    assert state.extra.keys() == extra.keys() and "past_policies" not in watched.extras


def test_metrics_of_updates_are_joined_by_their_kind():
    found = [
        {
            "loss": masked_mean(jnp.float32(x), jnp.ones(len(x))),
            "nonfinite": 1.0 * (i == 0),
            "grad_norm": 2.0 * i,
        }
        | {"learning_rate/policy": 1.0 + i, "param_norm": 3.0 + i}
        for i, x in enumerate(([1.0, 2.0, 3.0], [10.0]))
    ]
    got = {name: float(x) for name, x in online.overall_metrics(found).items()}
    wanted = {"loss": 4.0, "nonfinite": 1.0, "grad_norm": 1.0, "learning_rate/policy": 2.0, "param_norm": 4.0}
    assert got == pytest.approx(wanted)


def test_evaluations_are_the_same_rows_with_the_same_key(tmp_path):
    """And the key is the seed's; every prompt has its own row in the table of samples."""
    keys = {}
    for seed in (0, 1):
        watched = Watched()
        evaluate = online.make_evaluation(session(tmp_path, seed=seed), prompts(3), watched.learner({}))
        assert [evaluate({"policy": {"weight": jnp.zeros(())}}, step)["scores"] for step in (0, 5)] == [1, 1]
        assert watched.keys[0] == watched.keys[1]
        assert [record["number"] for record in watched.asked[0][0]] == [0, 1, 2]
        keys[seed] = watched.keys[0]
    assert keys[0] != keys[1]
    rows = [json.loads(x) for x in max((tmp_path / "samples").iterdir()).read_text().splitlines()]
    assert [(row["number"], row["output"], row["ended"], row["score"]) for row in rows] == [
        (0, "0", False, 0),
        (1, "", True, 1),
        (2, "2", False, 2),
    ]


def evaluated(folder, watched):
    evaluate = online.make_evaluation(session(folder), prompts(3), watched.learner({}))
    return [evaluate({"policy": {"weight": jnp.zeros(())}}, step) for step in (0, 5)]


def test_a_policy_that_says_nan_ends_an_evaluation(tmp_path):
    class Broken(Watched):
        def roll_out(self, *asked):
            sampled, score = super().roll_out(*asked)
            return sampled._replace(logprobs_BR=sampled.logprobs_BR.at[1].set(jnp.nan)), score

    with pytest.raises(UserError, match="the policy"):
        evaluated(tmp_path, Broken())


@pytest.mark.parametrize(("nats", "times"), [(0.2, 1), (0.01, 0)])
def test_a_sampler_that_is_far_from_the_trainer_is_said_once(tmp_path, capsys, nats, times):
    class Far(Watched):
        def measure(self, *asked):
            scores, found = super().measure(*asked)
            return scores, found | {"sampling/logp_difference": jnp.float32(nats)}

    evaluated(tmp_path, Far())
    said = f"notice: sampling/logp_difference is {nats} nats a token (rounding)"
    assert capsys.readouterr().out.count(said) == times


def test_what_one_response_cannot_have_is_left_out_of_an_evaluation(tmp_path):
    opened, unsaid = session(tmp_path), ("scores", "rewards/judge")
    evaluate = online.make_evaluation(opened, prompts(3), Watched().learner({}), unsaid=unsaid)
    found = evaluate({"policy": {"weight": jnp.zeros(())}}, 0)
    assert "scores" not in found and "sampling/logp_difference" in found
    rows = [json.loads(x) for x in (tmp_path / "samples/000000.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [None] * 3 and [row["output"] for row in rows] == ["0", "", "2"]


@pytest.mark.parametrize(("ended", "times"), [(0.0, 1), (0.125, 0)])
def test_that_no_response_comes_to_an_end_is_said_once(tmp_path, capsys, monkeypatch, ended, times):
    """In rollouts, and in evaluations alone; where responses need no end, as those that a teacher scores, not."""
    measure, experience = Watched.measure, Watched.experience

    def experienced(self, *asked):
        rows, found = experience(self, *asked)
        return rows, found | {"completions/ended": jnp.float32(ended)}

    def measured(self, *asked):
        scores, found = measure(self, *asked)
        return scores, found | {"completions/ended": jnp.float32(ended)}

    said = "notice: no response came to an end, .* raise rollout.max_new_tokens \\(8\\), or start from"
    monkeypatch.setattr(Watched, "experience", experienced)
    startup.forget_notices()
    iterations(tmp_path, 3)
    assert len(re.findall(said, capsys.readouterr().out)) == times
    monkeypatch.setattr(Watched, "measure", measured)
    evaluated(tmp_path, Watched())
    assert capsys.readouterr().out.count("no response") == 0  # has been said
    startup.forget_notices()
    evaluated(tmp_path, Watched())
    assert len(re.findall(said, capsys.readouterr().out)) == times


def test_batches_are_as_wide_as_the_longest_prompt_of_both_files():
    def of(*lengths):
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Prompts(np.ones(offsets[-1], np.int32), offsets)

    for train, held in (((3, 5), (19, 2)), ((19, 2), (3, 5))):
        split = Split(of(*train), of(*held), [{"of": "held"}] * 2, ({"of": "train"},) * 2)
        both = online.prompt_rows(split, 99)
        assert [rows.P for rows in both] == [24, 24]  # the next multiple of 8
        assert [rows.records[0]["of"] for rows in both] == ["train", "held"]
        mine = both[1].batch(np.array([1]), make_mesh(1, 1, 1))
        assert mine["tokens"].tolist() == [[99] * (24 - held[1]) + [1] * held[1]]


def whole_run(folder, reads=(), **changes):
    """A method whose policy is one weight that falls by the rate of every update: (watched, result, metrics)."""
    watched = Watched()
    opened = session(folder, **changes)
    where = NamedSharding(opened.mesh, PartitionSpec())
    weight = jax.device_put(jnp.float32(1.0), where)

    def loss_fn(params, batch):
        nothing = (0.0 * batch.row) @ jnp.ones(MINIBATCH)  # a matrix product, whose operations are counted
        return {"loss": masked_mean(params["policy"]["weight"] + nothing, jnp.ones(()))}

    def plan(config, mesh):
        tx = optimizer_of(
            config.optimizer, config.steps, updates_per_step=online.updates_per_iteration(config)
        )
        like = {"policy": {"weight": jax.ShapeDtypeStruct((), jnp.float32, sharding=where)}}
        batch = batch_shapes(
            mesh, config.minibatch_size, Experience(np.zeros(1, np.int32), np.zeros(1, np.int32))
        )
        step = make_train_step(loss_fn, tx, divided=False)
        return Plan(loss_fn, tx, step, planned_state(like, tx), batch, {"policy": {}})

    starts = {"policy": Start({}, {"weight": weight})}
    method = online.Online(plan, lambda: watched.learner(starts), after, {"price": 0.5}, ("loss",), reads)
    trained = online.train_online(opened, prompts(N), prompts(3), method)
    assert float(starts["policy"].trained["weight"]) == 1.0  # what training starts from outlives it
    return watched, float(trained["policy"]["weight"]), tiny_farm.rows(folder)


SGD = {
    "optimizer.name": "sgd",
    "optimizer.b1": 0.0,
    "optimizer.learning_rate": 0.01,
    "optimizer.max_grad_norm": 0.0,
}
SGD |= {"optimizer.schedule": "linear", "optimizer.warmup_steps": 0, "optimizer.ema": 0.5}


def test_a_whole_run(tmp_path):
    """Rollouts sample the newest policy and evaluations the average; both keys follow the seed."""
    watched, trained, rows = whole_run(tmp_path / "0", steps=2, **SGD)
    updates = EPOCHS * B // MINIBATCH
    weight, average, rates, wanted = 1.0, 1.0, [0.01, 0.005], [(1.0, 1.0)]
    for rate in rates:
        for _ in range(updates):
            weight -= rate
            average = (average + weight) / 2
        wanted.append((weight, average))
    # An evaluation of the start, two rollouts, an evaluation of the end.
    assert watched.seen == pytest.approx([wanted[0][1], wanted[0][0], wanted[1][0], wanted[2][1]])
    assert trained == pytest.approx(wanted[2][1])
    assert [row["learning_rate"] for row in rows if "loss" in row] == pytest.approx(rates)
    assert [row["step"] for row in rows if "eval/scores" in row] == [0, 2]
    assert watched.extras == pytest.approx([0.5, 1.0])
    first, *inside, last = watched.keys
    assert first == last and len({first, *inside}) == 3
    other, *_ = whole_run(tmp_path / "1", steps=1, seed=1, **SGD)
    assert not {*other.keys} & {*watched.keys}


def test_a_long_run_keeps_no_more_arrays_than_a_short_one(tmp_path, monkeypatch):
    """Of rollouts, experience and minibatches nothing stays."""
    held, roll_out = [], Watched.roll_out

    def counted(self, *asked):
        gc.collect()
        held.append(len(jax.live_arrays()))
        return roll_out(self, *asked)

    monkeypatch.setattr(Watched, "roll_out", counted)
    whole_run(tmp_path, steps=9, **SGD)
    # The first and the last are evaluations', and the first rollout sees a run that has not trained yet.
    assert held[3] == held[-2]


def test_a_run_goes_on_only_with_the_models_that_it_read(tmp_path):
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "weights").write_text("one")
    whole_run(tmp_path / "run", (str(reward),), steps=1, **SGD)
    (reward / "weights").write_text("another")
    with pytest.raises(UserError, match=rf"inputs\.{reward} was "):
        whole_run(tmp_path / "run", (str(reward),), steps=1, **SGD)


def test_the_loop_is_told_the_operations_of_all_updates_of_a_rollout(tmp_path, monkeypatch):
    told, fit = [], online.fit

    def watched(*args, flops, **options):
        told.append(flops)
        return fit(*args, flops=flops, **options)

    monkeypatch.setattr(online, "fit", watched)
    whole_run(tmp_path, steps=1, **SGD)
    # One product of as many numbers as a minibatch has rows, 2 operations each, in every update.
    assert told == [EPOCHS * (B // MINIBATCH) * 2 * MINIBATCH]
