"""What responses are truly worth along a run, and along the n of best-of-n: where a reward model is over-optimised.

    python -m rlhf_jax.main --config=configs/utility_curves.py --workdir=runs/farm/utility_curves

For the embedded world, whose true utility is known. Reads the samples that a run kept at its evaluations, and scored
samples of each prompt (configs/score.py). Writes steps.parquet and best_of.parquet, a row for every run, place and
prompt: score, true utility, win against the baseline's output; and curves.txt, their means. Needs no jax.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "utility_curves"
    c.runs = (
        "ppo=runs/farm/ppo"  # NAME=FOLDER with commas between them: runs of methods that sample; "": none.
    )
    c.scored = ""  # NAME=FILE of scored samples, for best-of-n; "": none.
    c.baseline = "runs/farm/data/val.parquet"  # Outputs to the same prompts; "": no win rates.
    return c
