"""Asks judges which of two responses is better, and writes labels.parquet.

    python -m rlhf_jax.main --config=configs/annotate.py --workdir=runs/farm/labels

The default judges are the embedded pool of thirteen with a quarter of the labels flipped, AlpacaFarm's training
annotator. A real judge is another file: --config.judges=configs/judges/gpt4_ranking.yaml and a key in the
environment. Judges never see the human utility, and nothing is asked twice: answers are kept in answers.sqlite.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm, "head2head": head2head})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "annotate"
    c.seed = 0  # Of the order of outputs, the choice of judge and the noise.

    # One of three sources. `samples`: records with a list `outputs`, paired within each prompt. `pairs`: records
    # with output_1 and output_2. `outputs_1` and `outputs_2`: two models' outputs on the same instructions.
    c.samples = "runs/farm/pairs/outputs.parquet"
    c.pairs = ""
    c.outputs_1 = ""  # The baseline.
    c.outputs_2 = ""

    c.one_pair_per_prompt = True  # With `samples`: False compares every sample once, n pairs of n samples.

    c.judges = "configs/judges/micro_pool.yaml"  # A judge or a pool.
    c.p_label_flip = 0.25  # Share of labels that are flipped (before asking, so flipped ones cost nothing).
    c.max_concurrency = 32  # Requests under way at a time.
    c.cache = ""  # SQLite file of answers; "" keeps it in the workdir.

    # How judges are asked. online; batch: the provider's batch service, half the price, within a day, and the
    # same command takes up its batches again; replay: nobody is asked; cancel: stops the batches and does no more.
    c.transport = "online"
    c.dry_run = False  # Only tell how many calls, tokens, dollars and seconds it would be.
    c.max_usd = 0.0  # Stop before more than this could be spent; 0 is no limit.
    c.requests_per_minute = 0.0  # Of each model; 0 follows the provider's headers.
    c.tokens_per_minute = 0.0
    c.timeout_s = 120.0  # Of one request.
    c.import_answers = ""  # Parquet files of answers: into the cache before, and all of the cache after.
    c.export_answers = ""
    return c


def head2head() -> ConfigDict:
    c = microfarm()
    c.samples = ""
    c.outputs_1 = "runs/farm/outputs/sft/outputs.parquet"
    c.outputs_2 = "runs/farm/outputs/ppo/outputs.parquet"
    c.judges = "configs/judges/micro_pool.yaml"
    c.p_label_flip = 0.0
    return c
