"""Reward models of ratings, of prompts with all their pairs, and ensembles, on the world of sixteen words.

Each run is compared with its loss written out anew, row by row, and with plain gradient descent.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_words
from tiny_words import EOS, PAD, VOCABULARY

from rlhf_jax.data.batches import row_indices
from rlhf_jax.data.records.records import read_table
from rlhf_jax.data.tokens.scored_text import Closing
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import score
from rlhf_jax.methods import reward_model
from rlhf_jax.models.model import Model, Reading, RewardModel, first_member, model_scores
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.rollout.rewards import TokenRewards
from rlhf_jax.sampling.decode import Generation
from rlhf_jax.training.run import reward_models

RATE, STEPS, BATCH = 0.3, 3, 4
DESCENT = {"optimizer.name": "sgd", "optimizer.b1": 0.0, "optimizer.schedule": "constant"}
DESCENT |= {"optimizer.learning_rate": RATE, "optimizer.warmup_steps": 0, "optimizer.max_grad_norm": 0.0}
DESCENT |= {"optimizer.weight_decay": 0.0, "seed": 3, "batch_size": BATCH, "eval_every": 0, "save_every": 0}
RATINGS = (1, 7, 4, 2, 6, 3, 5, 7, 1, 4)


def rated(seed):
    rows = tiny_words.demonstrations(10, seed)
    return [row | {"rating": float(x), "annotator": "a"} for row, x in zip(rows, RATINGS, strict=True)]


def train(folder, words, train, held, start="language", **changes):
    page = tiny_words.settings(
        "reward_model",
        folder,
        {"data.train": train, "data.eval": held},
        **{"model.init": str(words / start), "center_on": "", "epochs": STEPS * BATCH / 10}
        | DESCENT
        | changes,
    )
    reward_model.run(page, str(folder / "run"))
    lines = [json.loads(x) for x in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if "loss" in x], tiny_words.load(folder / "run/export")


def scores(params, rows):
    """What the head says at the last token of each row; attention is causal, so what stands behind it says nothing."""
    texts = [[*x.prompt, *x.response] for x in rows]
    tokens = np.zeros((len(rows), 12), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    lasts = np.array([len(text) - 1 for text in texts])
    return tiny_words._hidden(params, jnp.asarray(tokens))[np.arange(len(rows)), lasts] @ params["score"]


def descend(params, losses):
    """Plain gradient descent on these losses in turn: (their values, the parameters)."""
    values = []
    for loss in losses:
        value, grads = jax.value_and_grad(loss)(params)
        values.append(float(value))
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    return values, params


def start_of(words, name="reward"):
    return jax.tree.map(jnp.asarray, tiny_words.load(words / name))


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["regression", "ordinal"])
def test_ratings(words, tmp_path, kind, capsys):
    rows = rated(30)
    off = rows[0] | {"rating": 8.0}
    changes = {"loss": kind, "score_as": "sigmoid", "microbatches": 2, "data.packing": "off"}
    losses, found = train(tmp_path, words, [*rows, off], rated(40), "reward", **changes)
    assert "rating out of [1, 7] 1" in capsys.readouterr().out
    encoded = [tiny_words.encoded(x["prompt"], x["output"]) for x in rows]
    place = np.array(RATINGS) - 1

    def loss(step, params):
        index = row_indices(step, BATCH, 10, 3)
        score_B = scores(params, [encoded[i] for i in index])
        if kind == "regression":
            return jnp.mean((place[index] / 6 - 1 / (1 + jnp.exp(-score_B))) ** 2)
        raw = params["thresholds"]
        cuts = [raw[0]]
        for x in raw[1:]:
            cuts.append(cuts[-1] + jnp.log1p(jnp.exp(x)))
        above = jax.nn.sigmoid(score_B[:, None] - jnp.stack(cuts))
        padded = jnp.concatenate([jnp.ones((BATCH, 1)), above, jnp.zeros((BATCH, 1))], axis=1)
        return -jnp.mean(jnp.log((padded[:, :-1] - padded[:, 1:])[np.arange(BATCH), place[index]]))

    params = start_of(words)
    if kind == "ordinal":
        share = np.arange(1, 7) / 7
        even = np.log(share / (1 - share))
        params["thresholds"] = jnp.asarray([even[0], *np.log(np.expm1(np.diff(even)))], jnp.float32)
    wanted, after = descend(params, [lambda p, s=s: loss(s, p) for s in range(STEPS)])
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    raw = json.loads((tmp_path / "run/export/config.json").read_text())
    assert raw["score_as"] == "sigmoid"
    if kind == "ordinal":
        cuts = np.cumsum([after["thresholds"][0], *np.logaddexp(0, after["thresholds"][1:])])
        np.testing.assert_allclose(raw["thresholds"], cuts, rtol=1e-4)
        after.pop("thresholds")
    close(found, after)
    # What a reader of the folder gets is the place on the scale.
    page = tiny_words.settings("score", tmp_path, {}, **{"model.path": str(tmp_path / "run/export")})
    mesh = make_mesh(1, 1, 1)
    read = reward_models.described(page.model.path, page.model, field="model.path", template="brief")
    read = reward_models.loaded(read, page.model, mesh)
    row = np.array([*encoded[1].prompt, *encoded[1].response])
    got = float(model_scores(read.model, jnp.asarray(row[None]), jnp.array([len(row)]), read.mean)[0])
    cuts = np.array(raw.get("thresholds", [0.0]))
    assert got == pytest.approx(np.mean(1 / (1 + np.exp(cuts - scores(after, [encoded[1]])[0]))), abs=1e-5)


def test_prompts_with_all_their_pairs_margins_and_centring(words, tmp_path):
    said = tiny_words.sentences(12, 4, 50)
    rows = [
        {
            "prompt": f"w{p} w1",
            "output_1": said[3 * p + a],
            "output_2": said[3 * p + b],
            "preference": 1.0 + share,
        }
        for p in range(4)
        for a, b, share in ((0, 1, 0.1), (1, 2, 0.3), (0, 2, 0.0))[: 1 + p]
    ]
    changes = {"group_by_prompt": True, "margin": "preference", "margin_scale": 0.5, "centre_coef": 0.02}
    changes |= {"batch_size": 2, "epochs": 1.5, "microbatches": 2}
    losses, found = train(tmp_path, words, rows, tiny_words.pairs(6, 60), "reward", **changes)
    prompts = [[x for x in rows if x["prompt"] == f"w{p} w1"] for p in range(4)]

    def loss(step, params):
        several = [x for i in row_indices(step, 2, 4, 3) for x in prompts[i]]
        one, two = (
            scores(params, [tiny_words.encoded(x["prompt"], x[side]) for x in several])
            for side in ("output_1", "output_2")
        )
        margin = np.array([1 - 2 * (x["preference"] - 1) for x in several]) * 0.5
        return jnp.mean(jnp.log1p(jnp.exp(margin - one + two)) + 0.02 * (one + two) ** 2)

    wanted, after = descend(start_of(words), [lambda p, s=s: loss(s, p) for s in range(STEPS)])
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    close(found, after)
    # One annotator said nothing, and a preference of 1.1 is a confidence of 0.9.
    told = json.loads((tmp_path / "run/accuracy.json").read_text())
    assert told["overall"]["n"] == 6 and not told["annotators"]


@pytest.mark.parametrize("lora", [0, 2])
def test_a_member_is_the_model_of_its_seed_alone(words, tmp_path, lora, capsys):
    train_rows, held = tiny_words.pairs(10, 4), tiny_words.pairs(6, 7)
    changes = {"optimizer.name": "adamw", "optimizer.max_grad_norm": 0.5, "optimizer.weight_decay": 0.1}
    changes |= {
        "optimizer.ema": 0.3,
        "lora.rank": lora,
        "optimizer.learning_rate": 0.05,
        "optimizer.eps": 1e-2,
    }
    together = {"members": 2, "member_order": True, "combine": "mean_minus_variance", "combine_coef": 0.5}
    center = {"center_on": tiny_words.demonstrations(5, 10)}
    folders = []
    for name, more in (("both", together), ("3", {}), ("4", {"seed": 4})):
        (tmp_path / name).mkdir()
        page = tiny_words.settings(
            "reward_model",
            tmp_path / name,
            {"data.train": train_rows, "data.eval": held} | center,
            **{"model.init": str(words / "language"), "epochs": 1.2},
            **DESCENT | changes | more,
        )
        reward_model.run(page, str(tmp_path / name / "run"))
        folders.append(tmp_path / name / "run")
    both, *alone = folders
    for m, folder in enumerate(alone):
        close(tiny_words.load(both / f"export/member_{m}"), tiny_words.load(folder / "export"))
        mean = tiny_words.reward_mean(both / f"export/member_{m}")
        assert mean == pytest.approx(tiny_words.reward_mean(folder / "export"), abs=1e-5)
        assert (both / f"adapter/member_{m}").is_dir() == bool(lora)
    if lora:
        return
    # The score job reads the folder as one model, and a page may combine otherwise than its makers did.
    data = {"data.responses": tiny_words.demonstrations(7, 20)}
    got = {}
    for name, path, combine in (
        ("own", both / "export", ""),
        ("min", both / "export", "min"),
        ("one", alone[0] / "export", ""),
        ("two", alone[1] / "export", ""),
    ):
        page = tiny_words.settings(
            "score", tmp_path, data, **{"model.path": str(path), "model.combine": combine, "batch_size": 4}
        )
        score.run(page, str(tmp_path / f"scores_{name}"))
        rows = read_table(tmp_path / f"scores_{name}/scores.parquet")
        got[name] = np.array([row["scores"][0] for row in rows])
    each = np.stack([got["one"], got["two"]])
    np.testing.assert_allclose(got["own"], each.mean(0) - 0.5 * each.var(0), atol=1e-5)
    np.testing.assert_allclose(got["min"], each.min(0), atol=1e-5)
    assert (
        "an ensemble of 2; a score is the mean of theirs less 0.5 times their variance"
        in capsys.readouterr().out
    )
    page = tiny_words.settings("score", tmp_path, data, **{"model.path": str(both)})
    with pytest.raises(UserError, match=r"checkpoint of an ensemble, .* give .*export"):
        score.run(page, str(tmp_path / "no"))


def test_equal_members_are_refused(words, tmp_path):
    rows = tiny_words.pairs(10, 4)
    with pytest.raises(UserError, match="members: 2 would all be the same"):
        train(tmp_path, words, rows, rows, "reward", members=2)


def test_ways_to_combine():
    scores_MB = np.array([[1.0, -2.0], [3.0, 0.0]])
    combine = reward_models.combined
    assert combine(jnp.asarray(scores_MB), Reading(combine="mean")).tolist() == [2.0, -1.0]
    assert combine(jnp.asarray(scores_MB), Reading(combine="min")).tolist() == [1.0, -2.0]
    found = combine(jnp.asarray(scores_MB), Reading(combine="mean_minus_variance", combine_coef=0.5))
    assert found.tolist() == [1.5, -1.5]
    assert Model(tiny_words.CONFIG, {}) == Model(tiny_words.CONFIG, {}, Reading())


def test_an_ensemble_scores_what_a_policy_samples():
    """Through the sources of both kinds that online methods have, as the plan of the memory lowers them, too."""
    several = [tiny_words.draw_params(scalar=True, seed=seed) for seed in (1, 2)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *several)
    reading, means = Reading(members=2, combine="min"), np.array([0.5, -0.5], np.float32)
    reward = RewardModel(
        Model(tiny_words.CONFIG, params, reading), None, "", "", "eos", Closing(VOCABULARY[EOS]), mean=means
    )
    rows = [tiny_words.encoded("w1 w2", x) for x in ("w3 w4", "w5 w6")]
    tokens_BR = jnp.asarray([x.response for x in rows], jnp.int32)
    sampled = Generation(
        tokens_BR,
        jnp.zeros((2, 3)),
        jnp.ones((2, 3), bool),
        jnp.full(2, 3, jnp.int32),
        jnp.ones(2, bool),
        jnp.int32(3),
    )
    prompts_BP = jnp.asarray([x.prompt for x in rows], jnp.int32)
    got = TokenRewards(reward, VOCABULARY[PAD])([], prompts_BP, jnp.full(2, 3, jnp.int32), sampled)()
    each = np.stack([np.asarray(scores(x, rows)) for x in several]) - means[:, None]
    np.testing.assert_allclose(got.scores_B, each.min(0), atol=1e-5)
    plan = reward_models.planned(reward.model, make_mesh(1, 1, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (plan.params, params))
    assert shapes[0] == shapes[1] and plan.reading == reading
    assert first_member(params)["score"].tolist() == several[0]["score"].tolist()
