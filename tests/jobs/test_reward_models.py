"""PPO takes any reward model: its scores of its own samples are the `score` job's, and transformers'.

Four reward models that transformers has written: one like the policy; one of the same shapes with another rope base,
epsilon and window; one of another size; one with a tokenizer of equal size and other tokens.
"""

import json
import re

import numpy as np
import pytest
import tiny_farm
import torch
import transformers
from chat_tokenizers import CHATML, build

from rlhf_jax.data.records.records import read_instructions, read_pairs, read_table, write_parquet
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokens.same_tokens import same_tokens
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import score
from rlhf_jax.methods import ppo, reward_model
from rlhf_jax.models.huggingface import export_folder
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.rows import shared_prompt_rows
from rlhf_jax.training.run import encoded_rows, reward_models, session
from rlhf_jax.training.run.session import Network

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "num_labels": 1,
}
OTHER = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    "rms_norm_eps": 0.05,
    "sliding_window": 5,
}
MEAN = 0.125  # of the one that says it


def write(folder, tokenizer, kind="Llama", *, seed=1, reward_mean=None, **changes):
    torch.manual_seed(seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    given = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **SHAPE, **ids, **changes}
    config = getattr(transformers, f"{kind}Config")(**given)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if reward_mean is not None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"reward_mean": reward_mean}))
    return folder


def chat_tokenizer():
    return build(
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def shuffled(tokenizer):
    """A tokenizer of equal size whose tokens have other numbers."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    plain = [token for token in vocab if token not in tokenizer.all_special_tokens]
    backend["model"]["vocab"] |= dict(zip(plain, (vocab[token] for token in reversed(plain)), strict=True))
    from tokenizers import Tokenizer

    fresh = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(fresh, name, getattr(tokenizer, name))
    return fresh


@pytest.fixture(scope="module")
def models(farm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward_models")
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    _speaks_words(folder / "policy", tokenizer)
    big = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
    return {
        "policy": folder / "policy",
        "same": write(folder / "same", tokenizer, reward_mean=MEAN),
        "other settings": write(folder / "settings", tokenizer, "Mistral", **OTHER),
        "other size": write(folder / "size", tokenizer, **big),
        "other tokenizer": write(folder / "tokenizer", shuffled(tokenizer)),
        "chat": write(folder / "chat", chat_tokenizer()),
    }


def _speaks_words(folder, tokenizer):
    """A policy that says whole words and EOS alone, so that its text makes the very tokens that it sampled."""
    params = tiny_farm.random_params(scalar=False, eos_id=tokenizer.eos_token_id)
    words = [i for token, i in tokenizer.get_vocab().items() if re.fullmatch("Ġ[a-z]{2,}", token)]
    others = np.setdiff1d(np.arange(len(tokenizer)), [*words, tokenizer.eos_token_id])
    params["embed"][:, 0] = 30.0  # so the first feature is large and positive at the end, too
    params["norm"]["scale"][0] = 1.0
    params["head"][0] = 0.0
    params["head"][:, others] = 0.0
    params["head"][0, others] = -20.0
    export_folder.save_folder(
        folder,
        tiny_farm.model_config(),
        params,
        token_ids=session.token_ids(tokenizer),
        tokenizer_from=tokenizer.name_or_path,
    )


def run_ppo(farm, models, folder, reward, **changes):
    """One iteration; rows of both tables of samples."""
    page = tiny_farm.settings(
        "ppo",
        farm,
        steps=1,
        epochs=1,
        minibatch_size=8,
        missing_eos_penalty=-9.0,
        **{"model.reward": str(reward), "model.policy": str(models["policy"]), "rollout.max_new_tokens": 12},
        **changes,
    )
    ppo.run(page, str(folder))
    files = sorted((folder / "samples").iterdir())
    assert len(files) == 2
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def transformers_scores(folder, rows, template, score_at="template"):
    """What the makers' own class says, one row at a time, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    raw, found = json.loads((folder / "config.json").read_text()), []
    for row in rows:
        if template == "chat":
            text = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
            chat = [{"role": "user", "content": text}, {"role": "assistant", "content": row["output"]}]
            ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"]
            if score_at != "template":
                ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id) - (score_at == "last")]
        else:
            parts = (render(row, template), row["output"])
            prompt, response = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in parts)
            bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            ids = [*bos, *prompt, *response, *[tokenizer.eos_token_id] * (score_at != "last")]
        with torch.no_grad():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state
            found.append(model.score(hidden)[0, -1].item() - raw.get("reward_mean", 0.0))
    return np.array(found)


def job_scores(farm, folder, reward, rows, **changes):
    write_parquet(folder / "samples.parquet", rows)
    given = {"data.responses": str(folder / "samples.parquet"), "model.path": str(reward)}
    score.run(tiny_farm.settings("score", farm, **given, **changes), str(folder / "scores"))
    return np.array([row["scores"][0] for row in read_table(folder / "scores/scores.parquet")])


@pytest.mark.parametrize("name", ["same", "other settings", "other size", "other tokenizer"])
def test_ppo_scores_as_the_score_job_and_transformers_do(farm, models, tmp_path, capsys, name):
    rows = run_ppo(farm, models, tmp_path / "ppo", models[name])
    said = capsys.readouterr().out
    how = "their text, in the template brief" if name == "other tokenizer" else "the tokens that were sampled"
    assert f"reward model: reads {how}; its score stands at the token eos" in said
    first = "policy" if name == "other tokenizer" else "reward"
    assert f"value model: starts from the trunk of the {first} model" in said
    assert said.count("config.json: no reward_mean") == (name != "same")
    assert {row["score"] for row in rows if not row["ended"]} <= {-9.0}
    rows = [row for row in rows if row["ended"]]
    assert len(rows) >= 4 and len({row["output"] for row in rows}) > 2
    found = np.array([row["score"] for row in rows])
    wanted = transformers_scores(models[name], rows, "brief")
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(job_scores(farm, tmp_path, models[name], rows), wanted, atol=1e-4)


@pytest.mark.parametrize("score_at", ["", "last"])
def test_a_chat_reward_model_reads_conversations(farm, models, tmp_path, score_at):
    """By its own template, and where its makers read it: at the line break behind the end token unless told else."""
    how = {"model.reward_template": "chat", "model.score_at": score_at}
    rows = [
        row
        for row in run_ppo(farm, models, tmp_path / "ppo", models["chat"], **how)
        if row["ended"] and row["output"]
    ]
    assert len(rows) >= 2
    wanted = transformers_scores(models["chat"], rows, "chat", score_at or "template")
    np.testing.assert_allclose([row["score"] for row in rows], wanted, atol=1e-4)
    how = {"data.template": "chat", "model.score_at": score_at, "data.max_length": 250}
    np.testing.assert_allclose(job_scores(farm, tmp_path, models["chat"], rows, **how), wanted, atol=1e-4)


@pytest.fixture(scope="module")
def continued(farm, models, tmp_path_factory):
    """A chat reward model whose config.json does not say where it is read, after a step that changes nothing."""
    folder = tmp_path_factory.mktemp("continued")
    given = {"model.init": str(models["chat"]), "data.template": "chat", "data.max_length": 250}
    still = {"optimizer.learning_rate": 1e-12, "epochs": 0.1, "center_rows": 5, "data.packing": "on"}
    reward_model.run(tiny_farm.settings("reward_model", farm, **given, **still), str(folder))
    return folder


def test_a_reward_model_that_is_trained_further_is_read_where_its_makers_read_it(farm, models, continued):
    """In the loss, in the mean of demonstrations and by whoever reads the export or the workdir."""
    page = tiny_farm.settings("reward_model", farm)
    held = encoded_rows.hold_out(read_pairs(page.data.train)[0], page.data.eval_rows, page.seed)[1]
    chosen, rejected = (
        transformers_scores(models["chat"], [row | {"output": row[side]} for row in held], "chat")
        for side in ("chosen", "rejected")
    )
    found = [row for row in tiny_farm.rows(continued) if "eval/loss" in row][-1]
    assert found["eval/loss"] == pytest.approx(np.logaddexp(0, rejected - chosen).mean(), abs=1e-5)
    assert found["eval/rewards/margins"] == pytest.approx((chosen - rejected).mean(), abs=1e-5)
    raw = json.loads((continued / "export/config.json").read_text())
    rows = encoded_rows.draw(read_instructions(page.center_on)[0], 5, np.random.default_rng(page.seed))
    wanted = transformers_scores(models["chat"], rows, "chat")
    assert raw["score_at"] == "template" and raw["reward_mean"] == pytest.approx(wanted.mean(), abs=1e-5)
    settings, mesh = tiny_farm.settings("score", farm).model, make_mesh(1, 1, 1)
    for folder in (continued / "export", continued):
        read = reward_models.described(str(folder), settings, field="model.path", template="chat")
        assert read.score_at == "template" and len(read.behind.tail) == 1
        assert reward_models.loaded(read, settings, mesh).mean == pytest.approx(wanted.mean(), abs=1e-5)


def test_training_and_held_out_rows_end_where_the_score_stands(farm, models, tmp_path, monkeypatch):
    """At the line break behind the end token, as this template closes a turn."""
    seen = []

    def stop(split, *_):
        seen.extend([*split.train, *split.eval])
        raise UserError("enough")

    monkeypatch.setattr(shared_prompt_rows, "rows_of", stop)
    given = {"model.init": str(models["chat"]), "data.template": "chat", "data.max_length": 250}
    with pytest.raises(UserError, match=r"^enough$"):
        reward_model.run(tiny_farm.settings("reward_model", farm, center_on="", **given), str(tmp_path))
    tokenizer = load_tokenizer(models["chat"])
    end = tokenizer("<|im_end|>\n")["input_ids"]
    assert len(seen) == 4 and len(end) == 2
    for rows in seen:
        assert all(rows[i][-2:].tolist() == end for i in range(len(rows)))


@pytest.mark.parametrize(
    ("given", "said", "scalar", "wanted"),
    [
        ("", "", False, "eos"),  # a language model
        ("", "", True, "template"),
        ("", "last", True, "last"),
        ("eos", "last", True, "eos"),
        ("last", "", False, "last"),
    ],
)
def test_where_a_reward_model_is_trained(farm, given, said, scalar, wanted):
    page = tiny_farm.settings("reward_model", farm, **{"data.template": "chat", "model.score_at": given})
    init = Network(tiny_farm.model_config(), lambda: {}, scalar, said)
    assert reward_model._score_at(page, init) == wanted


def test_a_value_model_that_reads_other_tokens_is_refused(farm, models, tmp_path):
    with pytest.raises(
        UserError, match=r"^model.value_from: reward, but .* has another tokenizer than the policy"
    ):
        run_ppo(farm, models, tmp_path, models["other tokenizer"], **{"model.value_from": "reward"})


def test_equal_sizes_are_not_equal_tokenizers(farm):
    ours = load_tokenizer(farm / "data/tokenizer")
    theirs = shuffled(ours)
    assert len(ours) == len(theirs) and not same_tokens(ours, theirs)
    assert same_tokens(ours, load_tokenizer(farm / "data/tokenizer"))
    spare = load_tokenizer(farm / "data/tokenizer")
    spare.add_special_tokens({"pad_token": "[SPARE]"})
    assert same_tokens(ours, spare)
    backend = json.loads(ours.backend_tokenizer.to_str())
    assert backend["model"]["merges"]
    backend["model"]["merges"] = backend["model"]["merges"][:-1]
    from tokenizers import Tokenizer

    fewer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(fewer, name, getattr(ours, name))
    assert not same_tokens(ours, fewer)


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(farm, models, tmp_path):
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    folder = write(tmp_path / "few", tokenizer)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"^model.reward: .* such as 'zebra'; put the tokenizer there"):
        run_ppo(farm, models, tmp_path / "run", folder)
