"""Sources that are called on the host, and weighted sums of several sources: numbers, order, names."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.rollout.host_rewards import HostRewards, Verdicts
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.rollout.summed_rewards import Component, SummedRewards
from rlhf_jax.sampling.decode import Generation


class Tokenizer:
    def decode(self, ids, **_):
        return " ".join(map(str, ids))


PROMPTS = jnp.ones((3, 2), jnp.int32), jnp.full(3, 2, jnp.int32)


def sampled():
    """The second response ended at its second token, the others were cut off."""
    lengths_B = jnp.array([3, 2, 1], jnp.int32)
    return Generation(
        tokens_BR=jnp.array([[5, 6, 7], [8, 2, 0], [9, 1, 4]], jnp.int32),
        lengths_B=lengths_B,
        mask_BR=jnp.arange(3) < lengths_B[:, None],
        logprobs_BR=jnp.zeros((3, 3)),
        ended_B=jnp.array([False, True, False]),
        steps=jnp.int32(3),
    )


ROWS = [{"instruction": str(i)} for i in range(3)]


def test_the_host_reads_the_responses_as_text_without_their_end():
    asked = []

    def judgment(records, texts):
        asked.append((records, texts))
        return Verdicts([0.1, float("nan"), 3], [True, False, True], {"usd": [0.0, 0.5, 0.25]})

    source = HostRewards("judge", judgment, Tokenizer(), make_mesh(1, 1, 1))
    call = source(ROWS, *PROMPTS, sampled())
    assert not asked  # only the second call asks
    found = call()
    assert asked == [(ROWS, ["5 6 7", "8", "9"])]
    assert all(one is two for one, two in zip(asked[0][0], ROWS, strict=True))
    np.testing.assert_array_equal(found.scores_B, np.float32([0.1, 0, 3]))
    np.testing.assert_array_equal(found.readable_B, [True, False, True])
    np.testing.assert_array_equal(found.components["usd"], np.float32([0, 0.5, 0.25]))


def test_where_no_token_is_nobody_is_asked():
    """A place of a prompt that has fewer responses than others: a judge would be paid for it."""
    asked = []

    def judgment(records, texts):
        asked.append((records, texts))
        return Verdicts([1.5, 2.5], [True, True], {"usd": [0.25, 0.5]})

    given = sampled()
    given = given._replace(lengths_B=given.lengths_B.at[1].set(0), ended_B=jnp.zeros(3, bool))
    found = HostRewards("judge", judgment, Tokenizer(), make_mesh(1, 1, 1))(ROWS, *PROMPTS, given)()
    assert asked == [([ROWS[0], ROWS[2]], ["5 6 7", "9"])] and asked[0][0][1] is ROWS[2]
    np.testing.assert_array_equal(found.scores_B, np.float32([1.5, 0, 2.5]))
    np.testing.assert_array_equal(found.readable_B, [True, False, True])
    np.testing.assert_array_equal(found.components["usd"], np.float32([0.25, 0, 0.5]))


class Fixed:
    """A source whose scores are known; `order` says what was called when."""

    def __init__(self, name, scores, readable, order, **parts):
        self.name, self.order = name, order
        self.found = Scored(
            jnp.float32(scores), jnp.array(readable), {k: jnp.float32(x) for k, x in parts.items()}
        )

    def __call__(self, rows, prompts_BP, prompt_lengths_B, sampled):
        self.order.append(f"first {self.name}")

        def call():
            self.order.append(f"second {self.name}")
            return self.found

        return call


def test_a_sum_is_weighted_and_its_parts_are_named():
    order = []
    one = Fixed("one", [1.0, 2.0, np.nan], [True, True, False], order, usd=[1.0, 2.0, 3.0])
    two = Fixed("two", [10.0, np.inf, 30.0], [True, False, True], order)
    source = SummedRewards({"one": Component(one, 0.5), "two": Component(two, -2.0)})
    found = source(ROWS, *PROMPTS, sampled())()
    # Every first part comes before any second one.
    assert order == ["first one", "first two", "second one", "second two"]
    np.testing.assert_array_equal(found.scores_B, np.float32([0.5 * 1 - 2 * 10, 0, 0]))
    np.testing.assert_array_equal(found.readable_B, [True, False, False])
    assert sorted(found.components) == ["one", "one/usd", "two"]
    np.testing.assert_array_equal(found.components["one"], np.float32([1, 2, 0]))
    np.testing.assert_array_equal(found.components["two"], np.float32([10, 0, 30]))
    np.testing.assert_array_equal(found.components["one/usd"], np.float32([1, 2, 3]))


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_one_source_times_its_weight(weight):
    one = Fixed("one", [1.5, -2.0, 0.25], [True] * 3, [])
    found = SummedRewards({"one": Component(one, weight)})(ROWS, *PROMPTS, sampled())()
    np.testing.assert_array_equal(found.scores_B, np.float32(weight) * np.float32([1.5, -2.0, 0.25]))
