"""data.packing=auto of pairs and ratings: a step has the rows that it has without packing, in fewer array rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_losses
from tiny_losses import CONFIG

from rlhf_jax.data.batches import Pairs, Sequences, flattened, row_indices
from rlhf_jax.methods import dpo, reward_model
from rlhf_jax.models.attention import fused
from rlhf_jax.objectives.reduce import value
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer
from rlhf_jax.training.rows import labelled_rows, shared_prompt_rows
from rlhf_jax.training.run import encoded_rows, reference_logprobs
from rlhf_jax.training.run.encoded_rows import Split

N, T, B, SEED = 160, 48, 16, 3


def drawn(n=N, longest=T, shortest=T // 4):
    """Pairs whose sides have a quarter to all of T tokens each, prompt and response."""
    rng = np.random.default_rng(0)
    sides, heads = ([], []), []
    for _ in range(n):
        prompt = rng.integers(3, CONFIG.vocab_size, rng.integers(2, shortest - 1))
        heads.append(len(prompt))
        for side in sides:
            own = rng.integers(shortest, longest + 1) - len(prompt)
            side.append(np.int32([*prompt, *rng.integers(3, CONFIG.vocab_size, own)]))
    return Pairs(*(Sequences(*flattened(side), np.int32(heads)) for side in sides))


def page_of(job="dpo", **changes):
    small = {"batch_size": B, "epochs": 2.0, "seed": SEED, "data.packing": "auto"}
    return tiny_farm.settings(job, "farm", **small | changes)


def rows_of(found, page, *, model=CONFIG, packed=True):
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    about = (Split(found, found, []), page.data, 0, SEED, model)
    return shared_prompt_rows.pair_rows(*about, auto=page if packed else None)


def outcome(loss_fn, params, batch, *, microbatches=1):
    """(metrics, parameters after a step whose size is smooth in the gradient)."""
    tx = make_optimizer(learning_rate=0.1, total_steps=9, schedule="constant", eps=1e-2, max_grad_norm=0)
    step = make_train_step(loss_fn, tx, microbatches=microbatches)
    state, metrics = step(create(jax.tree.map(jnp.array, params), tx, seed=0), batch)
    return {k: float(x) for k, x in metrics.items()}, state.params


@pytest.fixture(scope="module")
def reference():
    both = np.random.default_rng(2).normal(-90, 9, (2, N)).astype(np.float32)
    return dict(zip(reference_logprobs.PAIRS.names, both, strict=True))


@pytest.mark.parametrize("share", ["on", "off"])
def test_a_step_of_dpo_learns_the_same_in_fewer_array_rows(share, reference, capsys):
    found, page = drawn(), page_of(microbatches=2, **{"data.share_prompts": share})
    packed, held, R = rows_of(found, page)
    plain, _, R_plain = rows_of(found, page_of(**{"data.share_prompts": "off"}), packed=False)
    assert "160 pairs in" in capsys.readouterr().out
    np.testing.assert_array_equal(packed.tokens, plain.tokens)
    index_B = row_indices(1, B, N, SEED)
    array, alone = (x.with_columns(reference).make(index_B, slice(0, B)) for x in (packed, plain))
    assert ("roots" in array) == (share == "on") and array["documents"].sum() == 2 * B
    params = tiny_farm.random_params(scalar=False, seed=1)
    here, apart = (dpo.dpo_loss_fn(CONFIG, r, 16, beta=0.1) for r in (R, R_plain))
    wanted = outcome(apart, params, alone)
    tiny_losses.assert_same(outcome(here, params, array, microbatches=2), wanted, atol=2e-7)
    # Documents that see each other would be found out: the loss is another one.
    mixed = array | {name: np.minimum(array[name], 1) for name in ("segments", "roots") if name in array}
    assert abs(outcome(here, params, mixed)[0]["loss"] - wanted[0]["loss"]) > 1e-3
    # Held-out pairs are packed without regard to steps; none is missing.
    weights = [held.with_columns({}).make(np.array([i]), slice(0, 1))["documents"] for i in range(held.count)]
    assert np.sum(weights) == 2 * N and held.count < N


def test_array_rows_hold_little_padding():
    """Places for each token that is computed, over an epoch whose steps may have three numbers of array rows."""
    found, page = drawn(4000), page_of(batch_size=32, epochs=4.0)
    for share in ("on", "off"):
        page.data.share_prompts = share
        packed, held, _ = rows_of(found, page)
        shared = found.chosen.prompt_lengths.astype(int) if share == "on" else 0
        real, places, tokens = packed.tokens - shared, 0, 0
        for step in range(125):
            index_B = row_indices(step, 32, 4000, SEED)
            places += packed.make(index_B, slice(0, 32))["tokens"].size
            tokens += real[index_B].sum()
        assert places / tokens < 1.15
        width = held.make(np.zeros(1, int), slice(0, 1))["tokens"].shape[1]
        assert held.count * width / real.sum() < 1.05


def test_margins_and_ratings_lie_where_their_rows_do():
    found, numbers_n = drawn(), np.float32(np.random.default_rng(4).normal(size=N))
    page = page_of("reward_model", **{"data.share_prompts": "on"})
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    params, index_B = tiny_farm.random_params(scalar=True, seed=2), row_indices(0, B, N, SEED)
    split = Split(found, found, [])
    batches = []
    for how in ("auto", "off"):
        page.data.packing = how
        rows, held = shared_prompt_rows.scored_rows(split, 0, CONFIG, page, rated=False)
        rows, held = (x.with_columns({"margin": labelled_rows.spread(x, numbers_n)}) for x in (rows, held))
        batches.append(rows.make(index_B, slice(0, B)))
        batches.append(jax.tree.map(jnp.asarray, held.make(np.arange(held.count), slice(None))))
    loss_fn = reward_model.reward_model_loss_fn(CONFIG, centre_coef=0.1)
    assert len(batches[0]["tokens"]) < B and batches[0]["margin"].shape[1] > 1
    tiny_losses.assert_same(outcome(loss_fn, params, batches[0]), outcome(loss_fn, params, batches[2]))
    both = (
        jax.tree.map(value, jax.jit(loss_fn)(params, x), is_leaf=lambda x: hasattr(x, "weight"))
        for x in batches[1::2]
    )
    tiny_losses.assert_same(*both)


def test_ratings_are_packed_by_step():
    found, ratings_n = drawn().chosen, np.float32(np.random.default_rng(5).integers(0, 6, N))
    page, batches = page_of("reward_model"), []
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    for how in ("auto", "off"):
        page.data.packing = how
        rows, _ = shared_prompt_rows.scored_rows(Split(found, found, []), 0, CONFIG, page, rated=True)
        rows = rows.with_columns({"rating": labelled_rows.spread(rows, ratings_n)})
        batches.append(rows.make(row_indices(2, B, N, SEED), slice(0, B)))
    params = tiny_farm.random_params(scalar=True, seed=2)
    loss_fn = reward_model.rating_loss_fn(CONFIG, 5.0, ordinal=False)
    assert len(batches[0]["tokens"]) < B
    tiny_losses.assert_same(*(outcome(loss_fn, params, x) for x in batches))


def test_members_with_an_order_of_their_own_keep_rows_apart():
    page = page_of("reward_model", members=2, member_order=True, **{"data.share_prompts": "off"})
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    rows, _ = shared_prompt_rows.scored_rows(Split(drawn(), drawn(), []), 0, CONFIG, page, rated=False)
    assert rows.sizes is None
    page.member_order = False
    rows, _ = shared_prompt_rows.scored_rows(Split(drawn(), drawn(), []), 0, CONFIG, page, rated=False)
    assert rows.sizes is not None


def test_a_kernel_that_cannot_tell_documents_apart_keeps_pairs_in_rows_of_their_own(capsys, monkeypatch):
    monkeypatch.setattr(fused, "here", lambda: ("gpu", (9, 0)))
    model = dataclasses.replace(CONFIG, dtype="bfloat16")
    rows, *_ = rows_of(drawn(), page_of(), model=model)
    assert rows.sizes is None and "chosen_tokens" in rows.make(np.arange(2), slice(0, 2))
    assert "packing: off, it is not for the attention kernel" in capsys.readouterr().out


def test_what_a_reference_says_of_pairs_is_the_same_wherever_they_lie(farm, tmp_path):
    """Kept on disk for the same layout, or computed with every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_rows, "_WORTH", 1.0)
        curves = {}
        for name, changes in {
            "cached": {},
            "again": {},
            "step": {"reference": "step", "microbatches": 2},
        }.items():
            small = {
                "epochs": 0.3,
                "batch_size": 8,
                "log_every": 1,
                "reference_cache": str(tmp_path / "kept"),
            }
            dpo.run(tiny_farm.settings("dpo", farm, **small | changes), str(tmp_path / name))
            curves[name] = tiny_farm.rows(tmp_path / name)
            if name == "again":
                assert len(list((tmp_path / "kept").iterdir())) == 2
    assert curves["again"] == curves["cached"]
    assert curves["cached"][0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    # Before the first step both models are one, and which side is ahead is a matter of rounding.
    for name in ("step", "cached"):
        del curves[name][0]["rewards/accuracies"]
    for one, other in zip(curves["step"], curves["cached"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
