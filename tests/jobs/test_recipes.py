"""The papers' recipes: their numbers, stated a second time, and whether they fit eight accelerators."""

import ast
import math

import pytest
import test_config_pages
import tiny_farm

from rlhf_jax.data.templates import TEMPLATES
from rlhf_jax.errors import UserError
from rlhf_jax.settings import load_page
from rlhf_jax.training.optimizers.optimizer import learning_rate_at, make_optimizer

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
    "alpaca_farm/sft": OFFLINE
    | {
        "model.init": "huggyllama/llama-7b",
        "batch_size": 128,
        "epochs": 3.0,
        "optimizer.learning_rate": 2e-5,
    },
    "alpaca_farm/reward_model": PAIRS
    | {"batch_size": 16, "epochs": 1.0, "optimizer.learning_rate": 3e-6, "center_on": ""},
    "alpaca_farm/dpo": PAIRS
    | {"batch_size": 64, "epochs": 2.0, "optimizer.learning_rate": 1e-6, "beta": 0.1, "label_smoothing": 0.0},
    "alpaca_farm/ppo": ALPACA_FARM
    | {"data.max_prompt_length": 192, "rollout.max_new_tokens": 300, "rollout.temperature": 1.0}
    | {"rollout.batch_size": 512, "minibatch_size": 256, "epochs": 2, "steps": 20_000 * 10 // 512}
    | {"kl_coef": 0.0067, "adaptive_kl": False, "target_kl": 6.0, "kl_horizon": 5120.0}
    | {"gamma": 1.0, "lam": 1.0, "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "whiten_rewards": True}
    | {"optimizer.learning_rate": 1e-5, "value_learning_rate": 1e-5, "optimizer.eps": 1e-5}
    | {"optimizer.schedule": "linear", "optimizer.warmup_steps": 5, "save_every": 20},
    "alpaca_farm/generate": {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_new_tokens": 300,
        "samples": 1,
    },
    "dpo_rlaif/sft": DPO_RLAIF
    | {"model.init": "mistralai/Mistral-7B-v0.1", "epochs": 9.0, "optimizer.learning_rate": 1e-6},
    "dpo_rlaif/dpo": DPO_RLAIF
    | {"epochs": 3.0, "beta": 0.05, "label_smoothing": 0.0, "optimizer.learning_rate": 1e-7},
}
# RRHF's train.sh, train.py and response_gen.py.
RECIPES |= {
    "rrhf/rrhf": {"data.max_length": 192, "batch_size": 64, "epochs": 3.0, "optimizer.learning_rate": 2e-5}
    | {"optimizer.weight_decay": 0.0, "optimizer.schedule": "cosine", "rank_weight": 1.0, "sft_weight": 1.0}
    | {
        "length_penalty": 1.0,
        "normalisation": "longest_row",
        "data.query": "prompt",
        "model.dtype": "bfloat16",
    },
    "rrhf/generate": {"beams": 4, "beam_groups": 4, "diversity_penalty": 1.0, "samples": 4}
    | {"max_new_tokens": 128, "data.max_prompt_length": 256},
}
# Training rows: AlpacaFarm and RRHF warm up for 3 % of the steps that they make.
ROWS = {
    "alpaca_farm/sft": 10_000,
    "alpaca_farm/reward_model": 9_440,
    "alpaca_farm/dpo": 9_600,
    "rrhf/rrhf": 76_256,
}


# These train nothing, and their formats are tested with the job's.
DIFFERENCES = ("alpaca_farm/weight_diff", "rrhf/weight_diff")


def test_every_recipe_is_here():
    assert set(test_config_pages.RECIPES) == {f"papers/{name}" for name in (*RECIPES, *DIFFERENCES)}


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


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("generate")])
def test_its_optimizer_can_be_built(name):
    config = load(name)
    make_optimizer(**config.optimizer.to_dict(), total_steps=100)
    warmup, rate = config.optimizer.warmup_steps, config.optimizer.learning_rate
    if name in ROWS:
        assert warmup == math.ceil(0.03 * config.epochs * ROWS[name] / config.batch_size)
    shape = {"schedule": config.optimizer.schedule, "warmup_steps": warmup, "total_steps": 1000}
    assert learning_rate_at(warmup, rate, **shape) == pytest.approx(rate)


@pytest.mark.parametrize("name", (*RECIPES, *DIFFERENCES))
def test_says_what_to_download_and_run_and_what_to_compare_with(name):
    doc = ast.get_docstring(ast.parse((test_config_pages.CONFIGS / f"papers/{name}.py").read_text()))
    assert "hf download" in doc and f"--config=configs/papers/{name}.py --workdir=" in doc
    for said in ("Hardware: ", "Time: ", "Result: "):
        assert said in doc


OWN = "this recipe is a page of its own: "


@pytest.mark.parametrize(
    ("spelling", "page", "said"),
    [
        *(
            (f"{x.split('/')[1]}.py:alpaca_farm", x, OWN)
            for x in [*RECIPES, *DIFFERENCES]
            if "alpaca_farm/" in x
        ),
        *((f"{x.split('/')[1]}.py:dpo_rlaif_mistral7b", x, OWN) for x in RECIPES if "dpo_rlaif/" in x),
        ("weight_diff.py:wombat", "rrhf/weight_diff", "papers' recipes are pages of their own: "),
    ],
)
def test_a_recipe_that_was_a_variant_is_refused_by_the_name_of_its_page(spelling, page, said):
    with pytest.raises(UserError, match=r"^--config: no variant '\w+'; ") as refused:
        load_page(f"{test_config_pages.CONFIGS}/{spelling}")
    first, _, pages = str(refused.value).partition(said)
    assert f"configs/papers/{page}.py" in pages.split(", ") and "did you mean" not in first


def load(name):
    return load_page(f"{test_config_pages.CONFIGS}/papers/{name}.py")
