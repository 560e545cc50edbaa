"""Ratings against rankings: two reward models from the labels of one judge, best of 64 by each, and both evaluations.

    python -m rlhf_jax.main --config=configs/study.py:ratings_vs_rankings --workdir=runs/studies

The judge rates every sample and compares every pair of the same samples. `:ratings_vs_rankings,quick` is one seed and
best of 16. The paper's policies and judge are real models (GPT-3.5); here judge and world are embedded.

It took 999 s on two CPU cores beside tests: 71.6 % of pairs are consistent; evaluated by rankings, best of 64 by
rankings is above best of 64 by ratings by 4.7 points [-0.5, 9.9], evaluated by ratings by 2.6 [1.4, 3.8].
`:ratings_vs_rankings,quick` took 6 minutes.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

base = module_beside(__file__, "base")

TRAINED_ON = {"ratings": "reward_models/ratings", "rankings": "reward_models/clean"}


def get_config(variant: str = "full") -> ConfigDict:
    return choose_variant(variant, {"full": full, "quick": quick, "smoke": smoke})


def full() -> ConfigDict:
    return _study(seeds=(0, 1, 2))


def quick() -> ConfigDict:
    c = _study(seeds=(0,))
    c.pairs.data.rows = 4000
    c.best_of_64.samples = 16
    return c


def smoke() -> ConfigDict:
    """Every stage, a few steps each: to see that the machinery works, not what it reaches."""
    c = base.small(_study(seeds=(0,)))
    c.rating_model.data.eval_rows = 16
    c.rating_model.epochs = 1.0
    c.rating_model.optimizer.warmup_steps = 1
    c.best_of_64.samples = 2
    c.evaluate.max_instructions = 32
    return c


def _study(*, seeds: tuple[int, ...]) -> ConfigDict:
    c = base.farm(seeds=seeds)
    base.add(c, "rated", "annotate", "ratings")
    c.rated.judges = "configs/judges/micro_rating.yaml"
    base.add(c, "rating_model", "reward_model", "ratings")
    base.add(c, "best_of_64", "generate")
    c.best_of_64.samples = 64
    c.best_of_64.temperature = 1.0
    base.add(c, "best", "best_of_n")
    base.add(c, "consistency", "measure", "ratings")  # Of the labels of both kinds.
    c.consistency.ratings = "samples={ratings}/labels.parquet"
    c.consistency.rankings = "{labels_clean}/labels.parquet"
    c.consistency.baseline = ""
    base.add(c, "by_ratings", "measure", "ratings")  # The evaluation by ratings.
    names = ("sft", *TRAINED_ON)
    c.by_ratings.ratings = ",".join(f"{name}={{rated/{name}}}/labels.parquet" for name in names)
    c.by_ratings.baseline = "{rated/reference}/labels.parquet"
    c.by_ratings.baseline_name = "reference"
    c.evaluate.judges = "configs/judges/micro_clean.yaml"  # The evaluation by rankings.
    c.evaluate.outputs = base.ranked(*names)
    c.evaluate.runs, c.evaluate.labels, c.evaluate.scored = "", "", ""
    c.evaluate.title = "ratings against rankings"

    scored = "data.responses={best_of_64/samples}/outputs.parquet"
    c.stages = (
        *(stage for stage in c.stages if stage[0] in ("data", "sft", "pairs")),
        ("ratings", "rated", "ratings={pairs}/outputs.parquet"),
        ("labels_clean", "labels", "judges=configs/judges/micro_clean.yaml", "p_label_flip=0.0"),
        ("consistency", "consistency"),
        ("reward_models/ratings", "rating_model", "data.train={ratings}/labels.parquet"),
        ("reward_models/clean", "reward_model", "data.train={labels_clean}/labels.parquet"),
        ("best_of_64/samples", "best_of_64"),
        *(
            (f"best_of_64/{name}", "scores", scored, f"model.path={{{model}}}/export")
            for name, model in TRAINED_ON.items()
        ),
        *(
            (f"outputs/{name}", "best", f"scored={{best_of_64/{name}}}/scores.parquet", f"name={name}")
            for name in TRAINED_ON
        ),
        *base.outputs_of("sft"),
        *((f"rated/{name}", "rated", f"ratings={{outputs/{name}}}/outputs.parquet") for name in names),
        ("rated/reference", "rated", "ratings={data}/eval.parquet"),
        ("by_ratings", "by_ratings"),
        ("by_rankings", "evaluate"),
    )
    results = "ranked={by_rankings}/per_instruction.parquet,rated={by_ratings}/leaderboard.csv"
    results += ",consistency={consistency}/consistency.csv"
    models = {f"reward model ({name})": model for name, model in TRAINED_ON.items()}
    base.compare(c, "ratings_vs_rankings", results, models)
    return c
