"""Measures labels that exist: models on one scale, annotators against a gold crowd, ratings and rankings.

    python -m rlhf_jax.main --config=configs/measure.py --workdir=runs/farm/measure

The default rates the methods of the farm from the judgments of its evaluation. Asks nobody, needs no jax; writes
measures.txt, summary.json, report.html and a CSV file per table. The variants measure annotators:

    python -m rlhf_jax.main --config=configs/measure.py:annotators --workdir=runs/annotators \\
        --config.annotators=gpt4=gpt4.parquet,claude=claude.parquet --config.gold=humans.parquet

Without gold labels two or more annotators are compared with each other: agreement, Cohen's and Fleiss' kappa,
Krippendorff's alpha. Win rates of label files, plain and length-controlled: configs/evaluate.py:labels. Here are also
win rates by ratings, with their consistency with rankings (sparse_feedback): configs/measure.py:ratings.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "annotators": annotators, "ratings": ratings})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "measure"
    c.seed = 0  # Of the bootstrap and the orders in which Elo plays.
    c.title = "measures"  # Of the report.
    c.min_coverage = 0.8  # A number over a smaller share of its rows is refused.

    # Comma-separated label files with generator_1 and generator_2: Bradley-Terry and Elo ratings of the models.
    # Against one baseline they also give difficulty.parquet, for config.difficulty of evaluate.
    c.games = "runs/farm/evaluate/annotations.parquet"
    c.anchor = ""  # The model whose rating is 1000; "" puts the mean there.
    c.n_bootstrap = 200  # Draws of the games that give the ratings' intervals.

    # Comma-separated NAME=FILE of labels: AlpacaEval's table of evaluators.
    c.annotators = ""
    # A file of gold labels of the same pairs, several rows a pair where several people labelled it. Without it, two or
    # more annotators of the same pairs are compared with each other only.
    c.gold = ""
    c.min_per_generator = 100  # Correlations are over generators with more gold labels than this.

    # Comma-separated NAME=FILE of rated outputs: win rates by ratings. A .csv is sparse_feedback's.
    c.ratings = ""
    c.baseline = ""  # A file of the baseline's rated outputs.
    c.baseline_name = "baseline"  # What it is called.
    # Ranked pairs, by preference or by ranking "(a)", "(b)", "equal": their win rate, and its consistency with the
    # ratings. A .csv is sparse_feedback's.
    c.rankings = ""
    return c


def annotators() -> ConfigDict:
    c = microfarm()
    c.games = ""
    c.annotators = "mine=labels.parquet"
    c.gold = "gold.parquet"
    c.title = "annotators"
    return c


def ratings() -> ConfigDict:
    c = microfarm()
    c.games = ""
    c.ratings = "mine=ratings.parquet"
    c.baseline = "baseline_ratings.parquet"
    c.title = "ratings"
    return c
