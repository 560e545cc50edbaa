"""Measures labels that exist: models on one scale, annotators against a gold crowd, ratings, published benchmarks.

    python -m rlhf_jax.main --config=configs/measure.py --workdir=runs/farm/measure

The default rates the methods of the farm from the judgments of its evaluation. Asks nobody, needs no jax; writes
measures.txt, summary.json, report.html and a CSV file per table. The variants measure annotators:

    python -m rlhf_jax.main --config=configs/measure.py:annotators --workdir=runs/annotators \\
        --config.annotators=gpt4=gpt4.parquet,claude=claude.parquet --config.gold=humans.parquet

Without gold labels two or more annotators are compared with each other: agreement, Cohen's and Fleiss' kappa,
Krippendorff's alpha. Win rates of label files, plain and length-controlled: configs/evaluate.py:labels. Here are also
win rates by ratings, with their consistency with rankings (sparse_feedback): configs/measure.py:ratings.

Published benchmarks are read as they are published. RewardBench 2 is of reward models and judges, whose scores or
labels of its rows `score` and `annotate` make; ratings and scores give all its subsets, pairs and rankings all but
Ties, which asks for margins:

    python -m rlhf_jax.main --config=configs/score.py --workdir=runs/rb2/scores \\
        --config.data.responses=reward_bench_2.parquet --config.data.max_length=2048
    python -m rlhf_jax.main --config=configs/annotate.py:ratings --workdir=runs/rb2/rated \\
        --config.ratings=reward_bench_2.parquet --config.judges=configs/judges/mt_bench.yaml
    python -m rlhf_jax.main --config=configs/measure.py:reward_bench --workdir=runs/rb2/measured \\
        --config.benchmark_labels=rm=runs/rb2/scores/scores.parquet,mt=runs/rb2/rated/labels.parquet

JudgeBench is of judges that are shown both orders of a pair:

    python -m rlhf_jax.main --config=configs/annotate.py --workdir=runs/jb/labels --config.samples= \\
        --config.pairs=judge_bench.jsonl --config.judges=configs/judges/arena_hard.yaml --config.p_label_flip=0
    python -m rlhf_jax.main --config=configs/measure.py:judge_bench --workdir=runs/jb/measured

Arena-Hard's five verdicts, its own judgments or labels of configs/judges/arena_hard.yaml, give scores of models against
a baseline, with control of style, how many pairs of models they tell apart, and their agreement with a ranking:

    python -m rlhf_jax.main --config=configs/measure.py:arena_hard --workdir=runs/arena \\
        --config.arena=data/arena-hard-v2.0/model_judgment/gpt-4.1 --config.reference=humans.csv \\
        --config.arena_answers=data/arena-hard-v2.0/model_answer
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant,
        {
            "microfarm": microfarm,
            "annotators": annotators,
            "ratings": ratings,
            "reward_bench": reward_bench,
            "judge_bench": judge_bench,
            "arena_hard": arena_hard,
        },
    )


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

    c.benchmark = ""  # RewardBench 2's or JudgeBench's file, and
    # comma-separated NAME=FILE of scores, ratings, rankings or pairs of its rows, or of what JudgeBench's code wrote.
    c.benchmark_labels = ""

    # Comma-separated files or folders of Arena-Hard's judgments, or of labels by a judge shown both orders.
    c.arena = ""
    c.strong_weight = 3.0  # As how many games a verdict such as A>>B counts.
    c.style = ()  # What of length, headers, lists and bold is held equal; () compares responses as they are.
    c.style_centred = (
        False  # True scores at the mean difference of style, as arena-hard-auto, and not at none.
    )
    c.arena_answers = (
        ""  # Arena-Hard's files of answers, for `style`; label files hold their outputs themselves.
    )
    # A ranking to agree with: a .csv or table of model and score (or rating), with score_low and score_high.
    c.reference = ""
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


def reward_bench() -> ConfigDict:
    c = microfarm()
    c.games = ""
    c.benchmark = "reward_bench_2.parquet"
    c.benchmark_labels = "my_rm=runs/rb2/scores/scores.parquet"
    c.title = "RewardBench 2"
    return c


def judge_bench() -> ConfigDict:
    c = microfarm()
    c.games = ""
    c.benchmark = "judge_bench.jsonl"
    c.benchmark_labels = "arena_hard=runs/jb/labels/labels.parquet"
    c.title = "JudgeBench"
    return c


def arena_hard() -> ConfigDict:
    c = microfarm()
    c.games = ""
    c.arena = "model_judgment"
    c.arena_answers = "model_answer"
    c.style = ("length", "headers", "lists", "bold")
    c.title = "Arena-Hard"
    return c
