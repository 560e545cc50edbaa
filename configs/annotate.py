"""Asks judges about responses, or models for responses, and writes labels.parquet.

    python -m rlhf_jax.main --config=configs/annotate.py --workdir=runs/farm/labels

The default judges are the embedded pool of thirteen with a quarter of the labels flipped, AlpacaFarm's training
annotator. A real judge is another file: --config.judges=configs/judges/gpt4_ranking.yaml and a key in the
environment. Judges never see the human utility, and nothing is asked twice: answers are kept in answers.sqlite.

The judge's kind must fit the source: `pairs`, `samples` and `outputs_1`/`outputs_2` want a pairwise judge, `ratings`
a rating judge, `rankings` a ranking or a pairwise one, `instructions` one that completes. configs/judges/README.md
says which is which. `feedback` asks nobody: it reads what was labelled elsewhere.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant,
        {
            "microfarm": microfarm,
            "head2head": head2head,
            "ratings": ratings,
            "rankings": rankings,
            "completions": completions,
            "convert": convert,
        },
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "annotate"
    c.seed = 0  # Of the order of outputs, the choice of judge and the noise.

    # One source. `samples`: records with a list `outputs`, paired within each prompt. `pairs`: records with output_1
    # and output_2. `outputs_1` and `outputs_2`: two models' outputs on the same instructions. `ratings`: records with
    # `output` or a list `outputs`, each rated. `rankings`: records with a list `outputs`, put in order.
    # `instructions`: records that models answer. `feedback`: a file that is labelled already.
    c.samples = "runs/farm/pairs/outputs.parquet"
    c.pairs = ""
    c.outputs_1 = ""  # The baseline.
    c.outputs_2 = ""
    c.ratings = ""
    c.rankings = ""
    c.instructions = ""
    c.feedback = ""
    # alpaca_farm, alpaca_eval, trl, ultrafeedback, rrhf, sparse_ratings or sparse_rankings.
    c.feedback_format = ""

    c.ordered = False  # With `outputs_1`: both files are in the same order; False joins by prompt.
    c.one_pair_per_prompt = True  # With `samples`: False compares every sample once, n pairs of n samples.

    # With `instructions`: answers to each, and the length from which on prompts are left out.
    c.n_samples = 1
    c.max_prompt_words = 2000
    c.max_prompt_chars = 8000

    # Further files beside labels.parquet, one for each format named (as above, or trl_conversational): feedback.FORMAT.
    # Ratings and rankings become pairs where the format holds pairs, and scored responses where it holds scores.
    c.formats = ()

    c.judges = "configs/judges/micro_pool.yaml"  # A judge or a pool.
    c.reparse = False  # Ask nobody; read the answers of an earlier run again, say after a change of `parser`.
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


def ratings() -> ConfigDict:
    c = microfarm()
    c.samples = ""
    c.ratings = "runs/farm/pairs/outputs.parquet"
    c.judges = "configs/judges/micro_rating.yaml"
    c.p_label_flip = 0.0
    c.formats = ("rrhf",)
    return c


def rankings() -> ConfigDict:
    c = microfarm()
    c.samples = ""
    c.rankings = "runs/farm/pairs/outputs.parquet"
    c.judges = "configs/judges/micro_ranking.yaml"
    c.p_label_flip = 0.0
    c.formats = ("rrhf", "trl")
    return c


def completions() -> ConfigDict:
    c = microfarm()
    c.samples = ""
    c.instructions = "runs/farm/data/sft.parquet"
    c.judges = "configs/judges/micro_completions.yaml"
    c.p_label_flip = 0.0
    return c


def convert() -> ConfigDict:
    c = microfarm()
    c.samples = ""
    c.feedback = "runs/annotations.json"
    c.feedback_format = "alpaca_eval"
    c.formats = ("trl",)
    return c
