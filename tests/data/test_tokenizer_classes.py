"""Folders that name the plain tokenizer class are read without AutoTokenizer, and come out as it would read them."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from rlhf_jax.data.tokens.tokenizer_classes import names_plain_class, reader_for
from rlhf_jax.data.tokens.tokenizer_files import train_tokenizer

TEXT = "a plain line, and another \u2603"


@pytest.fixture
def folder(tmp_path):
    return train_tokenizer([TEXT] * 20, tmp_path / "tokenizer", vocab_size=300)


def change(folder, name, **fields):
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | fields))


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
@pytest.mark.parametrize("model", [None, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}])
def test_the_plain_class_reads_what_auto_tokenizer_reads(folder, tmp_path, name, model):
    change(folder, "tokenizer_config.json", tokenizer_class=name)
    if model:
        change(folder, "config.json", **model)
    assert names_plain_class(folder)
    found, other = (
        kind.from_pretrained(str(folder), trust_remote_code=False)
        for kind in (reader_for(folder), AutoTokenizer)
    )
    assert type(found) is type(other)
    assert found(TEXT) == other(TEXT)
    assert found.special_tokens_map == other.special_tokens_map
    for tokenizer, copy in ((found, tmp_path / "found"), (other, tmp_path / "other")):
        tokenizer.save_pretrained(str(copy))
    files = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "found").iterdir())
    for name in files:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": None}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["theirs.Own", None]}}),
        # AutoTokenizer takes Qwen2Tokenizer here, whatever class the folder names.
        ("config.json", {"model_type": "qwen2"}),
    ],
)
def test_all_others_are_left_to_auto_tokenizer(folder, name, fields):
    change(folder, name, **fields)
    assert reader_for(folder) is AutoTokenizer


@pytest.mark.parametrize("content", ["{", "[]", "\udce9"])
def test_a_file_that_cannot_be_read_is_left_to_auto_tokenizer(folder, content):
    (folder / "tokenizer_config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert reader_for(folder) is AutoTokenizer


def test_what_models_are_made_of_is_not_imported_for_a_plain_folder(folder):
    code = (
        "import sys; from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer;"
        f"load_tokenizer({str(folder)!r});"
        "print([m for m in ('torch', 'transformers.configuration_utils') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
