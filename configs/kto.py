"""Kahneman-Tversky optimisation on single responses, desirable or not, from and anchored to the SFT model.

    python -m rlhf_jax.main --config=configs/kto.py --workdir=runs/farm/kto

Labelled pairs become two rows each; rows with a column of true and false or with a rating are taken as they are. The
reference's log-probs are computed once, before the first step, and kept on disk, as DPO's.

What all trainers share stands in configs/common.py.
"""

from ml_collections import ConfigDict

from rlhf_jax.settings import choose_variant, module_beside

common = module_beside(__file__, "common")


def get_config(variant: str = "microfarm") -> ConfigDict:
    return choose_variant(variant, {"microfarm": microfarm})


def microfarm() -> ConfigDict:
    c = ConfigDict()
    c.job = "kto"
    c.seed = 0  # Of the rows that are drawn, their order, and which responses z0 is measured on.

    c.data = ConfigDict()
    c.data.train = (
        "runs/farm/labels/labels.parquet"  # Pairwise labels, or responses with a label or a rating.
    )
    c.data.eval = ""  # The same; "" holds out eval_rows of the training rows, by prompt.
    c.data.eval_rows = 600  # At most this many responses, drawn with the seed.
    c.data.max_length = 56  # Tokens of prompt + response + end.
    # Longer rows: drop, cut_response (no end then), or cut_prompt at its left, too.
    c.data.too_long = "drop"
    c.data.desirable_from = 5.0  # Of rows with a rating, the least that is desirable.
    common.training_rows(c.data)
    common.texts(c.data)
    common.responses(c.data)

    c.model = ConfigDict()
    c.model.init = "runs/farm/sft/export"  # Policy at step 0, and the frozen reference.
    common.trained_model(c.model)

    common.lora(c)

    c.reference = "cached"  # Log-probs computed once, kept on disk; or step: a second model in memory.
    c.reference_cache = ""  # Folder of what is kept; "" is rlhf_jax/reference in the user's cache folder.
    c.beta = 0.1  # Strength of the pull towards the reference.
    c.desirable_weight = 1.0  # Of the loss of a desirable row. Rows times weight should be
    c.undesirable_weight = 1.0  # 1 to 4/3 of what they are of the undesirable rows.

    c.batch_size = 64  # Responses per step, over all devices; z0 is measured on as many.
    c.epochs = 1.0  # Passes over the responses; may be a part of one.
    common.optimizer(c, learning_rate=2e-4, warmup_steps=10)

    c.logprob_chunk = 128  # Positions whose logits exist at one time.
    common.devices(c)
    common.rhythm(c, log_every=10, eval_every=150, save_every=150)
    common.sampled_win_rate(c, max_prompt_length=36, max_new_tokens=28)
    return c
