"""Files of a model folder that others wrote: read as transformers reads them, or one line."""

import json

import numpy as np
import pytest
import running
import tiny_families
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.models.huggingface.tensor_files import finite
from rlhf_jax.parallel import startup

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(startup, "_said", set())


def changed(folder, tensors=lambda x: x, **fields):
    """A llama whose config.json has other fields, and whose tensors are `tensors(the old ones)`."""
    tiny_families.write_folder(folder, "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    save_file(
        tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b'{"a": 1', "not readable as JSON"),
        (b'{"a": 1}}', "not readable as JSON"),
        (b"[]", "holds a list and should hold an object"),
        (b"null", "holds null"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', "the key 'a' twice in one object, with two values"),
        (b"3", "holds a plain value"),
        (b'{"a": "\xff"}', "not readable as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_broken_json_file_is_one_line_that_names_it(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_object(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_problem_and_a_missing_file_is_one(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_object(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "x.json").write_text('{"a": NaN, "b": 1, "a": NaN, "b": 1}')
    assert read_object(tmp_path / "x.json")["b"] == 1
    with pytest.raises(UserError, match="cannot be read"):
        read_object(tmp_path / "y.json")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_every_side_file_is_read_with_it(tmp_path, name):
    folder = changed(tmp_path / "m")
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text('{"weight_map": {')
    with pytest.raises(UserError, match=rf"{name}: not readable as JSON"):
        import_folder.describe_folder(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; a positive whole number is needed"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; no model has more than"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000; a positive whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; a positive whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; a divisor of num_attention_heads=4"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; an object"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; true or false is needed"),
        ({"architectures": 3}, "architectures is 3; a list with the name of a class is needed"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "LlamaForTokenClassification', which is not supported",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "but the weights hold no score.weight"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, fields, said):
    with pytest.raises(UserError) as error:
        import_folder.describe_folder(changed(tmp_path / "m", **fields))
    assert said in str(error.value)


def test_a_classifier_of_two_labels_is_named(tmp_path):
    def two(tensors):
        tensors.pop(HEAD)
        return tensors | {"score.weight": np.ones((2, 32), np.float32)}

    folder = changed(tmp_path / "m", two, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match="a classifier of 2 labels"):
        import_folder.describe_folder(folder)


def own_head(tensors):
    return tensors


def twice(tensors):
    return tensors | {HEAD: tensors[EMBED].copy()}


def only_head(tensors):
    return {name: x for name, x in tensors.items() if name != EMBED}


@pytest.mark.parametrize("tensors", [own_head, twice, only_head])
def test_the_head_of_a_model_that_calls_itself_tied_is_that_of_transformers(tmp_path, tensors, capsys):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = changed(tmp_path / "m", tensors, tie_word_embeddings=True)
    found, params = import_folder.load(folder)
    assert found.config.tie_embeddings == (tensors is not own_head)
    assert ("tie_word_embeddings is true, but" in capsys.readouterr().out) == (tensors is own_head)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens, lengths = tiny_families.left_padded((12, 12))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(
        running.logits(found.config, params, tokens, lengths), wanted, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_a_number_that_is_none_is_found_in_every_type(tmp_path, value, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    good = np.array([[0.0, -1.0, 3.0e4, 1e-7]], np.float64).astype(kind)
    assert finite(tmp_path, "w", good) is good
    with pytest.raises(UserError, match=rf"tensor w holds {value}"):
        finite(
            tmp_path, "w", np.where([[0, 0, 0, 1]], np.float64(value), good.astype(np.float64)).astype(kind)
        )


def test_a_nan_weight_is_named_at_load(tmp_path):
    def broken(tensors):
        tensors["model.norm.weight"][3] = np.nan
        return tensors

    with pytest.raises(UserError, match=r"model\.safetensors: tensor model\.norm\.weight holds nan"):
        import_folder.load(changed(tmp_path / "m", broken))


def test_names_below_a_wrapper_say_which(tmp_path):
    folder = changed(tmp_path / "m", lambda tensors: {f"module.{name}": x for name, x in tensors.items()})
    with pytest.raises(UserError, match=r"every name begins with 'module\.'"):
        import_folder.describe_folder(folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("norm.weight", "tensors under two names: .*norm.weight"),
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "quantized weights, which cannot be trained"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "save what PEFT's merge_and_unload"),
    ],
)
def test_a_tensor_too_many_says_what_helps(tmp_path, more, said):
    folder = changed(tmp_path / "m", lambda tensors: tensors | {more: np.ones(32, np.float32)})
    with pytest.raises(UserError, match=said):
        import_folder.describe_folder(folder)


def test_shards_without_their_index_are_named(tmp_path):
    folder = changed(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00001\.safetensors is there, but no .*index.json"):
        import_folder.describe_folder(folder)


def test_a_tensor_in_two_files_must_be_the_same(tmp_path):
    folder = changed(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {EMBED: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file({EMBED: tensors[EMBED]}, folder / "b.safetensors")
    import_folder.describe_folder(folder)
    save_file({EMBED: tensors[EMBED] + 1}, folder / "b.safetensors")
    with pytest.raises(UserError, match=rf"b\.safetensors: tensor {EMBED} is also in a\.safetensors"):
        import_folder.describe_folder(folder)


def test_what_is_not_read_is_named(tmp_path, capsys):
    """One whole file comes before an index, as in transformers; an adapter beside the model is not laid over it."""
    folder = changed(
        tmp_path / "m", lambda x: x | {"model.layers.0.self_attn.rotary_emb.inv_freq": x[HEAD][0]}
    )
    (folder / "pytorch_model.bin").write_bytes(b"old")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    (folder / "adapter_config.json").write_text("{}")
    for _ in range(2):
        import_folder.describe_folder(folder)
    said = capsys.readouterr().out
    assert said.count("read from model.safetensors; not read: pytorch_model.bin") == 1
    assert f"set model.adapter={folder}" in said
    assert "because it is computed: model.layers.0.self_attn.rotary_emb.inv_freq" in said
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"this is an adapter: name it as model\.adapter"):
        import_folder.describe_folder(folder)


def test_links_to_nothing_and_files_of_other_programs_are_named(tmp_path):
    folder = changed(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: a link to nothing"):
        import_folder.describe_folder(folder)
    (folder / "a.gguf").touch()
    with pytest.raises(UserError, match=r"a GGUF file; give the file itself: .*a\.gguf"):
        import_folder.describe_folder(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/nowhere/config.json")
    with pytest.raises(UserError, match=r"config\.json: a link to nothing \(/nowhere/config\.json\)"):
        import_folder.describe_folder(folder)


def test_torch_files_of_all_ages_are_read(tmp_path):
    """Before torch 1.6 they were no archives; and one that holds objects is not opened."""
    torch = pytest.importorskip("torch")
    folder = changed(tmp_path / "m")
    tensors = {name: torch.from_numpy(x) for name, x in load_file(folder / "model.safetensors").items()}
    wanted = import_folder.load(folder)[1]
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    tiny_families.assert_same_tree(import_folder.load(folder)[1], wanted)
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: holds more than tensors"):
        import_folder.describe_folder(folder)


def test_a_torch_file_that_cannot_be_read_is_one_line(tmp_path):
    pytest.importorskip("torch")
    folder = changed(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a readable torch file"):
        import_folder.describe_folder(folder)


def test_a_reward_model_without_a_mean_is_said(tmp_path, capsys):
    folder = tiny_families.write_folder(tmp_path / "m", "llama", scalar=True)
    assert import_folder.describe_folder(folder).reward_mean == 0.0
    assert "no reward_mean, so scores are taken as they are" in capsys.readouterr().out
