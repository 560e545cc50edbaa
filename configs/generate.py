"""Samples responses from a model.

    python -m rlhf_jax.main --config=configs/generate.py --workdir=runs/farm/outputs/sft

Writes outputs.parquet: instruction, input, output (or `outputs`, a list, when samples > 1), generator.
`:pairs` draws two samples per preference prompt, which is what the annotators compare.
`:alpaca_farm` samples as AlpacaFarm's paper does for its evaluation.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "pairs": pairs, "alpaca": alpaca, "alpaca_farm": alpaca_farm}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "generate"
    c.seed = 0

    c.model = ConfigDict()
    c.model.path = "runs/farm/sft/export"  # A Hugging Face folder, a .gguf file or a trainer's workdir.
    c.model.adapter = ""  # A PEFT folder that is laid over it.
    c.model.name = "sft"  # The `generator` column.
    c.model.dtype = "float32"

    c.data = ConfigDict()
    c.data.prompts = "runs/farm/data/eval.parquet"
    c.data.rows = 0  # The first rows only; 0 takes all.
    c.data.template = "brief"
    c.data.thoughts = "keep"  # With chat, of reasoning models: keep, drop, or last (those of the last turn).
    c.data.generation_prompt = (
        "template"  # Or training, sampling: which decides where chat texts meet prompts.
    )
    c.data.chat_template = ""  # With chat, which of a tokenizer's named templates; "": its default.
    c.data.date = ""  # What chat templates that ask for it are told, 2026-11-29; "": that of the first start.
    c.data.max_prompt_length = 36
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at its left.

    c.samples = 1  # Responses per prompt.
    c.batch_size = 256  # Responses at a time, over all devices.
    c.max_new_tokens = 28
    c.temperature = 0.7  # 0 is greedy.
    c.top_p = 1.0
    c.top_k = 0

    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    c.distributed = "auto"
    return c


def pairs() -> ConfigDict:
    c = microfarm()
    c.data.prompts = "runs/farm/data/preference.parquet"
    c.data.rows = 0
    c.samples = 2
    c.temperature = 1.0
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.model.path = "runs/alpaca/sft/export"
    c.data.prompts = "prompts.parquet"
    c.data.template = "alpaca"
    c.data.max_prompt_length = 256
    c.batch_size = 16
    c.max_new_tokens = 256
    return c


def alpaca_farm() -> ConfigDict:
    """AlpacaFarm's outputs for evaluation: one sample for each of its 805 instructions.

    hf download tatsu-lab/alpaca_farm --repo-type=dataset --local-dir=tatsu-lab/alpaca_farm

    Lengths to compare with, in characters (AlpacaEval's leaderboard): PPO on human labels 803, Alpaca-7B 396. The win
    rates stand at the variants `alpaca_farm` of sft, dpo and ppo.
    """
    c = microfarm()
    c.model.path = "runs/alpaca_farm/ppo/export"
    c.model.name = "ppo"
    c.model.dtype = "bfloat16"
    c.data.prompts = "tatsu-lab/alpaca_farm/eval.json"
    c.data.template = "alpaca"
    c.data.max_prompt_length = 1024  # Longer ones are dropped and counted; AlpacaFarm takes any.
    c.batch_size = 64
    c.max_new_tokens = 300
    c.temperature = 0.7
    c.top_p = 0.9  # The paper names only the temperature; this is the default of its code.
    c.mesh.fsdp = 8
    return c
