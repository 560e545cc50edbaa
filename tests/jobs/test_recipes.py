"""The papers' recipes: their numbers, stated a second time, and whether they fit eight accelerators."""

import math
import re

import pytest
import tiny_farm

from rlhf_jax.data.templates import TEMPLATES
from rlhf_jax.settings import load_page
from rlhf_jax.training.optimizer import learning_rate_at, make_optimizer

# AlpacaFarm's examples/scripts/*.sh and arguments; dpo-rlaif's README and config/.
ALPACA_FARM = {"seed": 42, "data.template": "alpaca", "model.dtype": "bfloat16", "optimizer.b1": 0.9}
ALPACA_FARM |= {"optimizer.b2": 0.999, "optimizer.weight_decay": 0.0, "optimizer.max_grad_norm": 1.0}
OFFLINE = ALPACA_FARM | {"data.max_length": 512, "optimizer.schedule": "cosine", "optimizer.eps": 1e-8}
PAIRS = OFFLINE | {
    "data.train": "tatsu-lab/alpaca_farm/alpaca_noisy_multi_preference.json",
    "data.eval_rows": 500,
    "model.init": "runs/alpaca_farm/sft/export",
}
DPO_RLAIF = {
    "data.template": "human_assistant",
    "data.max_length": 512,
    "data.eval_rows": 64,
    "batch_size": 8,
}
DPO_RLAIF |= {"optimizer.b1": 0.0, "optimizer.b2": 0.99, "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.0}
DPO_RLAIF |= {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.max_grad_norm": 10.0}
RECIPES = {
    "sft:alpaca_farm": OFFLINE
    | {
        "model.init": "huggyllama/llama-7b",
        "batch_size": 128,
        "epochs": 3.0,
        "optimizer.learning_rate": 2e-5,
    },
    "reward_model:alpaca_farm": PAIRS
    | {"batch_size": 16, "epochs": 1.0, "optimizer.learning_rate": 3e-6, "center_on": ""},
    "dpo:alpaca_farm": PAIRS
    | {"batch_size": 64, "epochs": 2.0, "optimizer.learning_rate": 1e-6, "beta": 0.1, "label_smoothing": 0.0},
    "ppo:alpaca_farm": ALPACA_FARM
    | {"data.max_prompt_length": 192, "rollout.max_new_tokens": 300, "rollout.temperature": 1.0}
    | {"rollout.batch_size": 512, "minibatch_size": 256, "epochs": 2, "steps": 20_000 * 10 // 512}
    | {"kl_coef": 0.0067, "adaptive_kl": False, "target_kl": 6.0, "kl_horizon": 5120.0}
    | {"gamma": 1.0, "lam": 1.0, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "whiten_rewards": True}
    | {"optimizer.learning_rate": 1e-5, "value_learning_rate": 1e-5, "optimizer.eps": 1e-5}
    | {"optimizer.schedule": "linear", "optimizer.warmup_steps": 5, "save_every": 20},
    "generate:alpaca_farm": {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 300,
        "samples": 1,
    },
    "sft:dpo_rlaif_mistral7b": DPO_RLAIF
    | {"model.init": "mistralai/Mistral-7B-v0.1", "epochs": 9.0, "optimizer.learning_rate": 1e-6},
    "dpo:dpo_rlaif_mistral7b": DPO_RLAIF
    | {"epochs": 3.0, "beta": 0.05, "label_smoothing": 0.0, "optimizer.learning_rate": 1e-7},
}
# Training rows: AlpacaFarm warms up for 3 % of the steps that they make.
ROWS = {"sft:alpaca_farm": 10_000, "reward_model:alpaca_farm": 9_440, "dpo:alpaca_farm": 9_600}


def test_every_recipe_is_here():
    found = set()
    for page in (tiny_farm.ROOT / "configs").glob("*.py"):
        if page.stem == "weight_diff":  # trains nothing; its formats are tested in tests/models
            continue
        found |= {f"{page.stem}:{name}" for name in re.findall(r'"(\w+)": \1\b', page.read_text())}
    ours = {"microfarm", "alpaca", "pairs", "prompts", "chat", "head2head", "outputs", "smoke"}
    ours |= {
        "ratings",
        "rankings",
        "completions",
        "convert",
        "annotators",
        "labels",
        "real_model",
    }  # kinds of labels and measures
    assert {name for name in found if name.split(":")[1] not in ours} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_numbers(name):
    config = tiny_farm.flat(load(name))
    assert {field: config[field] for field in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_fits_eight_accelerators(name):
    config = tiny_farm.flat(load(name))
    assert math.prod(config[f"mesh.{axis}"] for axis in ("data", "fsdp", "tensor")) == 8
    ways = config["mesh.data"] * config["mesh.fsdp"]
    for field in ("batch_size", "minibatch_size", "rollout.batch_size"):
        assert config.get(field, 0) % ways == 0, field
    rows = config.get("minibatch_size", config.get("batch_size"))
    assert rows // ways % config.get("microbatches", 1) == 0
    assert config["data.template"] in TEMPLATES


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("generate")])
def test_its_optimizer_can_be_built(name):
    config = load(name)
    make_optimizer(**config.optimizer.to_dict(), total_steps=100)
    warmup, rate = config.optimizer.warmup_steps, config.optimizer.learning_rate
    if name in ROWS:
        assert warmup == math.ceil(0.03 * config.epochs * ROWS[name] / config.batch_size)
    shape = {"schedule": config.optimizer.schedule, "warmup_steps": warmup, "total_steps": 1000}
    assert learning_rate_at(warmup, rate, **shape) == pytest.approx(rate)


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_to_download_and_what_to_compare_with(name):
    page, variant = name.split(":")
    text = (tiny_farm.ROOT / f"configs/{page}.py").read_text()
    doc = re.search(rf'def {variant}\(\).*?"""(.*?)"""', text, re.DOTALL)[1]
    assert "hf download" in doc and ("Result:" in doc or "compare with" in doc or "accuracy" in doc)


def load(name):
    page, variant = name.split(":")
    return load_page(str(tiny_farm.ROOT / f"configs/{page}.py") + f":{variant}")
