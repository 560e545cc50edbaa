"""Ranks methods: judge win rate against a baseline, true utility against the SFT model, and the report.

    python -m rlhf_jax.main --config=configs/evaluate.py --workdir=runs/farm/evaluate

Writes leaderboard.csv, .md and .txt, summary.json, report.html, annotations.parquet and per_instruction.parquet, and
plots/*.png in the folder of every run. Needs no jax. Judging 3 x 805 outputs with the embedded judges takes under a
minute; answers are kept. A real judge ranks outputs to any instructions:

    python -m rlhf_jax.main --config=configs/evaluate.py:outputs --workdir=runs/rank --config.outputs=a=a.json

Labels that are there already rank methods without a judge or a key (output_1 the baseline's, output_2 the method's):

    python -m rlhf_jax.main --config=configs/evaluate.py:labels --workdir=runs/rank \\
        --config.judged=a=annotations_a.json,b=labels_b.parquet
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "outputs": outputs, "alpaca": alpaca, "labels": labels}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "evaluate"
    c.seed = 0  # Of the order in which outputs are shown, the choice of judge and the bootstrap.

    # Comma-separated NAME=FILE: the outputs to rank. Instructions that some file lacks are left out.
    c.outputs = ",".join(f"{m}=runs/farm/outputs/{m}/outputs.parquet" for m in ("sft", "dpo", "ppo"))
    c.baseline = "runs/farm/data/eval.parquet"  # Outputs every method is compared with.
    c.baseline_name = "reference"  # What it is called.
    c.max_instructions = 0  # The first so many of the baseline's; 0 takes all.

    # Comma-separated NAME=FILE of judged pairs, instead of outputs, baseline and judges: nobody is asked. The
    # annotate job's labels.parquet, this job's annotations.parquet, AlpacaEval's annotations.json, or a .csv of
    # sparse_feedback's rankings. Pairs labelled more than once count once, with the mean of their labels.
    c.judged = ""

    c.judges = "configs/judges/micro_pool.yaml"  # A judge or a pool; no label is flipped here.
    common.asking(c)  # max_usd is for all methods together.
    c.min_coverage = 0.8  # A win rate over a smaller share of the rows is refused.

    # Win rates as if outputs were equally long, too. The next two files make them sharper.
    c.length_control = True
    c.difficulty = ""  # A number per instruction: columns instruction, input, difficulty.
    # Labels of the baseline's model told to be verbose or concise, or AlpacaEval's df_gamed.csv, which holds both.
    c.regulariser = ""
    c.published = ""  # A leaderboard CSV; its rows are shown among ours, each with its own judge.

    # The embedded world's known utility: true win rates, and whether judges and reward models see it.
    c.utility = True  # Only for outputs of the embedded world; without it the next four are not read.
    c.reference_method = "sft"  # The method that utilities are compared with.
    c.labels = "runs/farm/labels/labels.parquet"  # For judge-human agreement; "" leaves it out.
    c.scored = "runs/farm/scores/scores.parquet"  # For reward-model agreement; "" leaves it out.
    c.clear_margin = 0.15  # A pair is clear when its utilities differ by at least this.

    # Comma-separated NAME=FOLDER: runs whose curves are drawn.
    c.runs = ",".join(f"{m}=runs/farm/{m}" for m in ("sft", "reward_model", "dpo", "ppo"))
    c.title = "microfarm"  # Of the report.
    return c


def outputs() -> ConfigDict:
    c = microfarm()
    c.outputs = "mine=outputs.parquet"
    c.baseline = "baseline.parquet"
    c.baseline_name = "baseline"
    c.judges = "configs/judges/gpt4_ranking.yaml"
    c.utility = False
    c.runs = ""
    c.title = "outputs"
    return c


def labels() -> ConfigDict:
    c = outputs()
    c.outputs = ""
    c.baseline = ""  # Needed only where the regulariser is AlpacaEval's df_gamed.csv, which counts its rows.
    c.judges = ""
    c.judged = "mine=annotations.parquet"
    c.title = "labels"
    return c


def alpaca() -> ConfigDict:
    """AlpacaFarm's leaderboard: outputs to AlpacaEval's 805 instructions against text-davinci-003."""
    c = outputs()
    c.outputs = "mine=outputs.json"
    c.baseline = "alpaca_eval.json"  # AlpacaEval's baseline outputs.
    c.baseline_name = "text_davinci_003"
    c.published = "configs/leaderboards/alpaca_eval_1.csv"
    c.title = "AlpacaEval 1"
    return c
