"""Run by test_recipes_compile.py on 8 devices: the trainers' pages, compiled without weights.

For each it prints a JSON line: name, folder of the paper, GiB per device, FLOPs, seconds.
"""

import json
import time

import jax
import numpy as np
import test_config_pages
import tiny_farm
from wide import WIDE

from rlhf_jax.methods import dpo, ppo, reward_model, sft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.model import Model
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.settings import load_page
from rlhf_jax.training.loop.program_costs import GIB, matrix_flops
from rlhf_jax.training.run import memory_check, offline
from rlhf_jax.training.run.encoded_rows import Rows
from rlhf_jax.training.run.online_models import OnlineModels, Scorer
from rlhf_jax.training.run.session import Network

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
MODELS = {"papers/alpaca_farm": LLAMA_7B, "papers/dpo_rlaif": MISTRAL_7B}


def specs(job):
    """A job's pages among the papers' recipes; with RLHF_JAX_WIDE=1 its own page's variants, too.

    Those are small, and run in other tests.
    """
    own = [f"{job}.py:{name}" for name in test_config_pages.variants(job) if WIDE]
    return [f"{recipe}.py" for recipe in test_config_pages.recipes(job)] + own


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, np.int32)


def plan_of(config, model, mesh):
    """The longest rows there can be: prompt and response share max_length, the response may be all but a token."""
    if config.job == "ppo":
        return ppo.ppo_plan(
            OnlineModels(model, (Scorer(Model(model, {})),), {"value": model}, ("value",)),
            config.data.max_prompt_length,
            0,
            config,
            mesh,
        )
    T = config.data.max_length
    R, chunk = T - 1, config.get("logprob_chunk", 0)
    rows = {"tokens": integers(1, T), "lengths": integers(1), "prompt_lengths": integers(1)}
    pair = {f"{side}_{name}": x for side in ("chosen", "rejected") for name, x in rows.items()}
    reference = {f"ref_{side}": jax.ShapeDtypeStruct((1,), np.float32) for side in ("chosen", "rejected")}
    loss_of, arrays = {
        "sft": (lambda shape, _: sft.sft_loss_fn(shape, R, chunk), rows),
        "reward_model": (lambda shape, _: reward_model.reward_model_loss_fn(shape), pair),
        "dpo": (
            lambda shape, c: dpo.dpo_loss_fn(shape, R, chunk, beta=c.beta, label_smoothing=c.label_smoothing),
            pair | reference,
        ),
    }[config.job]
    rows = Rows(1000, np.ones(1000), lambda index_B, rows: arrays)
    network = Network(model, read=dict, scalar=config.job == "reward_model")
    return offline.offline_plan(network, offline.Offline(loss_of, rows, rows, ()), 100, config, mesh)


if __name__ == "__main__":
    assert jax.device_count() == 8
    for spec in [spec for job in tiny_farm.TRAINERS for spec in specs(job)]:
        began = time.perf_counter()
        config = load_page(f"{test_config_pages.CONFIGS}/{spec}")
        mesh, paper = make_mesh(**config.mesh.to_dict()), spec.rpartition("/")[0]
        made = plan_of(config, MODELS.get(paper, SMALL), mesh)
        found = {"name": spec, "paper": paper, "gib": memory_check.needed(made) / GIB}
        found["flops"] = matrix_flops(made.step.trace(made.state, made.batch).jaxpr)
        print(json.dumps(found | {"seconds": time.perf_counter() - began}), flush=True)
