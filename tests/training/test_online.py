"""The driver of methods that sample: its keys, its prompts, its order, what it carries on; with a policy of paper."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_policy import (
    EPOCHS,
    MINIBATCH,
    B,
    N,
    Watched,
    after,
    iterations,
    prompts,
    session,
)

from rlhf_jax.data.tokenization import Prompts
from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.state import TrainState
from rlhf_jax.training.loop.step import TrainStep
from rlhf_jax.training.run import online
from rlhf_jax.training.run.encoded_rows import Split


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


_CUT = "came to an end, .* raise rollout.max_new_tokens \\(8\\), or start from"


@pytest.mark.parametrize(
    ("name", "share", "times", "words"),
    [
        ("ended", 0.0, 1, _CUT),
        ("ended", 0.125, 0, _CUT),
        (
            "unscored",
            1.0,
            1,
            "could be scored, so missing_eos_penalty is the score of all, .* look at what its source",
        ),
        ("unscored", 0.875, 0, "could be scored"),
    ],
)
def test_that_all_responses_have_one_score_is_said_once(
    tmp_path, capsys, monkeypatch, name, share, times, words
):
    """In rollouts, and in evaluations alone; where responses need no end, as those that a teacher scores, not."""
    measure, experience = Watched.measure, Watched.experience

    def experienced(self, *asked):
        rows, found = experience(self, *asked)
        return rows, found | {f"completions/{name}": jnp.float32(share)}

    def measured(self, *asked):
        scores, found = measure(self, *asked)
        return scores, found | {f"completions/{name}": jnp.float32(share)}

    said = f"notice: no response {words}"
    monkeypatch.setattr(Watched, "experience", experienced)
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
