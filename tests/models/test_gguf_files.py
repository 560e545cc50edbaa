"""GGUF files in: the same logits and the same tokens as the folder they were written from, or one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_jax.errors import UserError
from rlhf_jax.models.gguf import gguf_files
from rlhf_jax.models.huggingface import import_folder

torch = pytest.importorskip("torch")
pytest.importorskip("gguf", reason="the package gguf is not installed")

import gguf_writing  # noqa: E402
from gguf import GGMLQuantizationType as Kind  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

LINES = [
    "The model's answer isn't what they'll expect; we've 12345 reasons, I'm sure, and it'd be 3.14159.",
    "Def f(x):\n    return x ** 2  # 100%\r\n\r\n\tTabs, trailing   \n\n\n  and 2024-11-29",
    "Zürich, façade, naïve cafe\u0301, 東京は日本の首都です。 Привет мир! עברית العربية",
    "emoji 👩‍👩‍👧 🇨🇭, math ∑ᵢ xᵢ² ≤ ∞, IT'S DON'T WE'LL, ½ ⅔ ² ③ ४५",
    "<|im_start|>user\nhi<|im_end|>\n<tool>x</tool> <|unknown|>",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As the makers' own tokenizer.json files cut: SmolLM2, Llama 3, Qwen 2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _bytes(False)])


CUTTINGS = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes(True)]),
    "llama-bpe": _split(LLAMA3),
    "qwen2": _split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "gpt-2": _bytes(True),
}


def _tokenizer(folder, pre):
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    made.pre_tokenizer, made.decoder = CUTTINGS[pre], decoders.ByteLevel()
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES * 3, trainer)
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    names = {"bos_token": specials[1], "eos_token": specials[2], "pad_token": specials[0]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names, chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    # Beside the tokenizer, where transformers reads it just as well.
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def _folder(folder, pre="smollm", **changes):
    """A tiny model of transformers with a byte-level tokenizer."""
    from transformers import AutoConfig

    tokenizer = _tokenizer(folder, pre)
    config = {"model_type": "llama", "vocab_size": len(tokenizer) + 4, "hidden_size": 64, "head_dim": 16}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 100.0, **changes}
    kind = config.pop("model_type")
    config = AutoConfig.for_model(kind, max_position_embeddings=64, initializer_range=0.3, **config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for x in model.parameters():
        if x.ndim == 1:  # norms and biases that are not all alike
            torch.nn.init.normal_(x, 1.0, 0.3)
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    theta = raw.get("rope_theta") or raw["rope_parameters"]["rope_theta"]
    raw |= {"rope_theta": theta, "head_dim": 16}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return _folder(tmp_path_factory.mktemp("tiny"))


def _logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model(ids).logits.numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 500000.0},
        {"model_type": "qwen2", "pre": "qwen2"},
        {"model_type": "qwen3", "pre": "qwen2", "tie_word_embeddings": True},
    ],
    ids=["llama", "llama_tied", "qwen2", "qwen3"],
)
def test_logits_are_those_of_the_folder_it_was_written_from(changes, tmp_path):
    pre = changes.pop("pre", "smollm")
    source = _folder(tmp_path / "source", pre, **changes)
    gguf_writing.write(source, tmp_path / "x.gguf", pre=pre)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    np.testing.assert_allclose(_logits(tmp_path / "made"), _logits(source), atol=1e-5)
    tied = changes.get("tie_word_embeddings", False)
    assert import_folder.describe_folder(tmp_path / "made").config.tie_embeddings == tied


def test_llama_3_stretched_positions_are_found_in_their_factors(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    source = _folder(tmp_path / "source", "llama-bpe", rope_theta=500000.0, rope_parameters=scaling)
    stretched = AutoModelForCausalLM.from_pretrained(source).model.rotary_emb.inv_freq.numpy()
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    gguf_writing.write(source, tmp_path / "x.gguf", pre="llama-bpe", rope_freqs=plain / stretched)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    np.testing.assert_allclose(_logits(tmp_path / "made"), _logits(source), atol=1e-5)
    gguf_writing.write(source, tmp_path / "y.gguf", pre="llama-bpe", rope_freqs=1.5 * plain / stretched)
    with pytest.raises(UserError, match=r"rope_freqs.weight are not those of Llama 3"):
        gguf_files.convert(tmp_path / "y.gguf", tmp_path / "other")


def test_linearly_stretched_positions(tmp_path):
    source = _folder(
        tmp_path / "source",
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
    )
    stretched = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    gguf_writing.write(source, tmp_path / "x.gguf", pre="smollm", fields=stretched)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    np.testing.assert_allclose(_logits(tmp_path / "made"), _logits(source), atol=1e-5)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.BF16, Kind.F16])
def test_quantised_weights_are_what_gguf_makes_of_them(kind, tiny, tmp_path):
    written = gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm", kind=kind)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    import gguf

    for name, w in written.items():
        if w.ndim > 1:
            w = gguf.dequantize(gguf.quantize(w, kind), kind)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = w.shape[0] // 16
            w = np.stack([w[h * 16 + 2 * (i % 8) + i // 8] for h in range(heads) for i in range(16)])
        [theirs] = [k for k in made if gguf_writing._short(k) == name]
        assert made[theirs].dtype == np.float32
        np.testing.assert_array_equal(made[theirs], w, err_msg=name)


def test_transformers_reads_the_same_model_from_the_file(tiny, tmp_path):
    rows = json.loads((tiny / "config.json").read_text())["vocab_size"]
    fields = {"llama.vocab_size": rows}
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm", kind=Kind.Q8_0, fields=fields)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    for name, x in ours.state_dict().items():
        assert torch.equal(x, theirs.state_dict()[name]), name


@pytest.mark.parametrize("pre", CUTTINGS)
def test_tokens_are_those_of_the_tokenizer_it_was_written_from(pre, tmp_path):
    source = _folder(tmp_path / "source", pre)
    gguf_writing.write(source, tmp_path / "x.gguf", pre=pre, fields={"tokenizer.ggml.add_bos_token": False})
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "made"), AutoTokenizer.from_pretrained(source)
    text = Path(__file__).read_text()
    for line in [*LINES, *text.splitlines(), text]:
        assert ours(line)["input_ids"] == theirs(line)["input_ids"], line
        assert ours.decode(ours(line)["input_ids"]) == theirs.decode(theirs(line)["input_ids"])
    chat = [{"role": "user", "content": LINES[0]}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "all_special_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_bos_is_added_where_the_file_says_so_and_all_end_tokens_are_kept(tiny, tmp_path):
    ends = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eot_token_id": 0}
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm", fields=ends)
    gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    assert AutoTokenizer.from_pretrained(tmp_path / "made")("x")["input_ids"][0] == 1
    assert json.loads((tmp_path / "made" / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


REFUSED = {
    "general.architecture is 'gemma3'": {"general.architecture": "gemma3"},
    "general.type is 'adapter'": {"general.type": "adapter"},
    "llama.logit_scale is 0.5": {"llama.logit_scale": 0.5},
    "llama.expert_count is 8": {"llama.expert_count": 8},
    "llama.rope.scaling.type is 'yarn'": {"llama.rope.scaling.type": "yarn"},
    "llama.rope.dimension_count is 8": {"llama.rope.dimension_count": 8},
    "llama.attention.sliding_window is 32": {"llama.attention.sliding_window": 32},
    "no llama.embedding_length": {"llama.embedding_length": None},
    "tokenizer.ggml.model is 't5'": {"tokenizer.ggml.model": "t5"},
    "tokenizer.ggml.pre is 'tekken'": {"tokenizer.ggml.pre": "tekken"},
    "its tokenizer has 500 tokens, but token_embd.weight has \\d+ rows": {
        "tokenizer.ggml.tokens": [str(i) for i in range(500)]
    },
    "tokenizer.ggml.pre is None": {"tokenizer.ggml.pre": None},
    "no tokenizer.ggml.merges": {"tokenizer.ggml.merges": None},
    "tokenizer.ggml.eos_token_id is 9999": {"tokenizer.ggml.eos_token_id": 9999},
    "one of 3 parts": {"split.count": 3},
    "its settings say \\(128, 64\\)": {"llama.feed_forward_length": 128},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_known_is_refused_by_name(said, tiny, tmp_path):
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm", fields=REFUSED[said])
    with pytest.raises(UserError, match=said) as error:
        gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    assert str(tmp_path / "x.gguf") in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_tensors_must_be_complete_and_known(tiny, tmp_path):
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm", leave_out=("blk.1.ffn_up.weight",))
    with pytest.raises(UserError, match=r"tensor blk.1.ffn_up.weight is missing"):
        gguf_files.convert(tmp_path / "x.gguf", tmp_path / "made")
    gguf_writing.write(
        _folder(tmp_path / "qwen", "qwen2", model_type="qwen2"), tmp_path / "y.gguf", pre="qwen2"
    )
    data = (tmp_path / "y.gguf").read_bytes().replace(b"qwen2.", b"llama.")
    (tmp_path / "z.gguf").write_bytes(data.replace(b"\5\0\0\0\0\0\0\0qwen2", b"\5\0\0\0\0\0\0\0llama", 1))
    with pytest.raises(UserError, match=r"tensor blk.0.attn_[qkv].bias is not one of a llama model"):
        gguf_files.convert(tmp_path / "z.gguf", tmp_path / "made")


def test_a_file_that_is_cut_or_something_else_is_one_line(tiny, tmp_path):
    gguf_writing.write(tiny, tmp_path / "whole.gguf", pre="smollm")
    whole, cut = (tmp_path / "whole.gguf").read_bytes(), tmp_path / "cut.gguf"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"
    for content in (b"", b"GG", pointer, *(whole[: len(whole) * i // 16] for i in range(1, 16)), whole[:-1]):
        cut.write_bytes(content)
        with pytest.raises(UserError, match="not a whole GGUF file") as error:
            gguf_files.convert(cut, tmp_path / "made")
        assert "\n" not in str(error.value)


def test_a_file_is_converted_once_and_known_by_its_content(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm")
    told = []
    first = gguf_files.as_folder(str(tmp_path / "x.gguf"), lambda *done: told.append(done))
    assert (
        told[-1][0]
        == told[-1][1]
        == sum(x.size for x in load_file(Path(first, "model.safetensors")).values())
    )
    assert f"written as a Hugging Face folder to {first}" in capsys.readouterr().out
    monkeypatch.setattr(gguf_files, "convert", None)
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.gguf").rename(tmp_path / "sub" / "x.gguf")
    assert gguf_files.as_folder(str(tmp_path / "sub" / "x.gguf")) == first
    assert gguf_files.as_folder("some/folder") == "some/folder"


def test_a_file_without_the_ending_and_a_folder_with_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("sha256-00", "x.GGUF"):
        gguf_writing.write(tiny, tmp_path / name, pre="smollm")
        assert Path(gguf_files.as_folder(str(tmp_path / name)), "config.json").is_file()
    (tmp_path / "folder.gguf").mkdir()
    for other in (tmp_path / "folder.gguf", tiny, tiny / "config.json", tmp_path / "nothing"):
        assert gguf_files.as_folder(str(other)) == str(other)


def test_a_cache_that_cannot_be_written_is_one_line(tiny, tmp_path, monkeypatch):
    gguf_writing.write(tiny, tmp_path / "x.gguf", pre="smollm")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to .*; set XDG_CACHE_HOME to a folder with room"):
        gguf_files.as_folder(str(tmp_path / "x.gguf"))


def test_without_the_package_it_is_said_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"x.gguf: reading it needs the package gguf; pip install gguf"):
        gguf_files.as_folder("x.gguf")
    monkeypatch.delitem(sys.modules, "gguf")
    with pytest.raises(UserError, match=r"x.gguf: no such file"):
        gguf_files.as_folder(str(tmp_path / "x.gguf"))
