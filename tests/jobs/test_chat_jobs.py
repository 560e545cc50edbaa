"""Training on conversations: the loss is on the assistant's tokens alone, and every job takes the template."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.batches import Sequences, pad
from rlhf_jax.data.records.records import read_table, write_jsonl, write_parquet
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import generate, score
from rlhf_jax.methods import dpo, ppo, reward_model, sft
from rlhf_jax.models import decoder
from rlhf_jax.objectives.reduce import value
from rlhf_jax.training.run import encoded_rows, online_models

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def ragged(rng, n):
    """Sequences of several trained stretches, with tokens at random."""
    rows, masks, prompts = [], [], []
    for _ in range(n):
        length, prompt = rng.integers(9, 22), rng.integers(1, 6)
        mask = rng.random(length) < 0.5
        mask[:prompt], mask[prompt], mask[-1] = False, True, True
        rows.append(rng.integers(3, tiny_farm.VOCAB, length).astype(np.int32))
        masks.append(mask)
        prompts.append(prompt)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Sequences(np.concatenate(rows), offsets, np.array(prompts, np.int32), np.concatenate(masks))


def test_the_loss_is_the_mean_over_trained_tokens():
    config, params = tiny_farm.model_config(), tiny_farm.random_params(scalar=False)
    found = ragged(np.random.default_rng(0), 6)
    T, R = encoded_rows.array_sizes(found)
    batch = pad(found, np.arange(6), T, 0) | {"weight": np.float32([1, 1, 0, 1, 1, 1])}
    batch = jax.tree.map(jnp.asarray, batch)
    loss_fn = sft.sft_loss_fn(config, R, 8)

    def slow(params):
        total = count = 0.0
        for i in (0, 1, 3, 4, 5):
            tokens, (begin, stop) = found[i], found.offsets[i : i + 2]
            hidden = decoder.hidden_states(config, params, jnp.asarray(tokens)[None])[0]
            logprobs = jax.nn.log_softmax(hidden @ decoder.head(config, params))
            for t in np.flatnonzero(found.trained[begin:stop]):
                total -= logprobs[t - 1, tokens[t]]
                count += 1
        return total / count

    def fast(params):
        return value(loss_fn(params, batch)["loss"])

    (wanted, wanted_grad), (loss, grad) = (jax.jit(jax.value_and_grad(f))(params) for f in (slow, fast))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(wanted_grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)


def test_a_mask_that_is_true_all_over_is_as_good_as_none():
    config, params = tiny_farm.model_config(), tiny_farm.random_params(scalar=False)
    found = ragged(np.random.default_rng(1), 4)
    T, R = encoded_rows.array_sizes(found)
    plain = Sequences(found.tokens, found.offsets, found.prompt_lengths)
    full = Sequences(found.tokens, found.offsets, found.prompt_lengths, np.ones(len(found.tokens), bool))
    loss_fn = jax.jit(sft.sft_loss_fn(config, R, 8))
    one, other = (loss_fn(params, pad(x, np.arange(4), T, 0)) for x in (plain, full))
    for name, mean in one.items():
        assert float(mean.sum) == pytest.approx(float(other[name].sum), rel=1e-6)
        assert float(mean.weight) == float(other[name].weight)


@pytest.fixture(scope="module")
def chat_farm(farm, tmp_path_factory):
    """The farm with a tokenizer and models that have a chat template, and conversations."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("sft", "reward_model"):
        (folder / name / "export").mkdir(parents=True)
        for file in (farm / name / "export").iterdir():
            (folder / name / "export" / file.name).write_bytes(file.read_bytes())
        tokenizer.save_pretrained(folder / name / "export")
    rows = read_table(farm / "data/sft.parquet")
    chats = []
    for first, second in zip(rows[:80:2], rows[1:80:2], strict=True):
        turns = [(first["instruction"], first["output"]), (second["instruction"], second["output"])]
        chats.append(
            [
                {"role": r, "content": t}
                for pair in turns
                for r, t in zip(("user", "assistant"), pair, strict=True)
            ]
        )
    write_jsonl(folder / "chats.jsonl", [{"messages": messages} for messages in chats])
    write_parquet(folder / "prompts.parquet", [{"prompt": messages[:3]} for messages in chats])
    pairs = [
        {"prompt": a[:3], "chosen": [a[3]], "rejected": [b[3]]}
        for a, b in zip(chats, chats[1:] + chats[:1], strict=True)
    ]
    write_parquet(folder / "pairs.parquet", pairs)
    return folder


def settings(job, farm, chat_farm, **changes):
    common = {"data.template": "chat", "data.eval": "", "data.eval_rows": 4, "data.max_length": 220}
    page = set(tiny_farm.flat(tiny_farm.settings(job, farm)))
    return tiny_farm.settings(job, farm, **{k: v for k, v in common.items() if k in page} | changes)


def test_sft_on_conversations(farm, chat_farm, tmp_path, capsys):
    changes = {"data.train": str(chat_farm / "chats.jsonl"), "model.tokenizer": str(chat_farm / "tokenizer")}
    sft.run(settings("sft", farm, chat_farm, **changes, epochs=1.0), str(tmp_path / "sft"))
    assert "data.train: 40 rows read" in capsys.readouterr().out
    assert all("loss" not in row or np.isfinite(row["loss"]) for row in tiny_farm.rows(tmp_path / "sft"))
    exported = load_tokenizer(tmp_path / "sft/export")
    assert exported.chat_template == TEMPLATE
    template = (chat_farm / "tokenizer/chat_template.jinja").read_bytes()
    assert (tmp_path / "sft/export/chat_template.jinja").read_bytes() == template


def test_preferences_on_conversations(farm, chat_farm, tmp_path):
    changes = {"data.train": str(chat_farm / "pairs.parquet"), "model.init": str(chat_farm / "sft/export")}
    dpo.run(settings("dpo", farm, chat_farm, **changes, epochs=0.5), str(tmp_path / "dpo"))
    changes |= {"center_on": str(chat_farm / "chats.jsonl")}
    reward_model.run(settings("reward_model", farm, chat_farm, **changes), str(tmp_path / "rm"))


def test_ppo_and_sampling_on_conversations(farm, chat_farm, tmp_path):
    models = {
        "model.policy": str(chat_farm / "sft/export"),
        "model.reward": str(chat_farm / "reward_model/export"),
    }
    changes = {"data.train": str(chat_farm / "prompts.parquet"), "data.max_prompt_length": 200, "steps": 1}
    ppo.run(settings("ppo", farm, chat_farm, **models, **changes), str(tmp_path / "ppo"))
    changes = {"data.prompts": str(chat_farm / "prompts.parquet"), "data.max_prompt_length": 200}
    config = settings("generate", farm, chat_farm, **changes, **{"model.path": str(chat_farm / "sft/export")})
    generate.run(config, str(tmp_path / "generate"))
    rows = read_table(tmp_path / "generate/outputs.parquet")
    assert [len(row["messages"]) for row in rows] == [3] * len(rows)
    changes = {"data.responses": str(tmp_path / "generate/outputs.parquet"), "data.max_length": 300}
    score.run(
        settings(
            "score", farm, chat_farm, **changes, **{"model.path": str(chat_farm / "reward_model/export")}
        ),
        str(tmp_path / "score"),
    )


def test_a_policy_stops_at_every_token_that_its_makers_list(farm, chat_farm, tmp_path, monkeypatch):
    """Chat models often end a turn with another token than their tokenizer's EOS."""
    seen = {}

    def stop(*_, **settings):
        seen.update(settings)
        raise UserError("enough")

    policy = tmp_path / "policy"
    shutil.copytree(chat_farm / "sft/export", policy)
    (policy / "generation_config.json").write_text('{"eos_token_id": [7, 2, 9]}')
    monkeypatch.setattr(online_models, "DecodeGenerator", stop)
    monkeypatch.setattr(ppo.online, "train_online", lambda *asked: asked[-1].open())  # nothing is compiled
    changes = {"model.policy": str(policy), "model.reward": str(chat_farm / "reward_model/export")}
    changes |= {"data.train": str(chat_farm / "prompts.parquet"), "data.max_prompt_length": 200}
    with pytest.raises(UserError, match=r"^enough$"):
        ppo.run(settings("ppo", farm, chat_farm, **changes), str(tmp_path / "run"))
    assert seen["end_ids"] == (2, 7, 9)


@pytest.mark.parametrize("tokenizer", ["", "farm"])
def test_a_tokenizer_without_a_chat_template(farm, chat_farm, tmp_path, tokenizer):
    where = str(farm / "data/tokenizer") if tokenizer else ""
    config = settings("sft", farm, chat_farm, **{"model.tokenizer": where})
    with pytest.raises(UserError, match=r"^template: chat is (written by|the tokenizer's own chat template)"):
        sft.run(config, str(tmp_path / "run"))
