"""Run by test_recipes_compile.py on 8 devices: every trainer's variants, compiled without weights.

For each it prints a JSON line: name, whether one of the papers' recipes, GiB per device, FLOPs, seconds.
"""

import json
import re
import time

import jax
import numpy as np
import tiny_farm
from wide import WIDE

from rlhf_jax.jobs import fits, losses, plan
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.settings import load_page
from rlhf_jax.training.ahead import GIB, matrix_flops

# What huggyllama/llama-7b and mistralai/Mistral-7B-v0.1 say of themselves; AlpacaFarm adds a PAD token to the former.
LLAMA_7B = ModelConfig(
    vocab_size=32001, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ff=11008, dtype="bfloat16"
)
MISTRAL_7B = ModelConfig(
    vocab_size=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ff=14336,
    dtype="bfloat16",
    family="mistral",
    window=4096,
    local_layers=(True,) * 32,
)
SMALL = ModelConfig(vocab_size=4096, width=128, layers=3, heads=4, kv_heads=4, head_dim=32, ff=344)
MODELS = {"alpaca_farm": LLAMA_7B, "dpo_rlaif_mistral7b": MISTRAL_7B}


def variants(page):
    """The papers' recipes; with RLHF_JAX_WIDE=1 all variants of a page. The others are small and run in other tests."""
    text = (tiny_farm.ROOT / f"configs/{page}.py").read_text()
    found = re.findall(
        r'"(\w+)": \w+', re.search(r"choose_variant\(\s*variant,\s*\{(.*?)\}", text, re.DOTALL)[1]
    )
    return [name for name in found if name in MODELS or WIDE]


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, np.int32)


def plan_of(config, model, mesh):
    """The longest rows there can be: prompt and response share max_length, the response may be all but a token."""
    if config.job == "ppo":
        return plan.ppo(plan.Networks(model, model, model), config.data.max_prompt_length, 0, config, mesh)
    T = config.data.max_length
    R, chunk = T - 1, config.get("logprob_chunk", 0)
    rows = {"tokens": integers(1, T), "lengths": integers(1), "prompt_lengths": integers(1)}
    pair = {f"{side}_{name}": x for side in ("chosen", "rejected") for name, x in rows.items()}
    reference = {f"ref_{side}": jax.ShapeDtypeStruct((1,), np.float32) for side in ("chosen", "rejected")}
    loss_of, arrays = {
        "sft": (lambda shape, _: losses.sft(shape, R, chunk), rows),
        "reward_model": (lambda shape, _: losses.reward_model(shape), pair),
        "dpo": (
            lambda shape, c: losses.dpo_loss(shape, R, chunk, beta=c.beta, label_smoothing=c.label_smoothing),
            pair | reference,
        ),
    }[config.job]
    return plan.offline(model, loss_of, 100, arrays, config, mesh, scalar=config.job == "reward_model")


if __name__ == "__main__":
    assert jax.device_count() == 8
    for page in tiny_farm.TRAINERS:
        for variant in variants(page):
            began = time.perf_counter()
            config = load_page(str(tiny_farm.ROOT / f"configs/{page}.py:{variant}"))
            mesh = make_mesh(**config.mesh.to_dict())
            made = plan_of(config, MODELS.get(variant, SMALL), mesh)
            found = {"name": f"{page}:{variant}", "paper": variant in MODELS, "gib": fits.needed(made) / GIB}
            found["flops"] = matrix_flops(made.step.trace(made.state, made.batch).jaxpr)
            print(json.dumps(found | {"seconds": time.perf_counter() - began}), flush=True)
