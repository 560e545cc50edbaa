"""config.json files as they are published: fields that transformers ignores pass, those that it reads are refused."""

import json
import re
from pathlib import Path

import pytest
import tiny_families

from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import config_json, import_folder
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.parallel import startup

transformers = pytest.importorskip("transformers")

# Fields of published files that no class of transformers has.
INERT = {
    "LLaMA 1": ("llama", {"max_sequence_length": 2048, "pad_token_id": 0, "torch_dtype": "float16"}),
    "Vicuna 1.1": ("llama", {"max_sequence_length": 2048, "pretraining_tp": 1, "rope_scaling": None}),
    "SmolLM2": (
        "llama",
        {
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        },
    ),
    "Unsloth": ("llama", {"unsloth_fixed": True, "unsloth_version": "2025.3.9", "pad_token_id": 4}),
    "gemma-2-9b": ("gemma2", {"sliding_window_size": 4, "cache_implementation": "hybrid"}),
    "is_causal": ("llama", {"is_causal": True, "layer_types": ["full_attention"] * 3}),
    "all layers": ("mistral", {"layer_types": ["full_attention"] * 3}),
    "own code": ("llama", {"auto_map": {"AutoModel": "modeling.Own"}}),
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(startup, "_said", set())


def config_of(folder, family, drop=(), **fields):
    """Our reading of a family's tiny config.json with other fields, and the file's content."""
    raw = {"model_type": tiny_families.family_of(family)} | tiny_families.CONFIGS[family] | fields
    raw = {name: value for name, value in raw.items() if name not in drop}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return import_folder.read_config(folder)[0], raw


@pytest.mark.parametrize("name", INERT)
def test_fields_that_transformers_ignores_pass_with_a_notice(tmp_path, name, capsys):
    family, fields = INERT[name]
    plain, _ = config_of(tmp_path, family)
    assert capsys.readouterr().out == ""
    assert config_of(tmp_path, family, **fields)[0] == plain
    said = capsys.readouterr().out
    for field, value in fields.items():
        quiet = field in config_json.HARMLESS or config_json.changes_nothing(field, value)
        assert (field in said) == (not quiet and value is not False), field
    assert said.count("notice:") == (name not in ("is_causal", "all layers"))


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"sliding_window": 8}, "sliding_window is 8; this setting of transformers' LlamaConfig"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0 is supported"),
        ("llama", {"is_causal": False}, "is_causal is False.*only True is"),
        ("gpt2", {"is_causal": "no"}, "is_causal is 'no'.*only True is"),
        ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types is"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0; a number above 0"),
        ("llama", {"rope_theta": 10**400}, "rope_theta is 10+; a number of at least 0"),
        ("gpt_neox", {"rotary_emb_base": 0}, "rotary_emb_base is 0; a number above 0"),
        ("gpt_neox", {"rotary_pct": 0.0}, "rotary_pct is 0.0; a number above 0"),
        ("gpt_neox", {"rotary_pct": 0.01}, "rotary_pct is 0.01; a part of 1 is needed"),
        ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct is 1.5; a part of 1 is needed"),
        ("gemma3_text", {"rope_local_base_freq": 0}, "rope_local_base_freq is 0; a number above 0"),
        ("gptj", {"rotary_dim": 10}, "rotary_dim: 10 is more than the head size 8"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ("mixtral", {"num_experts_per_tok": 99}, "num_experts_per_tok is 99; at most num_local_experts="),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        (
            "llama",
            {"quantization_config": {"quant_method": "awq"}},
            "take the float model that it was made from",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "without gptq"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, r"\.dequantize\(\)"),
        ("llama", {"model_type": "gemma3", "text_config": {}}, "model_type is 'gemma3'.*take the text model"),
    ],
)
def test_fields_that_change_the_numbers_are_refused_by_name(tmp_path, family, fields, said):
    with pytest.raises(UserError, match=said):
        config_of(tmp_path, family, **fields)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("null", [False, True])
def test_a_missing_or_null_field_means_what_it_means_to_transformers(tmp_path, name, null):
    """Where we accept a file without a field, we read what transformers' class takes for it."""
    _, whole = config_of(tmp_path, name)
    for field in set(whole) - {"model_type", *tiny_families.IDS}:
        try:
            ours, raw = (
                config_of(tmp_path, name, **{field: None}) if null else config_of(tmp_path, name, [field])
            )
            theirs = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
        except (UserError, ValueError, TypeError, ZeroDivisionError, OSError):
            continue
        except Exception as error:  # its own kinds for values that it refuses
            assert "Validation" in type(error).__name__, error
            continue
        completed = raw | {
            k: theirs[k] for k in (*whole, "rope_parameters", "head_dim") if theirs.get(k) is not None
        }
        completed.pop("rope_scaling", None)
        (tmp_path / "config.json").write_text(json.dumps(completed))
        assert import_folder.read_config(tmp_path)[0] == ours, field


def test_whatever_transformers_reads_of_any_model_is_taken_or_refused():
    """Names that its code of our families asks for, though their class does not have them."""
    root = Path(transformers.__file__).parent
    asked = re.compile(r'(?:getattr\((?:self\.)?config, "|\bconfig\.)([a-z]\w*)\b(?!\()')
    computed = {
        "default_theta",
        "num_labels",
        "image_token_id",
        "mm_tokens_per_image",
        "summary_last_dropout",
    }
    for family in FAMILIES:
        found = transformers.CONFIG_MAPPING[family]
        folder = {"gemma3_text": "gemma3"}.get(family, family)
        known = set(vars(found())) | set(found.attribute_map) | computed
        known |= config_json.HARMLESS | config_json.OF_ANY_MODEL
        for path in (root / f"models/{folder}/modeling_{folder}.py", root / "masking_utils.py"):
            text = path.read_text() if path.is_file() else ""
            assert set(asked.findall(text)) <= known, (path, set(asked.findall(text)) - known)
