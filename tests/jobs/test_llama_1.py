"""The recipe of AlpacaFarm starts from a folder with the fields that LLaMA 1 was published with."""

import json
import shutil

import numpy as np
import tiny_farm
from safetensors.numpy import load_file, save_file

from rlhf_jax.methods import sft
from rlhf_jax.settings import load_page

# huggyllama/llama-7b, but for the sizes. It names neither a head size nor key-value heads nor a rotary base.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
IDS = ("bos_token_id", "eos_token_id")


def llama_1(farm, folder):
    """The farm's language model, with as many key-value heads as heads and without a PAD token."""
    shutil.copytree(farm / "sft/export", folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    raw = json.loads((folder / "config.json").read_text())
    assert raw["model_type"] == "llama"
    (folder / "config.json").write_text(json.dumps({name: raw[name] for name in (*SIZES, *IDS)} | PUBLISHED))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".k_proj." in name or ".v_proj." in name]:
        tensors[name] = np.concatenate([tensors[name]] * (raw["hidden_size"] // len(tensors[name])))
    save_file(tensors, path, {"format": "pt"})
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("pad_token")
    path.write_text(json.dumps(settings))
    return raw


def test_the_recipe_starts(farm, tmp_path, capsys):
    folder = tmp_path / "llama"
    raw = llama_1(farm, folder)
    page = load_page(f"{tiny_farm.ROOT}/configs/papers/alpaca_farm/sft.py")
    page.update_from_flattened_dict(
        {
            "data.train": str(farm / "data/sft.parquet"),
            "data.eval": "",
            "data.eval_rows": 8,
            "model.init": str(folder),
            "batch_size": 8,
            "microbatches": 1,
            "epochs": 0.04,
            "optimizer.warmup_steps": 1,
            "mesh.fsdp": 1,
            "eval_every": 0,
        }
    )
    sft.run(page, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "max_sequence_length: passed over, as transformers' LlamaConfig has no such setting" in said
    tensors = load_file(tmp_path / "run/export/model.safetensors")
    assert len(tensors["model.embed_tokens.weight"]) == raw["vocab_size"] + 1  # [PAD]
    assert all(np.isfinite(x.astype(np.float32)).all() for x in tensors.values())
