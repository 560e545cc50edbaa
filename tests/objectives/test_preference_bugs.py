"""Bugs that others shipped in the losses of DPO, KTO, SimPO and ORPO and that no other test would show.

All that are known, with the tests of each, are listed in tests/bugs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from objectives_oracles import number

from rlhf_jax.objectives.preference_losses import PairLogprobs, kto_z0, pair_loss

ONE = jnp.ones(1)


def pair(chosen, rejected, reference=()):
    tokens = jnp.full(1, 4.0)
    return PairLogprobs(jnp.array([chosen]), jnp.array([rejected]), tokens, tokens, *reference)


def test_orpos_sft_term_makes_the_chosen_response_likelier():
    """A flipped sign makes it rarer (LLaMA-Factory), and an NLL over the prompt trains the prompt (TRL)."""
    slope = jax.grad(
        lambda x: pair_loss(pair(0.0, -8.0)._replace(chosen_B=x), ONE, loss="orpo", beta=0.0)["loss"].sum
    )
    np.testing.assert_allclose(slope(jnp.array([-6.0])), [-1 / 4], rtol=1e-6)


def test_an_sft_term_leaves_the_rewards_as_they_are():
    """In TRL it once overwrote what was logged of them."""
    plain = pair_loss(pair(-3.0, -5.0), ONE, beta=0.5)
    found = pair_loss(pair(-3.0, -5.0), ONE, beta=0.5, sft_coef=2.0)
    assert {name: x for name, x in found.items() if name in plain and name != "loss"} == {
        name: x for name, x in plain.items() if name != "loss"
    }


def test_conservative_and_robust_are_two_losses():
    settings = {"beta": 0.5, "label_smoothing": 0.2}
    conservative = number(pair_loss(pair(-3.0, -5.0), ONE, **settings)["loss"])
    robust = number(pair_loss(pair(-3.0, -5.0), ONE, loss="robust", **settings)["loss"])
    plain = np.logaddexp(0, -1.0)
    assert abs(conservative - (plain + 0.2)) < 1e-6 and abs(robust - (plain - 0.2 / 0.6)) < 1e-6


def test_without_a_reference_none_is_read_by_loss_or_rewards():
    """Elsewhere the loss leaves it out and the logged rewards do not."""
    reference = (jnp.array([-100.0]), jnp.array([-1.0]))
    for loss in ("simpo", "orpo"):
        with_it = pair_loss(pair(-3.0, -5.0, reference), ONE, loss=loss, beta=0.5)
        assert with_it == pair_loss(pair(-3.0, -5.0), ONE, loss=loss, beta=0.5)


def test_ktos_kl_is_that_of_the_batch_and_of_no_part():
    """Cut into micro-batches the cut-off at 0 would be made twice."""
    logratio = jnp.array([4.0, -2.0])
    halves = [float(kto_z0(logratio[i : i + 1], jnp.zeros(1), ONE)) for i in (0, 1)]
    assert float(kto_z0(logratio, jnp.zeros(2), jnp.ones(2))) == 1.0 != np.mean(halves)
