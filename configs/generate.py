"""Samples responses from a model.

    python -m rlhf_jax.main --config=configs/generate.py --workdir=runs/farm/outputs/sft

Writes outputs.parquet: instruction, input, output (or `outputs`, a list, when samples > 1), generator. With beams
nothing is drawn: beam search, with beam_groups a diverse one, finds likely responses, and beam_scores are theirs.
`:pairs` draws two samples per preference prompt, which is what the annotators compare.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "pairs": pairs, "alpaca": alpaca})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "generate"
    c.seed = 0  # Of what is sampled.

    c.model = ConfigDict()
    c.model.path = "runs/farm/sft/export"  # A Hugging Face folder, a .gguf file or a trainer's workdir.
    c.model.name = "sft"  # The `generator` column.
    common.read_model(c.model)

    c.data = ConfigDict()
    c.data.prompts = "runs/farm/data/eval.parquet"  # Instruction records or prompt records.
    c.data.rows = 0  # The first rows only; 0 takes all.
    c.data.max_prompt_length = 36  # Tokens.
    c.data.too_long = "drop"  # Longer prompts: drop, or cut_prompt at its left.
    common.texts(c.data)

    c.samples = 1  # Responses per prompt.
    c.batch_size = 256  # Responses at a time, over all devices.
    c.max_new_tokens = 28  # The longest response.
    c.temperature = 0.7  # 0 is greedy.
    c.top_p = 1.0  # The likeliest tokens that have this probability together; 1 is all.
    c.top_k = 0  # So many of the likeliest tokens; 0 is all.
    c.beams = 0  # So many beams, of which the best `samples` are written; 0 samples instead.
    c.beam_groups = 1  # Groups of beams that are kept apart (diverse beam search); divides beams.
    c.diversity_penalty = 0.0  # In nats, for a token that a beam of an earlier group has just taken.

    common.devices(c)
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
