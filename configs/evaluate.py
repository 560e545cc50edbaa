"""Ranks methods: judge win rate against a baseline, true utility against the SFT model, and the report.

    python -m rlhf_jax.main --config=configs/evaluate.py --workdir=runs/farm/evaluate

Writes leaderboard.csv, leaderboard.md, report.html and annotations.parquet.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "evaluate"
    c.seed = 0

    # Comma-separated NAME=FILE: the outputs to rank, all on the same instructions.
    c.outputs = ",".join(f"{m}=runs/farm/outputs/{m}/outputs.parquet" for m in ("sft", "dpo", "ppo"))
    c.baseline = "runs/farm/data/eval.parquet"  # Outputs every method is compared with.
    c.baseline_name = "reference"
    c.reference_method = "sft"  # The method that utilities are compared with.

    c.judges = "configs/judges/micro_pool.yaml"
    c.max_concurrency = 32
    c.max_instructions = 0  # The first so many; 0 takes all.
    c.cache = ""  # SQLite file of answers; "" keeps it in the workdir.
    c.min_coverage = 0.8  # A win rate over a smaller share of the rows is refused.

    # The embedded world's known utility: true win rates, and how often judges and reward models agree with it.
    c.utility = True  # Only for outputs of the embedded world.
    c.labels = "runs/farm/labels/labels.parquet"  # For judge-human agreement; "" leaves it out.
    c.scored = "runs/farm/scores/scores.parquet"  # For reward-model agreement; "" leaves it out.
    c.clear_margin = 0.15  # A pair is clear when its utilities differ by at least this.

    c.runs = ",".join(f"{m}=runs/farm/{m}" for m in ("sft", "reward_model", "dpo", "ppo"))  # Curves to draw.
    c.title = "microfarm"
    return c
