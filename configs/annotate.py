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

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


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

    # One of these is the source, the others are "".
    c.samples = "runs/farm/pairs/outputs.parquet"  # Records with a list `outputs`, paired within each prompt.
    c.pairs = ""  # Records with output_1 and output_2.
    c.outputs_1 = ""  # A model's outputs, the baseline's, and
    c.outputs_2 = ""  # those of another one on the same instructions.
    c.ratings = ""  # Records with `output` or a list `outputs`, each of which is rated.
    c.rankings = ""  # Records with a list `outputs`, which is put in order.
    c.instructions = ""  # Records that models answer.
    c.feedback = ""  # A file that is labelled already, and the form it has:
    # alpaca_farm, alpaca_eval, trl, ultrafeedback, rrhf, sparse_ratings or sparse_rankings.
    c.feedback_format = ""

    c.ordered = False  # With `outputs_1`: both files are in the same order; False joins by prompt.
    c.one_pair_per_prompt = True  # With `samples`: False compares every sample once, n pairs of n samples.

    c.n_samples = 1  # With `instructions`: answers to each.
    c.max_prompt_words = 2000  # With `instructions`: prompts from this length on are left out,
    c.max_prompt_chars = 8000  # and from this one.

    # Further files beside labels.parquet, one for each format named (as above, or trl_conversational): feedback.FORMAT.
    # Ratings and rankings become pairs where the format holds pairs, and scored responses where it holds scores.
    c.formats = ()

    c.judges = "configs/judges/micro_pool.yaml"  # A judge or a pool.
    c.reparse = False  # Ask nobody; read the answers of an earlier run again, say after a change of `parser`.
    c.p_label_flip = 0.25  # Share of labels that are flipped (before asking, so flipped ones cost nothing).
    common.asking(c)
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
