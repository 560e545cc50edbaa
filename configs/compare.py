"""Holds a study's results against what others have published of the same experiment.

    python -m rlhf_jax.main --config=configs/compare.py --workdir=runs/farm/compare

Reads what evaluate, or another stage, has measured, of one seed or of several (NAME@SEED=FILE), and the published
numbers and claims of a YAML file. Writes report.html, with each claim's verdict and its intervals, verdicts.txt and
.json, comparison.csv and figures/*.svg. Needs no jax. It is the last stage of the studies of configs/studies.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "compare"
    c.seed = 0  # Of the samples that are shown.

    c.claims = (
        "configs/studies/table2.yaml"  # What was published, and which columns of which tables it speaks of.
    )
    # The tables: NAME=FILE with commas between them; NAME@SEED=FILE where there are several seeds.
    c.results = "ranked=runs/farm/evaluate/per_instruction.parquet"
    # NAME=FOLDER with commas between them: runs whose curves and times are shown; of several seeds, NAME@SEED=FOLDER.
    c.runs = ",".join(f"{m}=runs/farm/{m}" for m in ("sft", "reward_model", "dpo", "ppo"))
    c.samples = 6  # Instructions that are shown with every method's response.
    return c
