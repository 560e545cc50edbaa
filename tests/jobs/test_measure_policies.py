"""Policies side by side: every number again in NumPy from what was sampled, and policies of which it is known."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import observed
import pytest
import tiny_farm
from test_config_pages import assert_all_read

from rlhf_jax.data.records.records import read_pairs, read_table
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import encode_prompt_texts, encode_responses
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs.measure_policies import policies_job, policy_answers
from rlhf_jax.models import decoder
from rlhf_jax.models.huggingface import export_folder


def save(farm, folder, params):
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    export_folder.save_folder(
        folder, tiny_farm.model_config(), params, token_ids=ids, tokenizer_from=farm / "data/tokenizer"
    )
    return folder


def eos_of(farm):
    return load_tokenizer(farm / "data/tokenizer").eos_token_id


def on_device(params):
    return jax.tree.map(jnp.asarray, params)


def always(token):
    """Parameters of a policy that says one token, whatever stands before it: all tokens look alike to it."""
    params = tiny_farm.random_params(scalar=False, seed=3)
    params["embed"][:] = params["embed"][0]
    hidden_D = np.asarray(
        decoder.hidden_states(tiny_farm.model_config(), on_device(params), jnp.zeros((1, 4), int))
    )[0, 3]
    params["head"][:] = 0
    params["head"][:, token] = 100 * hidden_D / np.sum(hidden_D**2)
    return params


@jax.jit
def all_logits(params, ids_T):
    config = tiny_farm.model_config()
    hidden_TD = decoder.hidden_states(config, params, ids_T[None])[0]
    return decoder.logits(config, decoder.head(config, params), hidden_TD)


def logprobs(params, prompt, response):
    """The log-probs of a response's tokens, from all logits of one row alone, in float64."""
    ids, n = np.concatenate([prompt, response]), len(prompt)
    # One length for all, for one program: attention is causal, so what stands behind changes nothing.
    padded_T = np.zeros(128, np.int32)
    padded_T[: len(ids)] = ids
    logits_TV = np.float64(all_logits(params, padded_T))[: len(ids)]
    logits_TV -= logits_TV.max(axis=-1, keepdims=True)
    logps_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
    return logps_TV[np.arange(n - 1, len(ids) - 1), response]


@pytest.fixture(scope="module")
def ran(farm, tmp_path_factory):
    """A run of three policies: its page, its folder, what each sampled, and the fields it read."""
    folder, drawn, read = tmp_path_factory.mktemp("measured"), [], set()
    other = save(farm, folder / "other", tiny_farm.random_params(scalar=False, eos_id=eos_of(farm), seed=5))
    same = save(farm, folder / "same", always(token=70))
    page = tiny_farm.settings(
        "measure_policies",
        farm,
        policies=f"sft={farm}/sft/export,other={other},same={same}",
        perplexity_model=str(other),
    )
    whole = policy_answers.drawn_tokens

    def seen(*args, **more):
        drawn.append(list(whole(*args, **more)))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_answers, "drawn_tokens", seen)
        policies_job.run(observed.Settings(page, read), str(folder / "run"))
    return page, folder / "run", dict(zip(("sft", "other", "same"), drawn, strict=True)), read


@pytest.fixture(scope="module")
def params(farm):
    found = {
        "sft": tiny_farm.random_params(scalar=False, eos_id=eos_of(farm)),
        "other": tiny_farm.random_params(scalar=False, eos_id=eos_of(farm), seed=5),
        "same": always(token=70),
    }
    return {name: on_device(one) for name, one in found.items()}


@pytest.fixture(scope="module")
def measured(ran):
    return {row["name"]: row for row in json.loads((ran[1] / "measures.json").read_text())}


def test_every_field_is_read(ran):
    assert_all_read("measure_policies", ran[3])


def test_lengths_ends_rewards_and_kl_are_those_of_the_responses(ran, measured):
    rows = read_table(ran[1] / "responses.parquet")
    assert len(rows) == 36
    for name, found in measured.items():
        mine = [row for row in rows if row["generator"] == name]
        tokens, texts = [row["tokens"] for row in mine], [len(row["output"]) for row in mine]
        assert found["responses"] == len(mine) == 12
        assert tokens == [len(x) for x, _ in ran[2][name]]
        for unit, values in (("tokens", tokens), ("characters", texts)):
            wanted = np.mean(values), np.median(values), np.max(values)
            np.testing.assert_allclose([found[f"{unit}_{x}"] for x in ("mean", "median", "max")], wanted)
        assert found["ended"] == pytest.approx(np.mean([row["ended"] for row in mine]))
        kl = np.array([row["logprob"] - row["reference_logprob"] for row in mine])
        rewards = np.array([row["reward"] for row in mine])
        assert not np.isnan(rewards).any()
        for what, values in (("kl", kl), ("reward", rewards)):
            assert found[what] == pytest.approx(values.mean(), abs=1e-5)
            assert found[f"{what}_se"] == pytest.approx(values.std(ddof=1) / np.sqrt(12), abs=1e-5)
    assert 0 < measured["sft"]["ended"] < 1


def test_log_probs_and_perplexity_in_numpy(ran, measured, farm, params):
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    rows = read_table(ran[1] / "responses.parquet")
    for name, drawn in ran[2].items():
        mine = [row for row in rows if row["generator"] == name]
        prompts = encode_prompt_texts([render(row, "brief") for row in mine], tokenizer)
        # Another model reads text; what was sampled is what policy and reference read.
        texts = encode_responses([r["output"] for r in mine], [r["ended"] for r in mine], tokenizer)
        total = count = 0
        for row, prompt, (tokens, _), text in zip(mine, prompts, drawn, texts, strict=True):
            for column, model in (("logprob", name), ("reference_logprob", "sft")):
                assert row[column] == pytest.approx(logprobs(params[model], prompt, tokens).sum(), abs=2e-3)
            total, count = total + logprobs(params["other"], prompt, text).sum(), count + len(text)
        assert measured[name]["perplexity_tokens"] == count
        assert measured[name]["perplexity"] == pytest.approx(np.exp(-total / count), rel=1e-4)


def test_accuracy_on_pairs_in_numpy(ran, measured, farm, params):
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    pairs = read_pairs(farm / "labels/labels.parquet")[0][:20]
    prompts = encode_prompt_texts([render(row, "brief") for row in pairs], tokenizer)
    sides = [
        encode_responses([r[side] for r in pairs], [True] * 20, tokenizer) for side in ("chosen", "rejected")
    ]
    for name in ("sft", "other"):
        scores = {"mean_logprob": [], "implicit_reward": []}
        for prompt, *pair in zip(prompts, *sides, strict=True):
            # Of a pair that is too long neither side is compared.
            if len(prompt) + max(map(len, pair)) > ran[0].data.max_length:
                continue
            own, ref = ([logprobs(params[m], prompt, x) for x in pair] for m in (name, "sft"))
            scores["mean_logprob"].append([x.mean() for x in own])
            scores["implicit_reward"].append([x.sum() - y.sum() for x, y in zip(own, ref, strict=True)])
        for what, found in scores.items():
            chosen, rejected = np.transpose(found)
            right = 100 * np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
            assert measured[name][f"{what}_accuracy"] == pytest.approx(right), (name, what)
            assert measured[name][f"{what}_low"] < right < measured[name][f"{what}_high"]
            assert measured[name][f"{what}_pairs"] == len(found) > 10


def test_a_policy_is_at_no_distance_from_itself(measured):
    found = measured["sft"]
    assert (found["kl"], found["kl_se"]) == (0, 0)
    # All implicit rewards are 0, and equal scores count half.
    assert found["implicit_reward_accuracy"] == 50


def test_a_policy_that_always_says_the_same(ran, measured):
    found = measured["same"]
    assert found["ended"] == 0 and found["tokens_mean"] == found["tokens_median"] == found["tokens_max"] == 8
    assert {tuple(tokens) for tokens, _ in ran[2]["same"]} == {(70,) * 8}
    # It is certain of all it says, so that its KL is the NLL of the reference, far above that of the others.
    rows = [r for r in read_table(ran[1] / "responses.parquet") if r["generator"] == "same"]
    assert max(abs(row["logprob"]) for row in rows) < 1e-3
    assert found["kl"] == pytest.approx(-np.mean([row["reference_logprob"] for row in rows]), abs=1e-3)
    assert found["kl"] > measured["other"]["kl"]


def test_the_files_agree(ran, measured):
    with (ran[1] / "measures.csv").open() as file:
        for row in csv.DictReader(file):
            wanted = {k: "" if v is None else str(v) for k, v in measured[row["name"]].items()}
            assert row == wanted
    assert (ran[1] / "measures.txt").read_text().splitlines()[1].startswith("sft")
    assert (ran[1] / "plots/reward_against_kl.png").stat().st_size > 1000


def test_without_the_rest_and_at_another_temperature(farm, tmp_path):
    """No KL of responses that the policy itself would not have said like that; the rest is measured."""
    bare = {"reward_model": "", "perplexity_model": "", "data.pairs": "", "temperature": 0.5, "data.rows": 4}
    page = tiny_farm.settings("measure_policies", farm, policies=f"sft={farm}/sft/export", **bare)
    policies_job.run(page, str(tmp_path))
    (row,) = json.loads((tmp_path / "measures.json").read_text())
    assert row["responses"] == 4 and row["tokens_max"] <= 8
    for name in ("kl", "reward", "perplexity", "mean_logprob_accuracy", "implicit_reward_accuracy"):
        assert row[name] is None, name
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policies": ""}, "^policies: names none"),
        ({"policies": "sft"}, "^policies: 'sft' is not NAME=PATH"),
        ({"policies": "sft=nowhere"}, "^policies: nowhere: no such folder"),
        ({"policies": "r={farm}/reward_model/export"}, "^policies: .* is a reward model"),
        ({"reference": "{farm}/reward_model/export"}, "^reference: .* is a reward model"),
        ({"perplexity_model": "{farm}/reward_model/export"}, "^perplexity_model: .* is a reward model"),
        ({"reward_model": "{farm}/sft/export"}, "^reward_model: .* is a language model"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(farm, tmp_path, changes, why):
    given = {"policies": f"sft={farm}/sft/export"} | {k: v.format(farm=farm) for k, v in changes.items()}
    with pytest.raises(UserError, match=why):
        policies_job.run(tiny_farm.settings("measure_policies", farm, **given), str(tmp_path))
