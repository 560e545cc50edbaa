"""Responses that share a prompt in a row give what they give in rows of their own: loss, gradient and whole runs."""

import dataclasses
import itertools

import jax
import numpy as np
import observed
import optax
import pytest
import tiny_farm
import tiny_losses
from jax import numpy as jnp
from ml_collections import ConfigDict
from same_runs import assert_same_curve
from wide import WIDE

from rlhf_jax.data import shared_prompts
from rlhf_jax.data.batches import Pairs, Sequences, alternating, flattened
from rlhf_jax.data.candidate_arrays import Candidates
from rlhf_jax.data.shared_prompts import pad_shared, shared_rows
from rlhf_jax.data.tokenization import SIDES
from rlhf_jax.errors import UserError
from rlhf_jax.methods import dpo, reward_model, rrhf
from rlhf_jax.models import decoder, lora
from rlhf_jax.models.attention import fused
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.rows import shared_prompt_rows
from rlhf_jax.training.run import encoded_rows
from rlhf_jax.training.run.encoded_rows import Split

V, N = 40, 12
_BASE = {"vocab_size": V, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ff": 32}
_CAPS = {"attention_softcap": 3.0, "logit_softcap": 4.0}
MODELS = {
    "rotary, grouped heads": ModelConfig(**_BASE),
    "some layers windowed": ModelConfig(**_BASE, window=5, local_layers=(True, False)),
    "windowed and capped": ModelConfig(**_BASE, window=4, local_layers=(True, True), **_CAPS),
    "learned positions": ModelConfig(**_BASE, positions="learned", max_positions=64, norm="layer"),
    "experts": ModelConfig(**_BASE, experts=3, experts_per_token=2),
}


def drawn_pairs(n=N, seed=0):
    """Pairs of which every third's prompts differ in the last token, and some in all."""
    rng = np.random.default_rng(seed)
    sides, lengths = ([], []), ([], [])
    for i in range(n):
        prompt = rng.integers(0, V, rng.integers(2, 14))
        for side in (0, 1):
            own = prompt.copy()
            own[{2: -1, 5: 0}.get(i % 6, len(own)) :] += side
            sides[side].append(np.concatenate([own % V, rng.integers(0, V, rng.integers(1, 12))]))
            lengths[side].append(len(own))
    return Pairs(*(sequences(rows, prompts) for rows, prompts in zip(sides, lengths, strict=True)))


def sequences(rows, prompt_lengths):
    return Sequences(*flattened([np.int32(row) for row in rows]), np.int32(prompt_lengths))


def drawn_candidates(n=N, seed=1):
    """Prompts with two to four scored responses, whose longest prompts were cut at their left."""
    rng = np.random.default_rng(seed)
    rows, lengths, places, scores = [], [], np.full((n, 4), -1), np.zeros((n, 4), np.float32)
    for i in range(n):
        prompt = rng.integers(0, V, rng.integers(2, 14))
        for k in range(rng.integers(2, 5)):
            own = prompt[1:] if i % 4 == 3 and k == 1 else prompt
            places[i, k], scores[i, k] = len(rows), rng.normal()
            rows.append(np.concatenate([own, rng.integers(0, V, rng.integers(1, 9))]))
            lengths.append(len(own))
    return Candidates(sequences(rows, lengths), places, scores)


def params_of(config, *, scalar=False):
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0), scalar=scalar))
    rng = np.random.default_rng(1)
    boxed = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
    return jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "names"))


def page(**data):
    fields = {"packing": "off", "max_length": 28, "share_prompts": "on"} | data
    return ConfigDict(fields)


def batches(make, model, **data):
    """(batch of plain rows, of shared ones, R of either), of all rows."""
    found = [make(model, page(share_prompts=share, **data)) for share in ("off", "on")]
    rows = [x[0].make(np.arange(x[0].count), slice(None)) for x in found]
    return *rows, *(x[2] if len(x) > 2 else 0 for x in found)


def pairs_made(model, data):
    found = drawn_pairs()
    return shared_prompt_rows.pair_rows(Split(found, found, []), data, 0, 0, model)


def candidates_made(model, data):
    found = drawn_candidates()
    return shared_prompt_rows.candidate_rows(Split(found, found, []), data, 0, model)


def groups_made(model, data):
    found = drawn_pairs()
    again = Pairs(found.rejected, found.chosen)  # each pair stands twice, so that prompts have several pairs
    both = Pairs(
        *(
            sequences(
                [*map(a.__getitem__, range(N)), *map(b.__getitem__, range(N))],
                [*a.prompt_lengths, *b.prompt_lengths],
            )
            for a, b in zip(found, again, strict=True)
        )
    )
    return shared_prompt_rows.grouped_rows(Split(both, both, []), data, 0, model)


def losses(job, config, R):
    if job == "rrhf":
        return rrhf.rrhf_loss_fn(config, R, 8)
    if job == "dpo":
        return dpo.dpo_loss_fn(config, R, 8, beta=0.3, label_smoothing=0.1)
    return reward_model.reward_model_loss_fn(config, centre_coef=0.1)


MAKERS = {"dpo": pairs_made, "reward_model": pairs_made, "grouped": groups_made, "rrhf": candidates_made}


def both_batches(job, config):
    plain, shared, *R = batches(MAKERS[job], config)
    assert "roots" in shared and "roots" not in plain
    if job == "dpo":
        reference = np.float32(np.random.default_rng(2).normal(-30, 3, (2, N)))
        columns = {f"ref_{side}": x for side, x in zip(SIDES, reference, strict=True)}
        return plain | columns, shared | columns, R
    return plain, shared, R


# Each method, and each kind of attention: one of them for most, since every pair takes two compilations.
TRIED = [
    *(("dpo", name) for name in ("rotary, grouped heads", "some layers windowed", "learned positions")),
    ("rrhf", "windowed and capped"),
    ("grouped", "some layers windowed"),
    ("reward_model", "experts"),
]


@pytest.mark.parametrize(("job", "name"), TRIED if not WIDE else itertools.product(MAKERS, MODELS))
def test_loss_and_gradient_are_those_of_rows_apart(job, name):
    config = MODELS[name]
    params = params_of(config, scalar=job in ("reward_model", "grouped"))
    plain, shared, R = both_batches(job, config)
    weight = {"weight": np.float32(np.arange(len(shared["documents"])) % 5 != 3)}

    def found(batch, R):
        loss_fn = losses(job, config, R)
        return jax.jit(lambda p, x: tiny_losses.loss_and_gradient(loss_fn, p, x))(params, batch | weight)

    tiny_losses.assert_same(found(shared, R[1]), found(plain, R[0]), atol=2e-7)


def test_an_adapter_and_microbatches_and_packing_change_nothing_either():
    """LoRA on a frozen model, a batch in two parts, and pairs of which several share a row."""
    base, settings = MODELS["rotary, grouped heads"], lora.Lora(2, 4.0, ("all",))
    config = dataclasses.replace(base, adapter_scale=settings.scale)
    frozen, mesh = params_of(base), make_mesh()
    with jax.set_mesh(mesh):
        fresh = lora.init_adapter(config, settings, mesh, 0)
    adapter = jax.tree.map(
        lambda x: np.float32(np.asarray(x) + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape)), fresh
    )
    plain, _, R, _ = batches(pairs_made, config)
    apart, shared, _, room = batches(pairs_made, config, packing="on")
    assert shared["documents"].max() > 2 and shared["tokens"].shape[1] < apart["tokens"].shape[1]
    wanted = updated(config, frozen, adapter, plain, R)
    tiny_losses.assert_same(updated(config, frozen, adapter, shared, room, parts=2), wanted, atol=2e-7)


def updated(config, frozen, adapter, batch, R, *, parts=1):
    """(loss, gradient norm, what is trained after a step)."""
    step = make_train_step(losses("dpo", config, R), optax.sgd(0.5), microbatches=parts)
    state = create(jax.tree.map(jnp.array, adapter), optax.sgd(0.5), seed=0)
    state, metrics = step(state, batch, frozen)
    return metrics["loss"], metrics["grad_norm"], state.params


def test_rows_hold_the_prompt_once_and_every_response_knows_what_stands_before_it():
    found = sequences([[5, 6, 30, 31], [5, 7, 40], [1, 2, 3, 11], [1, 2, 3, 20, 21]], [2, 2, 3, 3])
    rows = shared_rows(found, np.array([0, 2, 4]))
    assert rows.shared.tolist() == [1, 3] and rows.lengths.max() == rows.most_targets + 3 == 6
    made = {k: x.tolist() for k, x in pad_shared(rows, np.array([1, 0]), (7, 4, 3), 9).items()}
    assert made == {
        "tokens": [[1, 2, 3, 11, 20, 21, 9], [5, 6, 30, 31, 7, 40, 9]],
        "positions": [[0, 1, 2, 3, 3, 4, 0], [0, 1, 2, 3, 1, 2, 0]],
        "segments": [[4, 4, 4, 1, 2, 2, 0], [4, 1, 1, 1, 2, 2, 0]],
        "roots": [[4, 4, 4, 4, 4, 4, 0], [4, 4, 4, 4, 4, 4, 0]],
        "targets": [[3, 4, 5, 0], [2, 3, 5, 0]],
        "before": [[2, 2, 4, 0], [1, 2, 4, 0]],
        "owners": [[1, 2, 2, 0], [1, 1, 2, 0]],
        "lasts": [[3, 5, 0], [3, 5, 0]],
        "documents": [2, 2],
    }


@pytest.mark.parametrize("at_once", [1, 3])
def test_prompts_are_compared_in_parts_of_any_size(at_once, monkeypatch):
    found = alternating(drawn_pairs())
    first = np.arange(0, len(found) + 1, 2)
    wanted = [common(found, i) for i in range(0, len(found), 2)]
    monkeypatch.setattr(shared_prompts, "_AT_ONCE", at_once)
    assert shared_prompts.shared_lengths(found, first).tolist() == wanted
    assert 0 in wanted and any(x < found.prompt_lengths[2 * i] for i, x in enumerate(wanted))


def common(found, i):
    n = min(found.prompt_lengths[i : i + 2])
    equal = found[i][:n] == found[i + 1][:n]
    return int(n if equal.all() else equal.argmin())


def said(capsys, model, found, **data):
    made = shared_prompt_rows.pair_rows(Split(found, found, []), page(**data), 0, 0, model)
    return "roots" in made[0].make(np.array([0]), slice(None)), capsys.readouterr().out


def test_auto_shares_where_that_saves_work_and_says_so(capsys, monkeypatch):
    config, rng = MODELS["rotary, grouped heads"], np.random.default_rng(0)
    long, short = (
        Pairs(*(sequences([[*range(P), *rng.integers(0, V, 24 - P)]] * 3, [P] * 3) for _ in range(2)))
        for P in (16, 1)
    )
    shared, out = said(capsys, config, long, share_prompts="auto")
    assert shared and "rows of 32 tokens instead of 2 of 24" in out and "prompts of 16.0 tokens" in out
    shared, out = said(capsys, config, short, share_prompts="auto")
    assert not shared and "which does not pay" in out
    assert said(capsys, config, short, share_prompts="on")[0]
    shared, out = said(capsys, config, drawn_pairs(), share_prompts="on")
    assert "in 4 of 12 rows only the first part of the prompts is the same" in out
    # Where a kernel of the accelerator would be given up, auto keeps it; on says what takes its place.
    monkeypatch.setattr(fused, "here", lambda: ("gpu", (9, 0)))
    for share, wanted in (
        ("auto", "cudnn's attention knows no shared"),
        ("on", "falls back from cudnn to xla"),
    ):
        config16 = dataclasses.replace(config, dtype="bfloat16")
        shared, out = said(capsys, config16, long, share_prompts=share)
        assert shared == (share == "on") and wanted in out
    assert said(capsys, dataclasses.replace(config, attention_softcap=2.0), long, share_prompts="auto")[0]


def test_rows_longer_than_the_learned_positions_stay_apart_or_are_refused(capsys):
    config = dataclasses.replace(MODELS["learned positions"], max_positions=24)
    found = Pairs(*(sequences([[*range(16), 1, 2, 3, 4, 5, 6, 7]], [16]) for _ in range(2)))
    shared, out = said(capsys, config, found, share_prompts="auto")
    assert not shared and "has 24 learned positions" in out
    with pytest.raises(UserError, match="share_prompts: on; they take 32 tokens"):
        said(capsys, config, found, share_prompts="on")


def test_no_kernel_of_an_accelerator_is_used_for_shared_prompts():
    about = {"T": 2048, "K": 128, "dtype": "bfloat16", "packed": True, "shared": True}
    for platform, name in (("tpu", "splash"), ("gpu", "cudnn")):
        assert fused.choose_kernel("auto", **about, platform=platform, capability=(9, 0)) == "xla"
        with pytest.raises(UserError, match=f"model.attention: {name} knows no prompt that responses share"):
            fused.choose_kernel(name, **about, platform=platform, capability=(9, 0))


# Of the others the rows are compared above, and their suites run them as the pages are.
@pytest.mark.parametrize("job", ["dpo", *(["reward_model", "rrhf"] if WIDE else [])])
def test_a_run_does_not_depend_on_it(job, farm, tmp_path, monkeypatch):
    """Nor on packing: every row of metrics, of training and of evaluation, is the same but for rounding."""
    monkeypatch.setattr(encoded_rows, "_WORTH", 1.0)
    few = {"epochs": 0.05, "batch_size": 4, "log_every": 1, "data.eval_rows": 6}
    few |= {"group_by_prompt": True, "center_on": ""} if job == "reward_model" else {}
    for share, packing in (("on", "auto"), ("off", "off")):
        data = {"data.share_prompts": share} | ({} if job == "rrhf" else {"data.packing": packing})
        config = tiny_farm.settings(job, farm, **few, **data)
        observed.run(job, config, tmp_path / share)
    assert_same_curve(*(tiny_farm.rows(tmp_path / share) for share in ("on", "off")))
