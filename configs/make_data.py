"""Instruction records for every stage of a study, one file per purpose, no prompt in two of them.

    python -m rlhf_jax.main --config=configs/make_data.py --workdir=runs/farm/data

Writes sft, preference, unlabeled, val and eval .parquet (instruction, input, output) and the folder tokenizer: the
embedded world, in half a minute. Your own records are split the same way, without a tokenizer:

    python -m rlhf_jax.main --config=configs/make_data.py --workdir=runs/mine/data --config.instructions=mine.json
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "make_data"
    c.seed = 0  # Of the instructions and demonstrations, or of how yours are split.

    c.scale = 1.0  # 1 is AlpacaFarm's 10k/10k/20k/2k/805 instructions.
    c.vocab_size = 1024  # Of the tokenizer that is trained on them.
    # Your own instruction records (instruction, input, output); "" is the embedded world.
    c.instructions = ""
    c.rows = 0  # So many of them, drawn with the seed; 0 takes all.
    return c
