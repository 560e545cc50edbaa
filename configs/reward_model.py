"""Reward model: Bradley-Terry on pairwise labels, or ratings, starting from the SFT model.

    python -m rlhf_jax.main --config=configs/reward_model.py --workdir=runs/farm/reward_model
    python -m rlhf_jax.main --config=configs/reward_model.py:ensemble --workdir=runs/farm/reward_ensemble
    python -m rlhf_jax.main --config=configs/reward_model.py:ratings --workdir=runs/farm/reward_ratings

Reads any pairwise record; `:alpaca` has the sizes for real instruction text. `:ratings` reads rated responses, as
`--config=configs/annotate.py:ratings --workdir=runs/farm/ratings` writes them. `:ensemble` trains four models in one
program; `score` and `ppo` read its export as one. accuracy.json says how often held-out pairs are ranked as labelled,
by annotator, confidence and margin.

What all trainers share stands in configs/common.py; the papers' recipes in configs/papers/.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(
        variant, {"microfarm": microfarm, "ratings": ratings, "ensemble": ensemble, "alpaca": alpaca}
    )


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "reward_model"
    c.seed = 0  # Of the rows that are drawn, their order, and the score head; members have this and those behind it.

    c.data = ConfigDict()
    c.data.train = "runs/farm/labels/labels.parquet"  # Pairwise labels.
    c.data.eval = ""  # Pairwise labels; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 300  # At most this many pairs, drawn with the seed.
    c.data.max_length = 56  # Tokens of prompt + response + end, of either side.
    # Longer pairs: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "drop"
    # auto: a step's batch_size pairs in as few array rows as hold them, with the same loss; on: as many pairs as fit
    # into twice max_length tokens are a row, and batch_size counts those; off.
    c.data.packing = "auto"
    common.pair_rows(c.data)
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # The model whose trunk is trained further.
    # Where its score stands: eos (behind the response), last (the response's last token), template (the last token that
    # the chat template writes). "": where a reward model that is trained further has it, else eos.
    c.model.score_at = ""
    common.trained_model(c.model)

    common.lora(c)

    # bradley_terry, of pairs; of ratings regression (squared error of a sigmoid to the place on the scale), or ordinal
    # (cumulative logits, a threshold between any two levels; ratings are whole numbers).
    c.loss = "bradley_terry"
    # Pairs: a column that says by how much the chosen score should be higher, in logits, times margin_scale. Of
    # preference and p_2 it is the label's strength, from 0 (a tie) to 1. "": no margin.
    c.margin = ""
    c.margin_scale = 1.0  # What the column is multiplied with.
    c.centre_coef = (
        0.0  # Weight of (chosen + rejected)^2, which keeps scores around 0; Eisenstein et al. take 0.01.
    )
    # A row is a prompt with all its pairs, and batch_size counts prompts: none of its comparisons is in another batch,
    # and every response is computed once (InstructGPT).
    c.group_by_prompt = False
    c.rating_low = 1.0  # Ratings: the ends of the scale; ratings off it are left out and counted.
    c.rating_high = 7.0  # The best that can be given.
    # What readers take for the score: logit, the head's own number; or sigmoid, of ratings the predicted place on the
    # scale, from 0 to 1. Both order responses alike; it is written into the export.
    c.score_as = "logit"

    c.members = (
        1  # From 2 on an ensemble: so many models in one program, with their own heads, adapters and updates.
    )
    c.member_order = False  # Each member goes through the rows in an order of its own.
    # How readers combine members, unless their page says otherwise: mean, min, or mean_minus_variance.
    c.combine = "mean"
    c.combine_coef = 1.0  # What the variance is multiplied with.

    # After training, the mean score of these demonstrations is subtracted from every score: its zero is arbitrary.
    c.center_on = "runs/farm/data/val.parquet"  # Instruction records; "" leaves scores as they are.
    c.center_rows = 256  # So many, drawn with the seed; those longer than data.max_length are left out.

    c.batch_size = 64  # Pairs per step, over all devices.
    c.epochs = 0.6  # Of the 20k pairs that the farm page makes.
    common.optimizer(c, learning_rate=3e-4, warmup_steps=10)
    c.optimizer.weight_decay = 0.01

    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=50, save_every=100)
    return c


def ratings() -> ConfigDict:
    c = microfarm()
    c.data.train = "runs/farm/ratings/labels.parquet"  # Rated responses.
    c.loss = "regression"
    c.score_as = "sigmoid"
    return c


def ensemble() -> ConfigDict:
    c = microfarm()
    c.members = 4
    c.member_order = True
    return c


def alpaca() -> ConfigDict:
    c = microfarm()
    c.data.train = "labels.parquet"
    c.data.template = "alpaca"
    c.data.max_length = 768
    c.model.init = "runs/alpaca/sft/export"
    c.center_on = ""
    c.batch_size = 8
    c.epochs = 1.0
    c.optimizer.learning_rate = 1e-4
    return c
