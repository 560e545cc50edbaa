"""Reward models as people have them: what is known of each before it runs, or the line that refuses it.

Nothing is compiled here: `test_reward_models` holds the numbers.
"""

import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import torch
from chat_tokenizers import CHATML, build
from safetensors.torch import load_file, save_file
from test_reward_models import write

from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.methods import ppo
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.run import actor_networks, load_models, reward_models
from rlhf_jax.training.run.load_models import lora_settings
from rlhf_jax.training.run.session import Session

ROWS = [{"instruction": "name a colour", "input": ""}]


@pytest.fixture
def tokenizer(farm):
    return load_tokenizer(farm / "data/tokenizer")


def without(tokenizer, **changes):
    """The same tokenizer with other special tokens."""
    for name, token in changes.items():
        setattr(tokenizer, name, token)
    return tokenizer


def described(farm, reward, **changes):
    """What PPO knows of its models."""
    page = tiny_farm.settings("ppo", farm, **{"model.reward": str(reward)}, **changes)
    folder = page.model.policy
    session = Session(page, "", None, folder, load_tokenizer(folder), folder, lora_settings(page.lora))
    _, sources, models = ppo.models_of(session, ROWS, [])
    return SimpleNamespace(
        policy=models.policy,
        value=models.scalar["value"],
        value_from="reward" if models.of_reward else "policy",
        scorer=models.scorers[0].model.config,
        text_length=models.scorers[0].text_length,
        reward=sources.first_model.reward,
    )


def config_of(folder, **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def language(folder, count):
    """Makes a language model of a reward model, with so many embeddings."""

    def change(tensors):
        table = tensors["model.embed_tokens.weight"]
        more = torch.zeros(count, table.shape[1])
        more[: len(table)] = table
        kept = {name: x for name, x in tensors.items() if name != "score.weight"}
        return kept | {"model.embed_tokens.weight": more, "lm_head.weight": more.clone()}

    return config_of(weights(folder, change), vocab_size=count, architectures=["LlamaForCausalLM"])


@pytest.mark.parametrize("pad", [None, "<eos>", "<other>"])
def test_another_pad_token_is_no_other_tokenizer(farm, tokenizer, tmp_path, pad):
    found = described(farm, write(tmp_path / "rm", without(tokenizer, pad_token=pad), vocab_size=321))
    assert found.text_length == 0 and found.value_from == "reward"


def test_another_bos_or_eos_reads_text(farm, tokenizer, tmp_path):
    """A model trained without a BOS scores other numbers with one, so its own tokenizer decides."""
    found = described(farm, write(tmp_path / "rm", without(tokenizer, bos_token=None)))
    assert found.text_length > 0 and found.value_from == "policy"


def test_a_value_model_may_have_another_size_than_the_policy(farm, tokenizer, tmp_path):
    big = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3}
    found = described(farm, write(tmp_path / "rm", tokenizer, **big))
    assert (found.policy.width, found.value.width, found.value_from) == (tiny_farm.WIDTH, 24, "reward")
    found = described(farm, tmp_path / "rm", **{"model.value_from": "policy"})
    assert (found.value.width, found.scorer.width, found.value_from) == (tiny_farm.WIDTH, 24, "policy")


def test_a_policy_with_more_embeddings_has_its_own_value_model(farm, tokenizer, tmp_path):
    """It may sample an id that the reward model has no embedding of: such a response has no score."""
    grown = language(write(tmp_path / "policy", tokenizer), 384)
    reward, given = write(tmp_path / "rm", tokenizer), {"model.policy": str(grown)}
    found = described(farm, reward, **given)
    assert (found.text_length, found.value_from, found.policy.vocab_size) == (0, "policy", 384)
    with pytest.raises(
        UserError, match=r"^model.value_from: reward, but .* has embeddings of 320 tokens, and"
    ):
        described(farm, reward, **given, **{"model.value_from": "reward"})


def test_weights_in_bfloat16_and_a_tied_trunk_are_read(farm, tokenizer, tmp_path):
    folder = weights(
        write(tmp_path / "rm", tokenizer, tie_word_embeddings=True),
        lambda x: {name: t.to(torch.bfloat16) for name, t in x.items()},
    )
    page = tiny_farm.settings("score", farm).model
    found = reward_models.described(str(folder), page, field="model.path", template="brief")
    found = reward_models.loaded(found, page, make_mesh(1, 1, 1))
    wanted = load_file(folder / "model.safetensors")["score.weight"][0].float().numpy()
    np.testing.assert_array_equal(np.asarray(found.model.params["score"]), wanted)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("labels", r"score.weight has 2 rows, so this is a classifier of 2 labels"),
        ("bias", r"score\.bias"),
        ("place", r"config.json: score_at is 'first'; use one of eos, last, template, or take it out"),
        ("mean", r"config.json: reward_mean is 'nan'; a number is needed"),
        ("language", r"^model.reward: .* is a language model; give what reward_model exported"),
        (
            "adapter",
            r"this is an adapter: name it as model.reward_adapter, and its base as the model \(org/rm\)",
        ),
        ("tokenizer", r"^tokenizer: .* holds no tokenizer"),
        ("chat", r"has none; use a chat model's tokenizer"),
    ],
)
def test_what_cannot_be_a_reward_model_is_one_line(farm, tokenizer, tmp_path, kind, line):
    folder, changes = tmp_path / "rm", {}
    if kind == "labels":
        write(folder, tokenizer, num_labels=2)
    elif kind == "language":
        folder = farm / "sft/export"
    elif kind == "adapter":
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/rm"}')
    else:
        write(folder, tokenizer)
    if kind == "bias":
        weights(folder, lambda x: x | {"score.bias": torch.ones(1)})
    elif kind == "place":
        config_of(folder, score_at="first")
    elif kind == "mean":
        config_of(folder, reward_mean="nan")
    elif kind == "tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    elif kind == "chat":
        changes = {"model.reward_template": "chat"}
    with pytest.raises(UserError, match=line) as refused:
        described(farm, folder, **changes)
    assert "\n" not in str(refused.value)


def test_what_config_json_does_not_say(farm, tokenizer, tmp_path, capsys):
    """A null is nothing said. Scores of which nothing is subtracted are told of."""
    folder = config_of(write(tmp_path / "rm", tokenizer), score_at=None, reward_mean=None)
    assert described(farm, folder).reward.score_at == "eos"
    assert f"{folder}/config.json: no reward_mean, so scores are taken as they are" in capsys.readouterr().out
    config_of(folder, score_at="last", reward_mean=0.5)
    assert described(farm, folder).reward.score_at == "last"
    assert "no reward_mean" not in capsys.readouterr().out
    # The page's word counts before the file's.
    assert described(farm, folder, **{"model.score_at": "eos"}).reward.score_at == "eos"


@pytest.mark.parametrize("thinks", [False, True])
def test_a_template_that_begins_answers_otherwise_in_training_reads_text(farm, tmp_path, thinks):
    """What prompt and response make together is not what the reward model was trained on."""
    tokenizer = build(
        CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif") if thinks else CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    policy = language(write(tmp_path / "policy", tokenizer), len(tokenizer))
    given = {"data.template": "chat", "model.policy": str(policy)}
    found = described(farm, write(tmp_path / "rm", tokenizer), **given)
    assert (found.text_length > 0, found.value_from) == (thinks, "reward")
    met = {"data.generation_prompt": "training"}
    assert described(farm, tmp_path / "rm", **given | met).text_length == 0
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>the ")
    assert described(farm, write(tmp_path / "other", tokenizer), **given | met).text_length > 0


def test_a_reward_model_of_another_template_reads_text(farm, tokenizer, tmp_path):
    found = described(farm, write(tmp_path / "rm", tokenizer), **{"model.reward_template": "alpaca"})
    assert found.text_length > 0 and found.value_from == "reward"


def test_a_value_model_has_an_adapter_of_the_runs_scale(farm, tokenizer, tmp_path):
    reward = write(tmp_path / "rm", tokenizer)
    found = described(farm, reward, **{"lora.rank": 2, "lora.alpha": 6.0})
    assert (found.policy.adapter_scale, found.value.adapter_scale, found.value_from) == (3.0, 3.0, "reward")
    assert found.scorer.adapter_scale == 0.0


def test_a_value_model_of_the_policys_trunk_says_zero_at_first(farm):
    policy = jax.tree.map(jnp.asarray, tiny_farm.random_params(scalar=False))
    lora = lora_settings(tiny_farm.settings("ppo", farm).lora)
    found = actor_networks.value_params("policy", tiny_farm.model_config(), {}, policy, lora)
    assert found["score"].tolist() == [0.0] * tiny_farm.WIDTH and "head" not in found
    assert found["embed"] is policy["embed"] and found["layers"] is policy["layers"]


def test_a_run_goes_on_only_with_its_reward_model(farm, tokenizer, tmp_path, monkeypatch):
    """Its folder is among what is hashed and compared."""
    reads = []

    def stop(session, prompts, held, method):
        reads.extend(method.reads)
        raise UserError("enough")

    monkeypatch.setattr(ppo.online, "train_online", stop)
    reward = write(tmp_path / "rm", tokenizer)
    page = tiny_farm.settings("ppo", farm, **{"model.reward": str(reward)})
    with pytest.raises(UserError, match=r"^enough$"):
        ppo.run(page, str(tmp_path / "run"))
    assert reads == [str(reward)]


def test_learned_positions_bound_the_text(farm, tokenizer, tmp_path, capsys):
    other = without(tokenizer, bos_token=None)
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "max_position_embeddings": 20, "n_inner": 32}
    folder = write(tmp_path / "rm", other, "GPT2", **small)
    assert described(farm, folder).text_length == 20
    assert "has 20 learned positions; responses whose text is longer" in capsys.readouterr().out


def test_an_export_that_is_older_than_its_run_is_said(farm, tmp_path, capsys):
    """The run went on and was stopped before its end."""
    export, step = tmp_path / "export", tmp_path / "checkpoints/7"
    for folder in (export, step / "meta", tmp_path / "model"):
        folder.mkdir(parents=True)
    for folder in (export, tmp_path / "model"):
        (folder / "config.json").write_text("{}")
    (step / "meta/metadata").write_text(json.dumps({"config": {}, "scores": {}}))
    for age, said in ((100, 0), (-100, 1)):
        now = step.stat().st_mtime
        os.utime(export / "config.json", (now + age, now + age))
        assert load_models.resolve_folder(str(export)) == str(export)
        found = f"{export}: older than checkpoint 7 of its run, the last; give {tmp_path}"
        assert capsys.readouterr().out.count(found) == said
