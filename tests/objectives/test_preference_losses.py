"""Every loss of pairs, and KTO's, against float64 NumPy; published golden values; the invariants of step 0."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives_oracles import central_difference, number, split_and_add

from rlhf_jax.objectives.preference_losses import LOSSES, PairLogprobs, kto, kto_z0, log_odds_ratio, pair_loss

STATIC = ("loss", "sft_coef", "sft_nll", "importance")
PAIRS = jax.jit(
    lambda *arrays, **settings: pair_loss(PairLogprobs(*arrays[:-1]), arrays[-1], **settings),
    static_argnames=STATIC,
)


@partial(jax.jit, static_argnames=STATIC)
def gradients(*arrays, **settings):
    """Of the summed loss, by both log-probs of the policy."""
    of = lambda *two: pair_loss(PairLogprobs(*two, *arrays[2:-1]), arrays[-1], **settings)["loss"].sum  # noqa: E731
    return jax.grad(of, argnums=(0, 1))(*arrays[:2])


def array(x):
    return jnp.asarray(x, jnp.float32)


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


# What each paper writes, in float64: pc, pr of the policy, nc, nr tokens, rc, rr of the reference, summed log-probs.
BETA, E, GAMMA = 0.3, 0.2, 0.7
WRITTEN = {
    "sigmoid": lambda z: -(1 - E) * log_sigmoid(z) - E * log_sigmoid(-z),
    "robust": lambda z: (-(1 - E) * log_sigmoid(z) + E * log_sigmoid(-z)) / (1 - 2 * E),
    "hinge": lambda z: np.maximum(0.0, 1 - z),
    "ipo": lambda z: (z / BETA - 1 / (2 * BETA)) ** 2,
}


def odds(mean):
    return np.exp(mean) / (1 - np.exp(mean))


def written(loss, pc, pr, nc, nr, rc, rr):
    """The loss of every pair."""
    if loss == "simpo":
        return WRITTEN["sigmoid"](BETA * (pc / nc - pr / nr) - GAMMA)
    if loss == "orpo":
        return -pc / nc - BETA * log_sigmoid(np.log(odds(pc / nc) / odds(pr / nr)))
    name, _, mean = loss.partition("_")
    one, two = (1 / nc, 1 / nr) if mean == "mean" else (1, 1)
    return WRITTEN[name](BETA * (one * (pc - rc) - two * (pr - rr)))


def drawn(seed, count=8):
    """(log-probs and token counts of pairs, weights)."""
    rng = np.random.default_rng(seed)
    nc, nr = rng.integers(1, 9, (2, count))
    pc, rc = -nc * rng.uniform(0.05, 3, (2, count))
    pr, rr = -nr * rng.uniform(0.05, 3, (2, count))
    return [pc, pr, nc, nr, rc, rr], rng.choice([0.0, 0.25, 1.0], count)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_what_its_paper_writes(loss):
    found, weight = drawn(2)
    settings = {"loss": loss, "beta": BETA, "label_smoothing": E, "simpo_gamma": GAMMA}
    metrics = PAIRS(*map(array, found), array(weight), **settings)
    total = lambda pc, pr: float((weight * written(loss, pc, pr, *found[2:])).sum())  # noqa: E731
    assert number(metrics["loss"]) == pytest.approx(total(*found[:2]) / weight.sum(), rel=1e-5)
    got = gradients(*map(array, found), array(weight), **settings)
    np.testing.assert_allclose(got[0], central_difference(lambda x: total(x, found[1]), found[0]), atol=2e-5)
    np.testing.assert_allclose(got[1], central_difference(lambda x: total(found[0], x), found[1]), atol=2e-5)
    # Rewards are measured as the loss measures: summed or by token, from the reference or without.
    sides = []
    for logps, tokens, reference in (found[0::2], found[1::2]):
        sides.append(
            BETA * (logps - LOSSES[loss].reference * reference) / (tokens if LOSSES[loss].mean else 1)
        )
    mean = lambda x: (weight * x).sum() / weight.sum()  # noqa: E731
    assert number(metrics["rewards/chosen"]) == pytest.approx(mean(sides[0]), rel=1e-5)
    assert number(metrics["rewards/rejected"]) == pytest.approx(mean(sides[1]), rel=1e-5)
    assert number(metrics["rewards/margins"]) == pytest.approx(mean(sides[0] - sides[1]), rel=1e-4)
    assert number(metrics["rewards/accuracies"]) == pytest.approx(mean(sides[0] > sides[1]), rel=1e-5)
    assert number(metrics["logps/chosen"]) == pytest.approx(mean(found[0]), rel=1e-5)
    assert number(metrics["logps/rejected"]) == pytest.approx(mean(found[1]), rel=1e-5)


PUBLISHED = ([-10, -20], [-12, -18], [5, 8], [4, 6], [-11, -19], [-11.5, -19.5])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0.62095705, 0.82593942]),
        ({"label_smoothing": 0.1}, [0.63595705, 0.80093942]),
        ({"loss": "ipo_sum"}, [12.25, 56.25]),
        ({"importance": "rejected"}, [0.37662949, 3.70160367]),
        ({"sft_coef": 0.1, "sft_nll": "sum"}, [1.62095705, 2.82593942]),
    ],
)
def test_published_golden_values(settings, wanted):
    """dpo-rlaif's losses, run by hand: beta .1, two pairs with h = 1.5 and -2.5.

    Its robust loss, cDPO divided by beta, is none that a paper has, and its IPO is that of sums.
    """
    arrays = [array(x) for x in PUBLISHED]
    for weight, one in zip(([1, 0], [0, 1]), wanted, strict=True):
        assert number(PAIRS(*arrays, array(weight), beta=0.1, **settings)["loss"]) == pytest.approx(
            one, rel=2e-7
        )


def test_published_values_without_a_reference_and_metrics():
    arrays = [array(x) for x in PUBLISHED]
    for weight, one in (([1, 0], 0.59813887), ([0, 1], 0.79813887)):
        free = PAIRS(*arrays[:4], array(weight), beta=0.1)
        assert number(free["loss"]) == pytest.approx(one, abs=1e-7)
    # Rewards leave the reference out as the loss does, where others log them as if it were there.
    assert number(PAIRS(*arrays[:4], jnp.ones(2), beta=0.1)["rewards/chosen"]) == pytest.approx(-1.5)
    want = {
        "rewards/chosen": (0.1 - 0.1) / 2,
        "rewards/rejected": (-0.05 + 0.15) / 2,
        "rewards/margins": (0.15 - 0.25) / 2,
        "rewards/accuracies": 0.5,
        "logps/chosen": -15.0,
        "logps/rejected": -15.0,
    }
    metrics = PAIRS(*arrays, jnp.ones(2), beta=0.1)
    for name, wanted in want.items():
        assert number(metrics[name]) == pytest.approx(wanted, abs=1e-7), name
    assert set(metrics) == {"loss", *want}


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_mean", "robust"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_step_zero_is_exactly_ln_2_with_no_margin_and_no_accuracy(loss, label_smoothing):
    rng = np.random.default_rng(1)
    chosen, rejected = (array(-300 * rng.random(8)) for _ in range(2))
    tokens = array(rng.integers(1, 50, 8))
    arrays = (chosen, rejected, tokens, tokens, chosen, rejected, jnp.ones(8))
    metrics = PAIRS(*arrays, beta=0.1, loss=loss, label_smoothing=label_smoothing)
    assert number(metrics["loss"]) == float(np.float32(np.log(2)))
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert number(metrics[name]) == 0.0, name
    # IPO begins at (1 / (2 beta))^2 and the hinge at 1.
    assert number(PAIRS(*arrays, beta=0.1, loss="ipo_mean")["loss"]) == pytest.approx(25.0)
    assert number(PAIRS(*arrays, beta=0.1, loss="hinge")["loss"]) == 1.0


@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("importance", ["none", "rejected", "wpo"])
def test_what_is_laid_over_a_loss(kind, importance):
    """Importance weights take no gradient, and the NLL has no such weight."""
    found, weight = drawn(5)
    pc, pr, nc, nr, _, rr = found
    trust = {"none": 1.0, "rejected": np.exp(pr - rr), "wpo": np.exp(pc / nc + pr / nr)}[importance]

    def total(x, y):
        nll = -x / (nc if kind == "mean" else 1)
        return float((weight * (trust * written("hinge", x, y, *found[2:]) + 0.5 * nll)).sum())

    settings = {"loss": "hinge", "beta": BETA, "sft_coef": 0.5, "sft_nll": kind, "importance": importance}
    metrics = PAIRS(*map(array, found), array(weight), **settings)
    assert number(metrics["loss"]) == pytest.approx(total(pc, pr) / weight.sum(), rel=1e-5)
    nll = (weight * -pc / (nc if kind == "mean" else 1)).sum() / weight.sum()
    assert number(metrics["nll_loss"]) == pytest.approx(nll, rel=1e-5)
    if importance != "none":
        assert number(metrics["importance"]) == pytest.approx((weight * trust).sum() / weight.sum(), rel=1e-5)
    got = gradients(*map(array, found), array(weight), **settings)
    np.testing.assert_allclose(got[0], central_difference(lambda x: total(x, pr), pc), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(got[1], central_difference(lambda x: total(pc, x), pr), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_are_a_set_and_micro_batches_add_up(loss):
    found, weight = drawn(3)
    rows = [array(x) for x in (*found, weight)]
    order = np.random.default_rng(4).permutation(8)
    function = partial(PAIRS, loss=loss, beta=0.2, label_smoothing=0.1, sft_coef=0.3, importance="wpo")
    whole, mixed = function(*rows), function(*(array(np.asarray(r)[order]) for r in rows))
    parts = split_and_add(function, rows, cut=3)
    for name, mean in whole.items():
        np.testing.assert_allclose(mean, mixed[name], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(mean, parts[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_weight_zero_are_harmless(loss):
    """The places of a packed row that hold no pair have no tokens either."""
    settings = {"loss": loss, "beta": 0.1, "sft_coef": 0.1, "importance": "rejected"}
    clean = PAIRS(*map(array, ([-1.0], [-2.0], [2], [2], [-1.0], [-1.0], [1])), **settings)
    for junk in (np.nan, np.inf, -np.inf):
        one, tokens = array([-1.0, junk]), array([2, 0])
        arrays = (one, 2 * one, tokens, tokens, one, one, array([1, 0]))
        for name, mean in PAIRS(*arrays, **settings).items():
            np.testing.assert_allclose(mean, clean[name], rtol=1e-6, err_msg=name)
        for gradient in gradients(*arrays, **settings):
            assert np.all(np.isfinite(gradient)) and gradient[1] == 0.0 and gradient[0] != 0.0


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "sigmoid_mean", "simpo"])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(loss):
    for margin in (-200.0, 200.0):
        arrays = (array([margin]), *map(array, ([0.0], [1], [1], [0.0], [0.0], [1])))
        found = number(PAIRS(*arrays, loss=loss, beta=1.0)["loss"])
        assert found == pytest.approx(max(-margin, 0.0), abs=1e-6)
        slope = float(gradients(*arrays, loss=loss, beta=1.0)[0][0])
        assert slope == pytest.approx(-(margin < 0), abs=1e-6)


def test_odds_of_tokens_that_are_nearly_certain_and_nearly_impossible():
    means = np.array([-1e-5, -1e-3, -0.1, -0.69, -0.7, -5.0, -50.0])
    got = log_odds_ratio(array(means), array(np.full(7, -1.0)))
    wanted = (means + 1.0) - (np.log(-np.expm1(means)) - np.log(-np.expm1(-1.0)))
    np.testing.assert_allclose(got, wanted, rtol=2e-5)
    of_certain = jax.grad(lambda x: log_odds_ratio(x, array([-1.0])).sum())(array([0.0]))
    assert np.isfinite(of_certain).all()


# --- KTO

KTO = jax.jit(kto)


def kto_written(policy, ref, z0, desirable, *, beta, good, bad):
    reward = policy - ref
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return np.where(
        desirable, good * (1 - sigmoid(beta * (reward - z0))), bad * (1 - sigmoid(beta * (z0 - reward)))
    )


def test_kto_value_gradient_and_metrics():
    rng = np.random.default_rng(6)
    policy, ref = -20 * rng.random((2, 8))
    desirable, weight, z0 = rng.random(8) < 0.5, np.array([1, 1, 0, 1, 0.5, 1, 1, 1.0]), 1.7
    settings = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    reference = {"beta": 0.2, "good": 1.3, "bad": 0.8}
    total = lambda x: float((weight * kto_written(x, ref, z0, desirable, **reference)).sum())  # noqa: E731
    arrays = (array(policy), array(ref), array(np.full(8, z0)), jnp.asarray(desirable), array(weight))
    metrics = KTO(*arrays, **settings)
    assert number(metrics["loss"]) == pytest.approx(total(policy) / weight.sum(), rel=1e-5)
    got = jax.grad(lambda x, z: kto(x, arrays[1], z, *arrays[3:], **settings)["loss"].sum, argnums=(0, 1))(
        arrays[0], arrays[2]
    )
    np.testing.assert_allclose(got[0], central_difference(total, policy), atol=1e-6)
    assert not np.any(got[1])
    reward, sides = 0.2 * (policy - ref), {"chosen": desirable, "rejected": ~desirable}
    for side, mask in sides.items():
        for name, x in ((f"rewards/{side}", reward), (f"logps/{side}", policy)):
            wanted = (weight * mask * x).sum() / (weight * mask).sum()
            assert number(metrics[name]) == pytest.approx(wanted, rel=1e-5), name
    right = np.where(desirable, reward > 0.2 * z0, reward < 0.2 * z0)
    assert number(metrics["rewards/accuracies"]) == pytest.approx((weight * right).sum() / weight.sum())
    assert number(metrics["kl"]) == pytest.approx(z0, rel=1e-6)


def test_kto_at_step_zero_is_half_of_each_rows_weight():
    logps, desirable = array(-300 * np.random.default_rng(1).random(4)), jnp.array([True, True, False, True])
    z0 = kto_z0(logps, logps, jnp.ones(4))
    assert float(z0) == 0.0
    metrics = KTO(logps, logps, z0, desirable, jnp.ones(4), beta=0.1, undesirable_weight=3.0)
    assert number(metrics["loss"]) == (3 * 0.5 + 1.5) / 4
    assert number(metrics["rewards/accuracies"]) == 0.0


def test_z0_is_the_mean_of_the_batch_cut_off_at_0():
    logratio, weight = array([3.0, -1.0, np.nan, 2.0]), array([1.0, 1.0, 0.0, 0.5])
    assert float(kto_z0(logratio, jnp.zeros(4), weight)) == pytest.approx(3.0 / 2.5)
    assert float(kto_z0(-logratio, jnp.zeros(4), weight)) == 0.0
    assert float(kto_z0(logratio, jnp.zeros(4), jnp.zeros(4))) == 0.0


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_kto_rows_of_weight_zero_and_extremes(junk):
    desirable, z0 = jnp.array([True, False, True, False]), array(0.0)
    policy = array([-500.0, 500.0, junk, 1.0])
    arrays = (policy, jnp.zeros(4), z0, desirable, array([1, 1, 0, 0]))
    assert number(KTO(*arrays, beta=1.0)["loss"]) == 1.0
    assert np.isfinite(jax.grad(lambda x: kto(x, *arrays[1:], beta=1.0)["loss"].sum)(policy)).all()
