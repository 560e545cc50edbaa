"""Best of n: keeps the best of the scored samples of each prompt, to be ranked (evaluate) or imitated (sft).

    python -m rlhf_jax.main --config=configs/best_of_n.py --workdir=runs/farm/best_of_n

Reads what score wrote of n samples a prompt (configs/generate.py with --config.samples=16). Writes outputs.parquet, as
generate does; rows.parquet, demonstrations for configs/sft.py; best_of_k.csv and best_of_n.json: what the best of k
samples is worth for every k up to n, with its standard error over prompts, and the bound of its KL divergence.
configs/expert_iteration.py has all stages on one page.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "best_of_n"
    c.scored = (
        "runs/farm/scores/scores.parquet"  # Responses with their scores, as configs/score.py writes them.
    )
    c.name = "best_of_n"  # The `generator` column.
    c.top_k = 1  # The best so many different responses of a prompt are kept; equal scores: the first.
    c.per_prompt = 1  # At most so many of them become rows.parquet, also where the file asks a prompt twice.
    return c
